"""The commands ``busgen-node ledger`` and ``busgen-node consent``."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cohort import CohortStore
from busgen_client.consent import Withdrawal, patient_key_in, withdraw, withdrawals
from busgen_client.database import open_store
from busgen_client.jobs import JobStore
from busgen_client.settings import NodeSettings, load_settings
from busgen_core.console import print_rows
from busgen_privacy.ledger import Ledger

ACCOUNTS = ("members", "holdout")

ledger_app = typer.Typer(no_args_is_help=True, help="Privacy spent.")
consent_app = typer.Typer(no_args_is_help=True, help="Withdrawn consent.")


@ledger_app.command("show")
def ledger_show(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """What was spent on members and on holdout patients: entries, mechanisms, epsilon by both accountants, and what the cap leaves.

    Exit status: 0 done, 1 the ledger was edited, 2 wrong usage.
    """
    settings = load_settings(config)
    ledger = _ledger(settings)
    print_rows([_account(ledger, account, settings, as_json=as_json) for account in ACCOUNTS], as_json=as_json)


def _account(ledger: Ledger, account: str, settings: NodeSettings, *, as_json: bool) -> dict[str, object]:
    """One account. What the cap leaves is a difference; since epsilons compose to less than their sum, a little more may fit."""
    delta, cap = settings.policy.lifetime_delta, settings.policy.lifetime_epsilon
    spent = ledger.composed(account, delta)
    counts: Counter[str] = Counter()
    for event in ledger.charged(account):
        counts[event.mechanism] += event.count
    return {
        "account": account,
        "entries": sum(entry.account == account for entry in ledger.entries()),
        "mechanisms": dict(counts) if as_json else ", ".join(f"{name} x {count}" for name, count in counts.items()),
        "PLD": round(spent.pld, 4),
        "PRV": round(spent.prv, 4),
        "epsilon": round(spent.epsilon, 4),
        "of": cap,
        "left": round(max(0.0, cap - spent.epsilon), 4),
        "delta": delta,
    }


@ledger_app.command("verify")
def ledger_verify(config: Config = NODE_TOML) -> None:
    """Check the ledger's hash chain, and that no entry says what it cannot; names the first line that is wrong.

    Exit status: 0 whole, 1 edited or torn, 2 wrong usage.
    """
    ledger = _ledger(load_settings(config))
    ledger.verify()
    typer.echo(f"whole: {len(ledger.entries())} entries, head {ledger.head}")


@ledger_app.command("settle")
def ledger_settle(campaign: str, config: Config = NODE_TOML) -> None:
    """Close a job that ended, and give back what its own records prove never ran. The job can then never be run again.

    Exit status: 0 settled, 1 not ended or nothing to give back, 2 wrong usage.
    """
    from busgen_client.settle import settle

    settings = load_settings(config)
    left = settle(settings, JobStore(open_store(settings.data)), _ledger(settings), campaign)
    for account, events in left.items():
        typer.echo(f"{account}: {campaign} is now charged for {', '.join(f'{e.mechanism} x {e.count}' for e in events) or 'nothing'}")


@consent_app.command("withdraw")
def consent_withdraw(
    key: Annotated[str | None, typer.Argument(help="The patient's opaque key.")] = None,
    patient_id_file: Annotated[Path | None, typer.Option(help="File whose one line is the patient's identifier, as it was at intake.")] = None,
    issuer: Annotated[str, typer.Option(help="Issuer of that identifier, where the DICOM files name one.")] = "",
    unknown_too: Annotated[bool, typer.Option("--unknown-too", help="Refuse from now on also a patient of whom nothing is here.")] = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Delete a patient's images, never take the patient in again, stop jobs that hold the patient, and tell the hub of releases that do.

    Exit status: 0 done, 1 nothing of the patient is here, unreadable file, or an intake is running, 2 wrong usage.
    """
    if (key is None) == (patient_id_file is None):
        raise typer.BadParameter("give either the patient's key or --patient-id-file")
    settings = load_settings(config)
    if patient_id_file is not None:
        key = patient_key_in(CohortStore(open_store(settings.data), settings.data), patient_id_file, issuer=issuer)
    done = withdraw(settings, key or "", known=not unknown_too)
    print_rows([asdict(done)], as_json=True) if as_json else _tell(done)


def _tell(done: Withdrawal) -> None:
    typer.echo(f"{done.images} images deleted, and all that waited; this patient is refused from now on")
    for campaign in done.stopped:
        typer.echo(f"stopped: {campaign}; 'busgen-node ledger settle {campaign}' gives back what never ran")
    for campaign, release in done.releases:
        typer.echo(f"released before: {release} ({campaign}); it stays protected by its epsilon, the hub is told")


@consent_app.command("list")
def consent_list(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """All withdrawals: when, how many images went, which releases and jobs held the patient; nobody is named.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    done = withdrawals(load_settings(config))
    print_rows([asdict(each) if as_json else _line(each) for each in done], as_json=as_json)


def _line(done: Withdrawal) -> dict[str, object]:
    released = ", ".join(release for _, release in done.releases)
    return {"tombstone": done.tombstone[:12], "when": done.created, "images": done.images, "released": released, "stopped": ", ".join(done.stopped)}


def _ledger(settings: NodeSettings) -> Ledger:
    return Ledger(settings.data / "ledger.jsonl", site=settings.site)
