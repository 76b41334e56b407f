"""The command ``busgen-hub``. Exit status: 0 done, 1 refused or invalid, 2 wrong usage."""

import datetime
import json
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_core.console import print_rows, run_command
from busgen_core.digests import sha256_bytes
from busgen_core.errors import InputError, StateError, UnavailableError
from busgen_core.keys import PublicKey
from busgen_core.labels import Pathology
from busgen_core.release import TrustedKeys, verify_release
from busgen_core.supervise import Program, supervise
from busgen_core.transfer import folder_files, pack
from busgen_core.wire import Campaign, Name
from busgen_server import foundations
from busgen_server.database import ReleaseRow, open_store
from busgen_server.notices import withdrawal_words
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings
from busgen_server.store import HubStore

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The consortium's hub.")
site_app = typer.Typer(no_args_is_help=True, help="Hospitals.")
foundation_app = typer.Typer(no_args_is_help=True, help="Versions of the foundation.")
campaign_app = typer.Typer(no_args_is_help=True, help="Campaigns.")
catalogue_app = typer.Typer(no_args_is_help=True, help="Releases.")
release_app = typer.Typer(no_args_is_help=True, help="One release.")
groups = {"foundation": foundation_app, "site": site_app, "campaign": campaign_app, "catalogue": catalogue_app, "release": release_app}
for name, sub in groups.items():
    app.add_typer(sub, name=name)

Config = Annotated[Path, typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The hub's settings, hub.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HUB_TOML = Path("hub.toml")


class JoinRequest(BaseModel):
    """What a hospital sends to be enrolled: its name and its three public keys."""

    model_config = ConfigDict(extra="forbid")

    site: Name
    node_key: str
    officer_key: str
    flower_key: str


@app.command("init")
def init(
    foundation: Annotated[Path, typer.Option(help="Folder of the first foundation that campaigns hand out.")],
    config: Config = HUB_TOML,
    public_host: Annotated[str, typer.Option(help="Address of the one public port.")] = "127.0.0.1",
    public_port: Annotated[int, typer.Option(help="The one public port.")] = 8443,
    superlink_port: Annotated[int, typer.Option(help="Loopback port of Flower's SuperLink.")] = 9092,
    dashboard_port: Annotated[int, typer.Option(help="Loopback port of the dashboard.")] = 8080,
    poll_seconds: Annotated[float, typer.Option(help="Pause between two questions to a node.")] = 5,
) -> None:
    """Write hub.toml, the consortium's certificate authority and the hub's certificate; keep a first foundation. What is there is kept.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_server.pki import create_ca, issue_server_certificate

    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "data": "data",
            "public_host": public_host,
            "public_port": public_port,
            "superlink_port": superlink_port,
            "dashboard_port": dashboard_port,
            "poll_seconds": poll_seconds,
        }
        config.write_text(tomli_w.dumps(settings))
    loaded = load_settings(config)
    create_ca(loaded.data / "pki")
    issue_server_certificate(loaded.data / "pki", [loaded.public_host, *loaded.certificate_names])
    open_store(loaded.data)
    if foundations.versions(loaded.data):
        foundations.sync(loaded)
        typer.echo("the hub has a foundation already; 'busgen-hub foundation add' adds another")
    else:
        _add_foundation(loaded, foundation, name=None)
    typer.echo(f"hub in {config.parent}; start it with 'busgen-hub start'")


@app.command("start")
def start(config: Config = HUB_TOML) -> None:
    """Run the hub until it is told to stop: SuperLink, gateway, launcher, trainer, re-audits, dashboard; restarted when they end.

    Exit status: 0 stopped, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_server.flower_app.launcher import flower_environment

    settings = load_settings(config)
    supervise(programs(settings), env=flower_environment(settings, config))


def programs(settings: HubSettings) -> list[Program]:
    """The hub's processes. SuperLink listens on loopback only; the gateway is the one public port."""
    pki, logs = settings.data / "pki", settings.data / "logs"
    superlink = [
        "flower-superlink",
        *("--ssl-ca-certfile", str((pki / "ca.crt").absolute())),
        *("--ssl-certfile", str((pki / "server.crt").absolute()), "--ssl-keyfile", str((pki / "server.key").absolute())),
        *("--host", "127.0.0.1", "--port", str(settings.superlink_port)),
        *("--database", str((settings.data / "superlink.sqlite").absolute())),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]
    modules = {
        "gateway": "busgen_server.gateway",
        "launcher": "busgen_server.flower_app.launcher",
        "trainer": "busgen_server.trainer",
        "reaudits": "busgen_server.reaudits",
        "dashboard": "busgen_server.dashboard",
    }
    return [
        Program(name="superlink", command=superlink, log_file=logs / "superlink.log"),
        *(Program(name=n, command=[sys.executable, "-m", module], log_file=logs / f"{n}.log") for n, module in modules.items()),
    ]


@app.command("bundle")
def bundle() -> None:
    """Print the SHA-256 of the Flower bundle; hospitals pin it.

    Exit status: 0 done.
    """
    from busgen_server.flower_app.launcher import bundle_digest

    typer.echo(bundle_digest())


@app.command("invite")
def invite(config: Config = HUB_TOML) -> None:
    """Print an invitation for a hospital: address, certificate authority, bundle digest.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_server.flower_app.launcher import bundle_digest

    settings = load_settings(config)
    address = f"{settings.public_host}:{settings.public_port}"
    content = {"address": address, "ca_pem": (settings.data / "pki" / "ca.crt").read_text(), "bundle_sha256": [bundle_digest()]}
    typer.echo(json.dumps(content, indent=1))


@foundation_app.command("add")
def foundation_add(
    folder: Annotated[Path, typer.Argument(help="Folder of the foundation; it is copied.")],
    name: Annotated[str | None, typer.Option(help="What people call it, such as cpu-64; the folder's name without it.")] = None,
    config: Config = HUB_TOML,
) -> None:
    """Check a foundation, keep it as a version, make it current, and register it in MLflow. The same one twice is one version.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    _add_foundation(load_settings(config), folder, name=name)


@foundation_app.command("list")
def foundation_list(config: Config = HUB_TOML, as_json: AsJson = False) -> None:
    """Versions of the foundation; MLflow's registry is put right where it says otherwise.

    Exit status: 0 done, 1 invalid settings, or MLflow does not answer (the list is printed all the same), 2 wrong usage.
    """
    settings = load_settings(config)
    registered: dict[str, str] = {}
    problem: UnavailableError | None = None
    try:
        registered = foundations.sync(settings)
    except UnavailableError as error:
        problem = error
    print_rows([_foundation_row(settings, v, registered, as_json=as_json) for v in foundations.versions(settings.data)], as_json=as_json)
    if problem is not None:
        raise problem


@foundation_app.command("use")
def foundation_use(
    digest: Annotated[str, typer.Argument(help="Its digest, or the first digits of it.")],
    config: Config = HUB_TOML,
) -> None:
    """Make a version current: campaigns that name none hand it out. Open campaigns keep theirs.

    Exit status: 0 done, 1 unknown or damaged, 2 wrong usage.
    """
    settings = load_settings(config)
    version = foundations.use(settings, digest)
    HubStore(open_store(settings.data)).note("foundation.chosen", name=version.name, digest=version.digest[: foundations.SHOWN])
    typer.echo(f"current: {version.name}, {version.digest}")


@site_app.command("add")
def site_add(request: Annotated[Path, typer.Argument(help="The hospital's join request (JSON).")], config: Config = HUB_TOML) -> None:
    """Enrol a hospital: its signing keys in the store, its node key at Flower. The hub must be running.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_server.flower_app.launcher import register_node

    try:
        join = JoinRequest.model_validate_json(request.read_bytes())
        PublicKey.from_hex(join.node_key), PublicKey.from_hex(join.officer_key)
    except (OSError, ValidationError) as error:
        raise InputError(f"{request} is not a join request ({type(error).__name__}); ask the hospital for another") from None
    settings = load_settings(config)
    store = HubStore(open_store(settings.data))
    row = store.add_site(join.site, node_key=join.node_key, officer_key=join.officer_key, flower_key=join.flower_key)
    if row.node_id is None:
        key_file = settings.data / "sites" / f"{join.site}.pub"
        key_file.parent.mkdir(parents=True, exist_ok=True)
        key_file.write_text(join.flower_key)
        store.bind_node(join.site, register_node(settings, config, key_file))
    typer.echo(f"enrolled: {join.site}")


@site_app.command("list")
def site_list(config: Config = HUB_TOML, as_json: AsJson = False) -> None:
    """Hospitals and when they were last heard of.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    print_rows([{"site": s.name, "last_seen": str(s.last_seen or "never"), "node": s.node_id or ""} for s in _store(config).sites()], as_json=as_json)


@campaign_app.command("create")
def campaign_create(
    campaign_id: Annotated[str, typer.Argument(help="Its name: lower-case letters, digits, hyphens.")],
    images: Annotated[int, typer.Option(help="Synthetic images for each label.")] = 200,
    normal: Annotated[int | None, typer.Option(help="Another number for the label normal.")] = None,
    epsilon: Annotated[float, typer.Option(help="Epsilon wanted, adaptation and audit together.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta wanted.")] = 1e-5,
    days: Annotated[int, typer.Option(help="Days until the deadline.")] = 14,
    foundation: Annotated[str | None, typer.Option(help="Digest of a foundation, or its first digits; the current one without it.")] = None,
    config: Config = HUB_TOML,
) -> None:
    """Publish a campaign to all enrolled hospitals, with a foundation that stays this campaign's own.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    settings = load_settings(config)
    version = foundations.find(settings.data, foundation)
    packed = pack(foundations.read_files(settings.data, version.digest))
    try:
        campaign = Campaign(
            campaign_id=campaign_id,
            images={p: normal if p is Pathology.NORMAL and normal is not None else images for p in Pathology},
            epsilon=epsilon,
            delta=delta,
            foundation=version.digest,
            foundation_bytes=len(packed),
            foundation_package=sha256_bytes(packed),
            deadline=(datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)).isoformat(),
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"campaign {campaign_id}: {wrong}") from None
    _store(config).add_campaign(campaign)
    typer.echo(f"published: {campaign_id}, epsilon {epsilon:g}, delta {delta:g}, foundation {version.name} {version.digest[: foundations.SHOWN]}")


@campaign_app.command("show")
def campaign_show(campaign_id: str, config: Config = HUB_TOML, as_json: AsJson = False) -> None:
    """A campaign's jobs, one line a hospital.

    Exit status: 0 done, 1 no such campaign, 2 wrong usage.
    """
    store = _store(config)
    state = store.campaign_row(campaign_id).state
    rows = [{"site": j.site, "state": j.state, "progress": round(j.progress, 3), "code": j.code, "campaign": state} for j in store.jobs(campaign_id)]
    print_rows(rows, as_json=as_json)


@campaign_app.command("close")
def campaign_close(campaign_id: str, config: Config = HUB_TOML) -> None:
    """Wait for no further hospital: train and score on the releases that were admitted. Without this the deadline does it.

    A hospital that refuses its release, or whose job failed, is shown as in review until then: which it is stays there.

    Exit status: 0 done, 1 not open, 2 wrong usage.
    """
    _store(config).set_campaign_state(campaign_id, "scoring")


@campaign_app.command("cancel")
def campaign_cancel(campaign_id: str, config: Config = HUB_TOML) -> None:
    """Cancel a campaign; releases that arrived stay.

    Exit status: 0 done, 1 not open, 2 wrong usage.
    """
    _store(config).set_campaign_state(campaign_id, "cancelled")


@campaign_app.command("results")
def campaign_results(campaign_id: str, config: Config = HUB_TOML, as_json: AsJson = False) -> None:
    """AUC of each downstream model at each hospital, with 95 % intervals.

    Exit status: 0 done, 1 no such campaign, 2 wrong usage.
    """
    store = _store(config)
    store.campaign_row(campaign_id)
    rows = [
        {"trained on": r.name, "scored at": r.site, "auc": round(r.auc, 4), "low": round(r.low, 4), "high": round(r.high, 4)}
        for r in store.results(campaign_id)
    ]
    print_rows(rows, as_json=as_json)


@catalogue_app.command("list")
def catalogue_list(config: Config = HUB_TOML, as_json: AsJson = False) -> None:
    """Releases, admitted, rejected and retired, what their hospitals have said of them since, and whether the hub's own look gave remarks.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    store = _store(config)
    print_rows([_release_row(store, r, notices=store.withdrawals()) for r in store.releases()], as_json=as_json)


@release_app.command("retire")
def release_retire(release: Annotated[str, typer.Argument(help="Its id, as 'catalogue list' has it.")], config: Config = HUB_TOML) -> None:
    """Leave a release out of every later pool. Its files, and models trained before, stay.

    Exit status: 0 retired, 1 no such release was admitted, 2 wrong usage.
    """
    _store(config).retire_release(release)
    typer.echo(f"retired: {release}")


@release_app.command("reaudit")
def release_reaudit(
    release: Annotated[str, typer.Argument(help="Its id, as 'catalogue list' has it.")],
    public: Annotated[str | None, typer.Option(help="Public images: FOLDER, or FOLDER:ROLE; without it, public_images of hub.toml.")] = None,
    config: Config = HUB_TOML,
    as_json: AsJson = False,
) -> None:
    """Look at a release again, without any real patient: repeats, site and label, text, balance, quality, its own claims. Kept in the store.

    The hub does this by itself when it admits a release; here it is done once more, and now.

    Exit status: 0 done, 1 no such release was admitted, or images that cannot be read, 2 wrong usage.
    """
    from busgen_server.reaudits import reaudit_release

    settings = load_settings(config)
    found = reaudit_release(_store(config), settings.data, release, public=public or settings.public_images)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    for text in found.remarks or ("nothing to look at",):
        typer.echo(text)
    for text in found.not_run:
        typer.echo(f"not looked at: {text}")


@app.command("verify")
def verify(
    release: Annotated[Path, typer.Argument(help="Folder of a release.")],
    keys: Annotated[Path, typer.Option(help="The hospital's join request (JSON): its public keys.")],
) -> None:
    """Check a release's signatures, files and privacy arithmetic. Works offline.

    Exit status: 0 valid, 1 not valid, 2 wrong usage.
    """
    from busgen_privacy.statement import check_statement

    try:
        join = JoinRequest.model_validate_json(keys.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{keys} is not a join request ({type(error).__name__})") from None
    if not release.is_dir():
        raise StateError(f"{release} is not a folder")
    trusted = TrustedKeys(site=join.site, node=PublicKey.from_hex(join.node_key), officer=PublicKey.from_hex(join.officer_key))
    manifest = verify_release(folder_files(release), trusted)
    check_statement(manifest)
    typer.echo(f"valid: {manifest.release_id}, {manifest.images} images, epsilon {manifest.privacy.epsilon:.3f} at delta {manifest.privacy.delta:g}")


def _add_foundation(settings: HubSettings, folder: Path, *, name: str | None) -> None:
    version = foundations.add(settings, folder, name=name)
    HubStore(open_store(settings.data)).note("foundation.added", name=version.name, digest=version.digest[: foundations.SHOWN])
    typer.echo(f"foundation: {version.name}, {version.parameters:,} parameters, {version.image_px} px, {version.digest}")


def _foundation_row(settings: HubSettings, version: foundations.Version, registered: Mapping[str, str], *, as_json: bool) -> dict[str, object]:
    """One line for people, narrow enough for 80 columns; programs get the whole digest, the time, and MLflow's number."""
    chosen = version == foundations.current(settings.data)
    row: dict[str, object] = {
        "digest": version.digest if as_json else version.digest[: foundations.SHOWN],
        "name": version.name,
        "current": chosen if as_json else "yes" if chosen else "",
        "parameters": version.parameters,
        "image_px": version.image_px,
        "state": "whole" if foundations.is_whole(settings.data, version.digest) else "damaged",
    }
    return {**row, "added": version.added, "registered": registered.get(version.digest, "")} if as_json else row


def _release_row(store: HubStore, row: ReleaseRow, *, notices: Set[tuple[str, str]]) -> dict[str, object]:
    from busgen_server.looks import look_and_findings, look_words

    notice = withdrawal_words(row.epsilon, retired=row.state == "retired") if (row.campaign_id, row.site) in notices else ""
    shown = {"release": row.release_id, "site": row.site, "state": row.state, "code": row.code, "epsilon": row.epsilon}
    return {**shown, "gate": row.gate, "images": row.images, "look": look_words(look_and_findings(store, row)[0]), "notice": notice}


def _store(config: Path) -> HubStore:
    return HubStore(open_store(load_settings(config).data))


def main() -> None:
    """Entry point of ``busgen-hub``."""
    run_command("busgen-hub", app)
