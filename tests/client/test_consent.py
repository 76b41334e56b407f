"""Withdrawn consent: what is deleted, who is refused, which jobs end, what the hub is told, and that nothing names the patient."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.admission import Admission
from busgen_client.cli import main as node_command
from busgen_client.cohort_rows import ImageRow, JournalRow, WithdrawnRow
from busgen_client.consent import withdraw, withdrawals
from busgen_client.database import open_store
from busgen_client.intake.findings import Code
from busgen_client.intake.run import Source
from busgen_client.intake.run import take_in as run_intake
from busgen_client.jobs import JobStore
from busgen_client.protocol import COHORT_FILE, LOCAL_REPORT, NodeProtocol, job_folder
from busgen_client.release import approve
from busgen_client.settings import NodeSettings
from busgen_client.settle import settle
from busgen_client.worker import Worker
from busgen_core.errors import ConsentWithdrawnError, InputError, LedgerError, StateError, StorageFullError
from busgen_core.wire import Hello, HelloReply, JobState, JobStatus, ReleaseRequest, StatusRequest
from busgen_privacy.dp.adaptation import run as run_mechanisms
from busgen_privacy.ledger import Ledger
from busgen_server.database import open_store as open_hub
from busgen_server.store import HubStore
from tests.client.node import PASSPHRASE, accepted, campaign, cohort, job_in, lay_out, new_image, quick_plan, take_in
from tests.journeys.world import tiny_foundation


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    """Three members and two holdout patients, two images each."""
    settings = lay_out(tmp_path)
    take_in(cohort(settings), ["vivi", "lulu", "cleo"], role="member")
    take_in(cohort(settings), ["dora", "emma"], role="holdout")
    return settings


def key(node: NodeSettings, patient: str) -> str:
    return cohort(node).pseudonyms.patient_key(patient)


def ledger(node: NodeSettings) -> Ledger:
    return Ledger(node.data / "ledger.jsonl", site="north")


def ask(node: NodeSettings, name: str) -> JobStatus:
    reply, _ = NodeProtocol(node).respond(StatusRequest(campaign_id=name).model_dump_json(), b"")
    assert isinstance(reply, JobStatus)
    return reply


def run(folder: Path, *arguments: str) -> str | int | None:
    """Run a command of the node in this process; what sys.exit was given (text means status 1)."""
    sys.argv = ["busgen-node", *arguments, "--config", str(folder / "node.toml")]
    with pytest.raises(SystemExit) as ended:
        node_command()
    return ended.value.code


def test_images_rows_and_files_are_gone_and_the_others_stay(node: NodeSettings) -> None:
    """Every row and file of the patient is deleted, and the key is nowhere in the store; other patients lose nothing."""
    store, ada = cohort(node), key(node, "vivi")
    assert withdraw(node, ada).images == 2
    with Session(open_store(node.data)) as session:
        assert session.scalars(select(ImageRow).where(ImageRow.patient_key == ada)).all() == []
        files = set(session.scalars(select(ImageRow.file)))
        assert not [row for row in session.scalars(select(JournalRow)) if ada in row.detail]
    assert {file.name for file in (node.data / "images").iterdir()} == files
    assert len(files) == 8
    assert (store.count_patients("member"), store.count_patients("holdout")) == (2, 2)
    assert ada not in store.load("member").patients


def test_the_key_is_in_no_file_of_the_node(node: NodeSettings) -> None:
    """The key is in no byte of any file of the node, the store's free pages and log included."""
    job_in(node, "c1", JobState.RELEASED)
    ada = key(node, "vivi")
    withdraw(node, ada)
    for file in node.data.rglob("*"):
        if file.is_file():
            assert ada.encode() not in file.read_bytes(), file.name
            assert bytes.fromhex(ada) not in file.read_bytes(), file.name


def test_a_withdrawn_patient_is_never_taken_in_again(node: NodeSettings) -> None:
    """Old and new images of the patient are refused by name, whatever the role; other patients are not."""
    store, ada = cohort(node), key(node, "vivi")
    withdraw(node, ada)
    for number in (0, 7):
        assert store.add(new_image(store, "vivi", number, role=None)) is Admission.WITHDRAWN
    sources = [Source(key=f"s{patient}", read=lambda p=patient: [new_image(store, p, 8, role=None)]) for patient in ("vivi", "lulu")]
    result = run_intake(store, sources, total=2, event="test", progress=False)
    assert (result.added, dict(result.codes)) == (1, {Code.CONSENT_WITHDRAWN.value: 1})
    assert ada not in {*store.load("member").patients, *store.load("holdout").patients}


def test_a_tombstone_is_not_the_key(node: NodeSettings) -> None:
    """What is kept is a keyed digest of the key: it differs from it, and another node's secret gives another."""
    ada = key(node, "vivi")
    withdraw(node, ada)
    with Session(open_store(node.data)) as session:
        (row,) = session.scalars(select(WithdrawnRow)).all()
    assert row.tombstone == cohort(node).pseudonyms.tombstone(ada) != ada


def test_a_release_that_holds_the_patient_is_told_to_the_hub_without_name_or_number(node: NodeSettings) -> None:
    """Status and hello say that the release holds a withdrawn patient; two patients say no more than one; other releases say nothing."""
    job_in(node, "c1", JobState.RELEASED)
    take_in(cohort(node), ["late"], role="member")
    job_in(node, "c2", JobState.RELEASED)
    assert not ask(node, "c1").withdrawal_notice
    assert withdraw(node, key(node, "late")).releases == (("c2", "north-c2"),)
    assert (ask(node, "c1").withdrawal_notice, ask(node, "c2").withdrawal_notice) == (False, True)
    one = ask(node, "c2")
    assert withdraw(node, key(node, "vivi")).releases == (("c1", "north-c1"), ("c2", "north-c2"))
    assert ask(node, "c2") == one
    reply, _ = NodeProtocol(node).respond(Hello().model_dump_json(), b"")
    assert isinstance(reply, HelloReply)
    assert reply.withdrawal_notices == ("c1", "c2")
    for patient in ("vivi", "late"):
        for secret in (patient, key(node, patient), cohort(node).pseudonyms.tombstone(key(node, patient))):
            assert secret not in reply.model_dump_json() + one.model_dump_json()


def test_the_ledger_notes_releases_and_no_patient(node: NodeSettings) -> None:
    """One entry for each release that holds a withdrawn patient, in the account that paid; a second patient adds none; nothing is spent."""
    for name in ("c1", "c2"):
        job_in(node, name, JobState.RELEASED)
    for patient in ("vivi", "lulu", "dora"):
        withdraw(node, key(node, patient))
    noted = [(e.kind, e.account, e.reference, e.events) for e in ledger(node).entries()]
    members = [("withdraw", "members", f"north-{c}", ()) for c in ("c1", "c2")]
    assert noted == [*members, *((kind, "holdout", release, events) for kind, _, release, events in members)]
    text = (node.data / "ledger.jsonl").read_text()
    assert not any(s in text for p in ("vivi", "lulu", "dora") for s in (key(node, p), cohort(node).pseudonyms.tombstone(key(node, p))))


RUNNING = (JobState.ACCEPTED, JobState.ADAPTING, JobState.GENERATING, JobState.AUDITING, JobState.REVIEW)


@pytest.mark.parametrize("state", RUNNING)
def test_a_job_that_has_not_released_ends_by_name(node: NodeSettings, state: JobState) -> None:
    """In every state before the release the job fails with ``consent-withdrawn``, cannot be moved or approved, and has no report with pictures."""
    jobs = job_in(node, "c1", state)
    (job_folder(node.data, "c1") / LOCAL_REPORT).write_text("<img>")
    done = withdraw(node, key(node, "emma"))
    assert (done.stopped, done.releases) == (("c1",), ())
    status = ask(node, "c1")
    assert (status.state, status.code, status.withdrawal_notice) == (JobState.REVIEW, "", False)  # the hub is not told
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("failed", "consent-withdrawn")
    for way in (JobState.FAILED, JobState.REVIEW, JobState.RELEASED):
        with pytest.raises(ConsentWithdrawnError):
            jobs.move("c1", way)
    with pytest.raises(ConsentWithdrawnError):
        jobs.set_release("c1", release_id="r", release_bytes=1, release_sha256="0" * 64)
    with pytest.raises(ConsentWithdrawnError):
        approve(node, jobs, "c1", PASSPHRASE)
    jobs.end("c1", JobState.FAILED, code="worker-crash")
    assert jobs.need("c1").code == "consent-withdrawn"
    assert not (job_folder(node.data, "c1") / LOCAL_REPORT).exists()
    assert NodeProtocol(node).respond(ReleaseRequest(campaign_id="c1", offset=0, length=1).model_dump_json(), b"")[1] == b""


def test_half_written_files_go_too(node: NodeSettings) -> None:
    """What a crash left half-written in the spool, or of a report, may be of the patient: a withdrawal deletes it."""
    job_in(node, "c1", JobState.REVIEW)
    halves = [node.data / "spool" / "a-1.dcm.new", job_folder(node.data, "c1") / f"{LOCAL_REPORT}.new"]
    for half in halves:
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"half")
    withdraw(node, key(node, "emma"))
    assert [half.exists() for half in halves] == [False, False]


def test_jobs_without_the_patient_go_on(node: NodeSettings) -> None:
    """A job frozen before the patient came, one on offer, and one not yet frozen are left alone; one whose list is lost counts as holding."""
    job_in(node, "before", JobState.GENERATING)
    take_in(cohort(node), ["late"], role="member")
    job_in(node, "lost", JobState.AUDITING, frozen=False)
    job_in(node, "unfrozen", JobState.ACCEPTED, frozen=False)
    job_in(node, "damaged", JobState.ADAPTING)
    (job_folder(node.data, "damaged") / COHORT_FILE).write_text("{")
    jobs = JobStore(open_store(node.data))
    jobs.offer(campaign("offered"))
    assert set(withdraw(node, key(node, "late")).stopped) == {"lost", "damaged"}
    assert {r.campaign_id: r.state for r in jobs.all()} == {
        "before": "generating",
        "lost": "failed",
        "unfrozen": "accepted",
        "damaged": "failed",
        "offered": "offered",
    }


def test_a_patient_who_was_never_here_is_refused_from_now_on_if_named_by_identifier(node: NodeSettings, tmp_path: Path) -> None:
    """A key that nobody has may be mistyped and changes nothing; an identifier is buried all the same; both are 64 digits or nothing."""
    store, zoe = cohort(node), key(node, "zoe")
    with pytest.raises(InputError, match="nothing of a patient of that key"):
        withdraw(node, zoe)
    assert store.add(new_image(store, "zoe", 0, role="member")) is Admission.ADDED
    for wrong in ("", "vivi", zoe[:-1], zoe.upper(), f"{zoe} "):
        with pytest.raises(InputError, match="64"):
            withdraw(node, wrong)
    assert withdraw(node, key(node, "yves"), known=False).images == 0
    assert store.add(new_image(store, "yves", 0, role="member")) is Admission.WITHDRAWN


def test_repeating_changes_nothing(node: NodeSettings) -> None:
    """The same command again gives the same answer and adds no row, entry or notice."""
    job_in(node, "c1", JobState.RELEASED)
    first = withdraw(node, key(node, "vivi"))
    entries = ledger(node).entries()
    assert withdraw(node, key(node, "vivi")) == first
    assert withdrawals(node) == [first]
    assert ledger(node).entries() == entries


CRASHES = ("busgen_client.image_files.ImageFiles.sweep", "busgen_client.consent.remove_pictures", "busgen_privacy.ledger.Ledger.withdraw")


@pytest.mark.parametrize("place", CRASHES)
def test_a_crash_is_finished_by_the_same_command(node: NodeSettings, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Wherever it dies after the transaction, jobs and notice are right already, and the repetition does the rest."""
    job_in(node, "c1", JobState.RELEASED)
    job_in(node, "c2", JobState.REVIEW)
    calls: list[int] = []

    def dies(*_: object, **__: object) -> None:
        calls.append(1)
        if place != CRASHES[0] or len(calls) == 2:  # the first sweep is intake's own, before anything
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, dies)
        with pytest.raises(Killed):
            withdraw(node, key(node, "vivi"))
    assert ask(node, "c1").withdrawal_notice
    assert JobStore(open_store(node.data)).need("c2").code == "consent-withdrawn"
    assert withdraw(node, key(node, "vivi")).stopped == ("c2",)
    assert [e.reference for e in ledger(node).entries()] == ["north-c1"]
    assert len(list((node.data / "images").iterdir())) == 8


def test_a_crash_inside_the_transaction_changes_nothing(node: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it commits there is no tombstone, no stopped job and no lost image."""
    job_in(node, "c1", JobState.REVIEW)
    with monkeypatch.context() as patch:
        patch.setattr("busgen_client.consent._holds", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            withdraw(node, key(node, "vivi"))
    assert withdrawals(node) == []
    assert ask(node, "c1").state is JobState.REVIEW
    assert len(cohort(node).load("member").patients) == 6


def test_a_full_disk_or_an_edited_ledger_is_named_and_finished_later(node: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patient is gone and the job has ended even where the ledger cannot be written; with room again the same command writes it."""
    import busgen_privacy.ledger_file as module

    job_in(node, "c1", JobState.RELEASED)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StorageFullError):
            withdraw(node, key(node, "vivi"))
    assert ask(node, "c1").withdrawal_notice
    withdraw(node, key(node, "vivi"))
    assert [e.kind for e in ledger(node).entries()] == ["withdraw"]
    (node.data / "ledger.jsonl").write_text("{}\n")
    with pytest.raises(LedgerError):
        withdraw(node, key(node, "lulu"))
    assert key(node, "lulu") not in cohort(node).load("member").patients


def test_an_intake_that_runs_is_not_disturbed(node: NodeSettings) -> None:
    """While an intake holds the cohort the withdrawal is refused by name, and changes nothing."""
    with cohort(node).intake(), pytest.raises(StateError, match="intake is running"):
        withdraw(node, key(node, "vivi"))
    assert withdrawals(node) == []


def test_the_commands(node: NodeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By key or by a file with the identifier; exactly one of both; nothing printed names the patient."""
    job_in(node, "c1", JobState.RELEASED)
    job_in(node, "c2", JobState.REVIEW)
    file = tmp_path / "identifier"
    file.write_text("vivi\n", encoding="utf-8")
    assert run(tmp_path, "consent", "withdraw") == 2
    assert run(tmp_path, "consent", "withdraw", key(node, "vivi"), "--patient-id-file", str(file)) == 2
    assert "input-invalid" in str(run(tmp_path, "consent", "withdraw", "--patient-id-file", str(tmp_path / "none")))
    capsys.readouterr()
    assert run(tmp_path, "consent", "withdraw", "--patient-id-file", str(file)) == 0
    said = capsys.readouterr().out
    assert "2 images deleted" in said
    assert "north-c1" in said
    assert "settle c2" in said
    assert run(tmp_path, "consent", "withdraw", key(node, "lulu"), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["images"] == 2
    assert run(tmp_path, "consent", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert run(tmp_path, "consent", "list") == 0
    said += json.dumps(rows) + capsys.readouterr().out
    assert [row["stopped"] for row in rows if row["stopped"]] == [["c2"]]
    assert not any(secret in said for patient in ("vivi", "lulu") for secret in (key(node, patient), patient))
    file.write_text("a\nb\n")
    assert "one line" in str(run(tmp_path, "consent", "withdraw", "--patient-id-file", str(file)))


def test_the_issuer_is_part_of_the_patient(node: NodeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same number from another issuer is another patient, who is not here: the command fails, says to check the issuer, and changes nothing.
    With --unknown-too that patient is refused from now on; the one who is here is left alone."""
    (tmp_path / "identifier").write_text("vivi")
    words = ("consent", "withdraw", "--patient-id-file", str(tmp_path / "identifier"), "--issuer", "elsewhere")
    said = str(run(tmp_path, *words))
    assert "--issuer" in said
    assert "vivi" not in said
    assert withdrawals(node) == []
    assert run(tmp_path, *words, "--unknown-too") == 0
    assert "0 images deleted" in capsys.readouterr().out
    assert cohort(node).withdrawn(cohort(node).pseudonyms.person("vivi", issuer="elsewhere"))
    assert key(node, "vivi") in cohort(node).load("member").patients


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_identifier_is_read_with_and_without_a_byte_order_mark(node: NodeSettings, tmp_path: Path, encoding: str) -> None:
    """A file as Windows writes it names the same patient."""
    (tmp_path / "identifier").write_text("vivi\r\n", encoding=encoding)
    assert run(tmp_path, "consent", "withdraw", "--patient-id-file", str(tmp_path / "identifier")) == 0
    assert key(node, "vivi") not in cohort(node).load("member").patients


def test_a_crash_is_finished_by_another_number_too(node: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger could not be written, the withdrawal repeated by another number of the same patient writes it."""
    store = cohort(node)
    old, new = (store.pseudonyms.person(number, name="Doe^Jane", birth_date="19610412") for number in ("old", "new"))
    store.add(replace(new_image(store, "old", 0, role="member"), person=old))
    store.learn(new)
    job_in(node, "c1", JobState.RELEASED)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "withdraw", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            withdraw(node, old.key)
    assert withdraw(node, new.key).images == 0
    assert [e.reference for e in ledger(node).entries()] == ["north-c1"]


def test_the_hub_keeps_the_notice_whichever_message_brings_it(node: NodeSettings, tmp_path: Path) -> None:
    """From the node's own answers the hub learns it once, keeps it when a later answer lacks it, and survives one of a campaign it never had."""
    job_in(node, "c1", JobState.RELEASED)
    job_in(node, "c2", JobState.RELEASED)
    withdraw(node, key(node, "vivi"))
    store = HubStore(open_hub(tmp_path / "hub"))
    store.add_site("north", node_key="1" * 64, officer_key="2" * 64, flower_key="ssh")
    store.add_campaign(campaign("c1"))
    hello, _ = NodeProtocol(node).respond(Hello().model_dump_json(), b"")
    assert isinstance(hello, HelloReply)
    store.record_hello("7", HelloReply.model_validate_json(hello.model_dump_json()))
    assert store.withdrawals() == {("c1", "north")}
    store.add_campaign(campaign("c2"))
    store.upsert_job("north", JobStatus.model_validate_json(ask(node, "c2").model_dump_json()))
    store.upsert_job("north", ask(node, "c2").model_copy(update={"withdrawal_notice": False}))
    assert store.withdrawals() == {("c1", "north"), ("c2", "north")}
    assert [row.event for row in store.journal()].count("release.withdrawal") == 2


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_foundation(tmp_path_factory.mktemp("foundation") / "tiny")


def test_a_withdrawal_stops_the_worker_in_the_middle_of_a_phase(tmp_path: Path, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient withdraws while the worker adapts: the phase ends, the job keeps its code, and nothing is left to approve. Only once
    the worker has let go of the job can what never ran, its audit, be given back.
    """
    node = lay_out(tmp_path, steps=12)
    take_in(cohort(node), [f"m{i}" for i in range(30)], role="member", images=1)
    take_in(cohort(node), ["h0", "h1"], role="holdout", images=1)
    jobs = accepted(node, foundation)
    quick_plan(node, steps=12, rate=0.25, noise=2.5)
    worker = Worker(node)
    worker.step()

    def act() -> None:
        withdraw(node, key(node, "m0"))
        with pytest.raises(StateError, match="a worker is at this job"):
            settle(node, jobs, ledger(node), "c1")

    monkeypatch.setattr("busgen_client.worker.run", _withdrawing(act))
    assert worker.step()
    row = jobs.need("c1")
    assert (row.state, row.code) == ("failed", "consent-withdrawn")
    assert not worker.step()
    kinds = [(e.kind, e.account) for e in ledger(node).entries()]
    assert ("commit", "members") not in kinds
    assert run(tmp_path, "ledger", "settle", "c1") == 0
    assert {e.mechanism: e.count for e in ledger(node).charged("members")} == {"dp-sgd": 12}


def _withdrawing(act: Callable[[], object]) -> Callable[..., None]:
    """The plan's mechanisms, in whose middle a patient withdraws."""

    def adapting(*arguments: object, progress: Callable[[int, int], None], **more: object) -> None:
        def report(done: int, total: int) -> None:
            if done == 6:
                act()
            progress(done, total)

        run_mechanisms(*arguments, progress=report, **more)  # type: ignore[arg-type]

    return adapting
