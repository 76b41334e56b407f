"""The command ``busgen-node``. Exit status: 0 done, 1 refused or invalid, 2 wrong usage."""

import sys
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_client.cli_cohort import cohort_app
from busgen_client.cli_console import console_app
from busgen_client.cli_intake import intake_app
from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cli_privacy import consent_app, ledger_app
from busgen_client.cli_quarantine import quarantine_app
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.database import open_store
from busgen_client.doctor import examine
from busgen_client.jobs import JobStore
from busgen_client.keys import create_keys, flower_key_file, join_request
from busgen_client.papers import Paper, copy_paper
from busgen_client.protocol import decide
from busgen_client.settings import CONFIG_VARIABLE, NodeSettings, load_settings
from busgen_core.console import print_rows, run_command
from busgen_core.errors import ConfigError, InputError, StateError
from busgen_core.supervise import Program, environment, supervise
from busgen_core.wire import Digest, JobState

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="A hospital's node.")
jobs_app = typer.Typer(no_args_is_help=True, help="Campaigns and what became of them.")
review_app = typer.Typer(no_args_is_help=True, help="The privacy officer's part.")
for name, sub in {
    "intake": intake_app,
    "quarantine": quarantine_app,
    "console": console_app,
    "cohort": cohort_app,
    "jobs": jobs_app,
    "review": review_app,
    "ledger": ledger_app,
    "consent": consent_app,
}.items():
    app.add_typer(sub, name=name)

Copy = Annotated[Path, typer.Option("--out", help="File to write; there is none yet.")]
PassphraseFile = Annotated[Path, typer.Option(help="File that holds the officer's passphrase; its last line break is not part of it.")]


class Invite(BaseModel):
    """What a coordinator hands to a hospital: where the hub is, who vouches for it, which bundles may run."""

    model_config = ConfigDict(extra="forbid")

    address: str
    ca_pem: str
    bundle_sha256: tuple[Digest, ...]


@app.command()
def join(
    invite: Annotated[Path, typer.Argument(help="Invitation from the coordinator (JSON).")],
    site: Annotated[str, typer.Option(help="The hospital's name in the consortium.")],
    passphrase_file: PassphraseFile,
    public_cohort: Annotated[int, typer.Option(help="A public, round statement of how many patients there are.")],
    config: Config = NODE_TOML,
    lifetime_epsilon: Annotated[float, typer.Option(help="Largest epsilon of all campaigns together.")] = 16.0,
    campaign_epsilon: Annotated[float, typer.Option(help="Largest epsilon of one campaign.")] = 8.0,
) -> None:
    """Write node.toml, create this node's keys, and print the join request for the coordinator.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    try:
        invitation = Invite.model_validate_json(invite.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{invite} is not an invitation ({type(error).__name__}); ask the coordinator for another") from None
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        (config.parent / "hub-ca.crt").write_text(invitation.ca_pem)
        settings = {
            "site": site,
            "data": "data",
            "hub": {"address": invitation.address, "ca_file": "hub-ca.crt", "bundle_sha256": list(invitation.bundle_sha256)},
            "policy": {"lifetime_epsilon": lifetime_epsilon, "campaign_epsilon": campaign_epsilon, "public_cohort": public_cohort},
        }
        config.write_text(tomli_w.dumps(settings))
    loaded = load_settings(config)
    create_keys(loaded.data, read_passphrase(passphrase_file))
    typer.echo(join_request(loaded))


@app.command()
def start(config: Config = NODE_TOML) -> None:
    """Run the node until it is told to stop: worker and SuperNode, receiver and console if they are switched on; restarted when they end.

    Exit status: 0 stopped, 1 refused or invalid, 2 wrong usage.
    """
    settings = load_settings(config)
    if not flower_key_file(settings.data).exists():
        raise ConfigError("this node has no keys; run 'busgen-node join' first")
    if not settings.hub.bundle_sha256:
        raise ConfigError("no bundle is pinned: hub.bundle_sha256 is empty, so nothing could run")
    logs = settings.data / "logs"
    env = environment({CONFIG_VARIABLE: str(config.absolute()), "FLWR_HOME": str((settings.data / "flower").absolute())})
    if settings.adapt.threads:
        env |= {"OMP_NUM_THREADS": str(settings.adapt.threads), "MKL_NUM_THREADS": str(settings.adapt.threads)}
    programs = [
        Program(name="worker", command=[sys.executable, "-m", "busgen_client.worker"], log_file=logs / "worker.log"),
        Program(name="supernode", command=supernode_command(settings), log_file=logs / "supernode.log"),
    ]
    if settings.pacs.receive:
        programs.append(Program(name="receiver", command=["busgen-node", "intake", "receive", "--json"], log_file=logs / "receiver.log"))
    if settings.console.serve:
        programs.append(Program(name="console", command=["busgen-node", "console", "serve"], log_file=logs / "console.log"))
    supervise(programs, env=env)


def supernode_command(settings: NodeSettings) -> list[str]:
    """The guarded SuperNode of this node."""
    return [
        *(sys.executable, "-m", "busgen_client.flower_app.supernode", ",".join(settings.hub.bundle_sha256)),
        *("--root-certificates", str(settings.hub.ca_file.absolute())),
        *("--superlink", settings.hub.address),
        *("--host", "127.0.0.1", "--port", str(settings.runtime_port)),
        *("--auth-supernode-private-key", str(flower_key_file(settings.data).absolute())),
    ]


@jobs_app.command("list")
def jobs_list(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """All jobs of this node.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    rows = [
        {"campaign": r.campaign_id, "state": r.state, "progress": round(r.progress, 3), "code": r.code, "message": r.message, "admitted": r.admitted}
        for r in _jobs(config).all()
    ]
    print_rows(rows, as_json=as_json)


@jobs_app.command("accept")
def jobs_accept(campaign: str, config: Config = NODE_TOML) -> None:
    """Accept an offered campaign, if the policy allows it.

    Exit status: 0 accepted, 1 declined by the policy or not on offer, 2 wrong usage.
    """
    state = decide(_jobs(config), _cohort(config), load_settings(config), campaign)
    typer.echo(f"{campaign}: {state.value}")
    if state.ended:
        sys.exit(1)


@jobs_app.command("decline")
def jobs_decline(campaign: str, config: Config = NODE_TOML) -> None:
    """Decline an offered campaign.

    Exit status: 0 declined, 1 not on offer, 2 wrong usage.
    """
    _jobs(config).move(campaign, JobState.DECLINED, code="steward-declined")


@jobs_app.command("abandon")
def jobs_abandon(campaign: str, config: Config = NODE_TOML) -> None:
    """Give up an accepted campaign before its review; a worker that is at it stops by itself. 'ledger settle' then gives back what never ran.

    Exit status: 0 given up, 1 not accepted, in review, or over already, 2 wrong usage.
    """
    jobs = _jobs(config)
    state = JobState(jobs.need(campaign).state)
    if state.ended or state in (JobState.OFFERED, JobState.REVIEW):
        raise StateError(f"job of campaign {campaign} is {state.value}; one on offer is declined, one in review is refused")
    jobs.move(campaign, JobState.FAILED, code="steward-abandoned")


@review_app.command("approve")
def review_approve(campaign: str, passphrase_file: PassphraseFile, config: Config = NODE_TOML) -> None:
    """Sign a release and let it go to the hub.

    Exit status: 0 signed, 1 not in review, wrong passphrase, not what was audited, or a check failed, 2 wrong usage.
    """
    from busgen_client.release import approve

    manifest = approve(load_settings(config), _jobs(config), campaign, read_passphrase(passphrase_file))
    typer.echo(f"signed: {manifest.release_id}, {manifest.images} images, epsilon {manifest.privacy.epsilon:.3f}")


@review_app.command("again")
def review_again(campaign: str, config: Config = NODE_TOML) -> None:
    """Have the worker audit what was drawn and lay it out for review anew, where 'approve' finds another release than the audited one.

    Exit status: 0 the worker will, 1 not in review, 2 wrong usage.
    """
    from busgen_client.release import lay_out_again

    lay_out_again(_jobs(config), campaign)


@review_app.command("refuse")
def review_refuse(campaign: str, reason: Annotated[str, typer.Option(help="Stays in the hospital.")], config: Config = NODE_TOML) -> None:
    """Refuse a release; its budget stays spent.

    Exit status: 0 refused, 1 not in review, 2 wrong usage.
    """
    from busgen_client.release import refuse

    refuse(_jobs(config), campaign, reason)


@review_app.command("report")
def review_report(campaign: str, out: Copy, config: Config = NODE_TOML) -> None:
    """Write a readable copy of the hospital's own audit report (HTML), mode 0600. It shows real images: delete it when you have read it.

    Exit status: 0 done, 1 there is none yet, no key, or the file is there already, 2 wrong usage.
    """
    _copy(Paper.REPORT, campaign, out, config)


@review_app.command("audit")
def review_audit(campaign: str, out: Copy, config: Config = NODE_TOML) -> None:
    """Write a readable copy of the exact audit (JSON), mode 0600, for programs of the hospital.

    Exit status: 0 done, 1 there is none yet, no key, or the file is there already, 2 wrong usage.
    """
    _copy(Paper.AUDIT, campaign, out, config)


@app.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Epsilon that a campaign would ask for.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Its delta.")] = 1e-5,
    images: Annotated[int, typer.Option(help="Images that it would ask for.", min=1)] = 1000,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """What a campaign would spend here, how long it would take, and what rehearsals lead one to expect. Spends nothing, reads no patient.

    Exit status: 0 done, 1 no plan is possible or none in the time allowed, 2 wrong usage.
    """
    from busgen_client.planning import expect  # imports torch
    from busgen_core.cli import SHIPPED
    from busgen_core.foundation import load_foundation

    found = expect(load_settings(config), load_foundation(SHIPPED), epsilon=epsilon, delta=delta, images=images)
    typer.echo(found.model_dump_json(indent=1) if as_json else found.words())


@app.command()
def doctor(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Check settings, keys, cohort, ledger, disk and the way to the hub.

    Exit status: 0 all well, 1 something is not, 2 wrong usage.
    """
    rows = examine(load_settings(config))
    print_rows(rows, as_json=as_json)
    if not all(row["ok"] for row in rows):
        sys.exit(1)


def read_passphrase(file: Path) -> bytes:
    """The passphrase in a file, without its last line break.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return file.read_bytes().removesuffix(b"\n")
    except OSError:
        raise InputError(f"{file}: the passphrase file cannot be read") from None


def _cohort(config: Path) -> CohortStore:
    return open_cohort(load_settings(config))


def _copy(paper: Paper, campaign: str, out: Path, config: Path) -> None:
    store = _cohort(config)
    _jobs(config).need(campaign)
    copy_paper(store.vault, store.data, campaign, paper, out)
    store.note("paper.copied", {"campaign": campaign, "paper": paper.value})
    typer.echo(str(out))


def _jobs(config: Path) -> JobStore:
    return JobStore(open_store(load_settings(config).data))


def main() -> None:
    """Entry point of ``busgen-node``."""
    run_command("busgen-node", app)
