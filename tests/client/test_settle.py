"""Settling: what an ended job provably never ran is given back, and nothing else; a settled job never runs again."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from sqlalchemy.orm import Session

from busgen_client.cli import main as node_command
from busgen_client.jobs import JobRow, JobStore
from busgen_client.protocol import job_folder
from busgen_client.settings import NodeSettings, load_settings
from busgen_client.settle import ADAPT, CLOSED, LOCK, WORK, Ran, Work, settle, what_ran, what_stays
from busgen_client.worker import Worker
from busgen_core.digests import sha256_file
from busgen_core.errors import LedgerError, StateError
from busgen_core.wire import JobState
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.dp.adaptation import run as run_mechanisms
from busgen_privacy.dp.checkpoints import ADAPTED, STATE
from busgen_privacy.ledger import Ledger, LedgerEvent
from tests.client.node import accepted, cohort, lay_out, quick_plan, take_in
from tests.journeys.world import tiny_foundation

STEPS, RATE, SIGMA = 25, 0.25, 2.5
DELTA = 1e-5
PROOF = "e" * 64


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_foundation(tmp_path_factory.mktemp("foundation") / "tiny")


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    return lay_out(tmp_path, steps=STEPS)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder with as many patients as the policy asks for."""
    folder = tmp_path_factory.mktemp("patients")
    settings = lay_out(folder, steps=STEPS)
    take_in(cohort(settings), [f"m{i}" for i in range(30)], role="member", images=1)
    take_in(cohort(settings), ["h0", "h1"], role="holdout", images=1)
    return folder


@pytest.fixture
def full(patients: Path, tmp_path: Path) -> NodeSettings:
    """A node of its own for each test, with patients, and a plan for campaign c1 that needed no search."""
    shutil.copytree(patients, tmp_path, dirs_exist_ok=True)
    settings = load_settings(tmp_path / "node.toml")
    quick_plan(settings, steps=STEPS, rate=RATE, noise=SIGMA)
    return settings


def ledger_of(settings: NodeSettings) -> Ledger:
    return Ledger(settings.data / "ledger.jsonl", site="north")


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next adaptation is killed when this step is done."""

    def killed(*arguments: object, progress: Callable[[int, int], None], **more: object) -> None:
        def report(done: int, total: int) -> None:
            if done == step:
                raise Killed
            progress(done, total)

        run_mechanisms(*arguments, progress=report, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("busgen_client.worker.run", killed)


def killed_job(full: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch, *, step: int) -> JobStore:
    """A job whose worker was killed at a step, and that the steward then gave up."""
    jobs = accepted(full, foundation)
    worker = Worker(full)
    assert worker.step()
    kill_at(monkeypatch, step)
    with pytest.raises(Killed):
        worker.step()
    jobs.move("c1", JobState.FAILED, code="steward-abandoned")
    return jobs


def counts(settings: NodeSettings, account: str) -> dict[str, int]:
    return {event.mechanism: event.count for event in ledger_of(settings).charged(account)}


def test_a_killed_adaptation_is_charged_to_its_last_checkpoint_and_what_may_have_followed(
    full: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 13 of 25, the checkpoint of step 10 proves that at most 20 ran; the audit never began. The job is closed for good."""
    jobs = killed_job(full, foundation, monkeypatch, step=13)
    ledger, folder = ledger_of(full), job_folder(full.data, "c1")
    assert counts(full, "members") == {"dp-sgd": STEPS, "audit figures": 1}
    before, proof = ledger.spent("members", DELTA), sha256_file(folder / ADAPT / STATE)
    settle(full, jobs, ledger, "c1")
    assert (counts(full, "members"), counts(full, "holdout")) == ({"dp-sgd": 20}, {})
    assert ledger.spent("members", DELTA) == epsilon_of([GaussianEvent(SIGMA, RATE, 20)], delta=DELTA).epsilon < before
    assert {e.evidence for e in ledger.entries() if e.kind == "settle"} == {proof}
    assert not (folder / ADAPT / STATE).exists()
    settle(full, jobs, ledger, "c1")  # again: the same, and no other entry
    assert [e.kind for e in ledger.entries()] == ["reserve", "reserve", "settle", "settle"]


def test_a_settled_job_never_runs_on(full: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the store put back to before the end, the worker refuses by the marker; with the whole folder put back too, by the ledger."""
    jobs = killed_job(full, foundation, monkeypatch, step=13)
    folder = job_folder(full.data, "c1")
    shutil.copytree(folder, folder.with_name("backup"))
    settle(full, jobs, ledger_of(full), "c1")
    monkeypatch.setattr("busgen_client.worker.run", lambda *_, **__: pytest.fail("it ran on"))
    for code in ("wrong-state", "ledger-invalid"):
        for state in (JobState.ADAPTING, JobState.ACCEPTED):
            put_back(jobs, state)
            Worker(full).step()
            assert jobs.need("c1").state == JobState.FAILED
            assert jobs.need("c1").code == (code if state is JobState.ADAPTING else "ledger-invalid")
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name("backup"), folder)
    assert counts(full, "members") == {"dp-sgd": 20}


def put_back(jobs: JobStore, state: JobState) -> None:
    """What a store restored from a backup looks like."""
    with Session(jobs._engine) as session:
        row = session.get(JobRow, "c1")
        assert row is not None
        row.state, row.code = state.value, ""
        session.commit()


def test_a_refusal_before_anything_ran_is_given_back_whole(full: NodeSettings, foundation: Path) -> None:
    """The holdout's cap refuses after the members' reservation was written: nothing began, so nothing stays charged."""
    ledger = ledger_of(full)
    ledger.reserve(account="holdout", reference="earlier", events=[("score", GaussianEvent(0.3448, 1.0, 1))], cap_epsilon=99, delta=DELTA)
    assert 15.9 < ledger.spent("holdout", DELTA) < 16
    jobs = accepted(full, foundation)
    Worker(full).step()
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("refused", "budget-exceeded")
    assert ledger.spent("members", DELTA) > 1
    assert settle(full, jobs, ledger, "c1") == {"members": ()}
    assert ledger.spent("members", DELTA) == 0
    assert 15.9 < ledger.spent("holdout", DELTA) < 16


def test_a_finished_adaptation_stays_spent(full: NodeSettings, foundation: Path) -> None:
    """Whatever becomes of a job after its adaptation, nothing is given back, and the job is not closed."""
    jobs, ledger = accepted(full, foundation), ledger_of(full)
    for _ in range(2):
        Worker(full).step()
    assert jobs.need("c1").state == JobState.GENERATING
    jobs.move("c1", JobState.FAILED, code="worker-crash")
    before = ledger.entries()
    with pytest.raises(StateError, match="everything stays spent"):
        settle(full, jobs, ledger, "c1")
    assert ledger.entries() == before
    assert not (job_folder(full.data, "c1") / CLOSED).exists()
    assert (job_folder(full.data, "c1") / ADAPT / ADAPTED).exists()


def test_a_commit_keeps_everything_spent(node: NodeSettings) -> None:
    """An adaptation that was committed is finished, whatever its files look like now: no account is given anything back."""
    ledger, jobs, folder = by_hand(node, step=10)
    ledger.commit("members", "c1")
    with pytest.raises(StateError, match="everything stays spent"):
        settle(node, jobs, ledger, "c1")
    assert (folder / ADAPT / STATE).exists()


def test_only_an_ended_job_that_nobody_is_at_is_settled(full: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job at work, and one that a worker still holds, are left alone by name."""
    jobs = accepted(full, foundation)
    Worker(full).step()
    with pytest.raises(StateError, match="is adapting"):
        settle(full, jobs, ledger_of(full), "c1")
    jobs.move("c1", JobState.FAILED)
    with (job_folder(full.data, "c1") / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="a worker is at this job"):
            settle(full, jobs, ledger_of(full), "c1")
    assert settle(full, jobs, ledger_of(full), "c1") == {"members": (), "holdout": ()}


CRASHES = ("busgen_client.settle.write_whole", "pathlib.Path.unlink", "first entry", "second entry")


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_while_settling_is_finished_by_the_same_command(
    node: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """Wherever it dies, no entry is there while the job could still run on, and the repetition ends where an undisturbed one does."""
    ledger, jobs, folder = by_hand(node, step=10)
    with monkeypatch.context() as patch:
        if crash.endswith("entry"):
            real, calls = Ledger.settle, []

            def dies(self: Ledger, account: str, *rest: object, **more: object) -> str:
                calls.append(account)
                if len(calls) == (1 if crash.startswith("first") else 2):
                    raise Killed
                return real(self, account, *rest, **more)  # type: ignore[arg-type]

            patch.setattr(Ledger, "settle", dies)
        else:
            patch.setattr(crash, lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            settle(node, jobs, ledger, "c1")
    could_run_on = (folder / ADAPT / STATE).exists() and not (folder / CLOSED).exists()
    assert not could_run_on or all(e.kind != "settle" for e in ledger.entries())
    settle(node, jobs, ledger, "c1")
    assert (counts(node, "members"), counts(node, "holdout")) == ({"dp-sgd": 20, "vote": 1}, {})


def state_file(*, step: object = 10, sizes: int | None = None, run: str = "a" * 64) -> bytes:
    watchdog = json.dumps({"sizes": [3] * (int(str(step)) if sizes is None else sizes)})
    return save({"x": torch.zeros(1)}, {"run": run, "step": str(step), "watchdog": watchdog})


def by_hand(node: NodeSettings, *, step: int) -> tuple[Ledger, JobStore, Path]:
    """A failed job with a checkpoint, without the work."""
    from tests.client.node import job_in

    jobs, ledger, folder = job_in(node, "c1", JobState.ADAPTING), ledger_of(node), job_folder(node.data, "c1")
    jobs.move("c1", JobState.FAILED)
    figures = ("audit figures", GaussianEvent(4.0, 1.0, 1))
    events = [("vote", GaussianEvent(20.0, 1.0, 1)), ("dp-sgd", GaussianEvent(7.0, 0.25, STEPS)), figures]
    ledger.reserve(account="members", reference="c1", events=events, cap_epsilon=99, delta=DELTA)
    ledger.reserve(account="holdout", reference="c1", events=[figures], cap_epsilon=99, delta=DELTA)
    (folder / ADAPT).mkdir()
    (folder / WORK).write_text(Work(adaptation=True).model_dump_json())
    (folder / ADAPT / STATE).write_bytes(state_file(step=step))
    return ledger, jobs, folder


BEGUN, NOT_BEGUN = Work(adaptation=True).model_dump_json().encode(), Work().model_dump_json().encode()
ALL = (None, True, True)
EVIDENCE: dict[str, tuple[dict[str, bytes], tuple[int | None, bool, bool]]] = {
    "checkpoint of step 10": ({WORK: BEGUN, STATE: state_file()}, (20, True, False)),
    "checkpoint of step 90": ({WORK: BEGUN, STATE: state_file(step=90)}, (100, True, False)),
    "begun, no checkpoint": ({WORK: BEGUN}, (None, True, False)),
    "never begun": ({WORK: NOT_BEGUN}, (None, False, False)),
    "never begun, and yet a checkpoint": ({WORK: NOT_BEGUN, STATE: state_file()}, ALL),
    "no record": ({STATE: state_file()}, ALL),
    "no record, no checkpoint": ({}, ALL),
    "record damaged": ({WORK: b"{", STATE: state_file()}, ALL),
    "record of another form": ({WORK: b'{"adaptation": 0, "audit": 0}', STATE: state_file()}, ALL),
    "audit begun": ({WORK: Work(adaptation=True, audit=True).model_dump_json().encode(), STATE: state_file()}, ALL),
    "adaptation finished": ({WORK: BEGUN, STATE: state_file(), ADAPTED: b""}, ALL),
    "checkpoint torn": ({WORK: BEGUN, STATE: state_file()[:-3]}, (None, True, False)),
    "checkpoint empty": ({WORK: BEGUN, STATE: b""}, (None, True, False)),
    "checkpoint of no step": ({WORK: BEGUN, STATE: state_file(step=0)}, (None, True, False)),
    "checkpoint below nought": ({WORK: BEGUN, STATE: state_file(step=-10, sizes=10)}, (None, True, False)),
    "checkpoint between two": ({WORK: BEGUN, STATE: state_file(step=7)}, (None, True, False)),
    "step edited": ({WORK: BEGUN, STATE: state_file(step=10, sizes=90)}, (None, True, False)),
    "step is no number": ({WORK: BEGUN, STATE: state_file(step="x", sizes=10)}, (None, True, False)),
    "of no run": ({WORK: BEGUN, STATE: state_file(run="")}, (None, True, False)),
}


@pytest.mark.parametrize(("files", "ran"), EVIDENCE.values(), ids=EVIDENCE)
def test_in_doubt_everything_ran(tmp_path: Path, files: dict[str, bytes], ran: tuple[int | None, bool, bool]) -> None:
    """Only a whole record and a whole checkpoint lower anything; what is missing, damaged or contradictory lowers nothing."""
    (tmp_path / ADAPT).mkdir()
    for name, content in files.items():
        (tmp_path / name if name == WORK else tmp_path / ADAPT / name).write_bytes(content)
    found = what_ran(tmp_path)
    assert (found.steps, found.adaptation, found.audit) == ran


def event(mechanism: str, count: int = 1) -> LedgerEvent:
    return LedgerEvent(mechanism=mechanism, noise_multiplier=7.0, sample_rate=0.25, count=count)


STAYS = {
    "partly": (Ran(20, True, False, PROOF), [event("vote"), event("dp-sgd", 20), event("other"), event("score")]),
    "more than planned": (Ran(300, True, False, PROOF), [event("vote"), event("dp-sgd", 100), event("other"), event("score")]),
    "unknown steps": (Ran(None, True, False, PROOF), [event("vote"), event("dp-sgd", 100), event("other"), event("score")]),
    "nothing began": (Ran(None, False, False, PROOF), [event("other"), event("score")]),
    "all": (Ran(None, True, True, PROOF), [event("vote"), event("dp-sgd", 100), event("audit figures"), event("other"), event("score")]),
}


@pytest.mark.parametrize(("ran", "stays"), STAYS.values(), ids=STAYS)
def test_what_a_phase_is_not_known_to_run_stays_charged(ran: Ran, stays: list[LedgerEvent]) -> None:
    """DP-SGD is cut to its steps, the audit goes if it never began; unknown mechanisms and scores always stay."""
    reserved = [event("vote"), event("dp-sgd", 100), event("audit figures"), event("other"), event("score")]
    assert list(what_stays(reserved, ran)) == stays


def test_two_runs_of_dp_sgd_in_one_reservation_stay(tmp_path: Path) -> None:
    """One checkpoint cannot tell of two runs, so neither is lowered."""
    reserved = [event("dp-sgd", 100), event("dp-sgd", 50)]
    assert list(what_stays(reserved, Ran(20, True, False, PROOF))) == reserved


def test_the_commands_say_what_stays_charged(node: NodeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ledger settle`` and ``ledger show`` print mechanisms, both accountants and what is left; a second campaign is named as unknown."""
    by_hand(node, step=10)
    assert run(tmp_path, "ledger", "settle", "c1") == 0
    assert "members: c1 is now charged for vote x 1, dp-sgd x 20" in capsys.readouterr().out
    assert run(tmp_path, "ledger", "show", "--json") == 0
    members, holdout = json.loads(capsys.readouterr().out)
    twin = epsilon_of([GaussianEvent(20.0, 1.0, 1), GaussianEvent(7.0, 0.25, 20)], delta=DELTA)
    assert members["mechanisms"] == {"vote": 1, "dp-sgd": 20}
    assert (members["PLD"], members["PRV"], members["epsilon"]) == tuple(round(v, 4) for v in (twin.pld, twin.prv, twin.epsilon))
    assert (members["entries"], members["left"]) == (2, round(16 - twin.epsilon, 4))
    assert (holdout["entries"], holdout["epsilon"], holdout["left"]) == (2, 0, 16)
    assert run(tmp_path, "ledger", "show") == 0
    assert run(tmp_path, "ledger", "verify") == 0
    assert "wrong-state" in str(run(tmp_path, "ledger", "settle", "c2"))


def test_a_job_is_abandoned_once_and_only_while_it_runs(full: NodeSettings, tmp_path: Path, foundation: Path) -> None:
    """``jobs abandon`` ends an accepted job by name; one that is over is left as it is."""
    jobs = accepted(full, foundation)
    assert run(tmp_path, "jobs", "abandon", "c1") == 0
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("failed", "steward-abandoned")
    assert "wrong-state" in str(run(tmp_path, "jobs", "abandon", "c1"))


def run(folder: Path, *arguments: str) -> str | int | None:
    """Run a command of the node in this process; what sys.exit was given (text means status 1)."""
    sys.argv = ["busgen-node", *arguments, "--config", str(folder / "node.toml")]
    with pytest.raises(SystemExit) as ended:
        node_command()
    return ended.value.code


def test_an_unreserved_job_does_not_begin(full: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose reservation is not in the ledger (another ledger was put there) fails by name before anything private."""
    jobs = accepted(full, foundation)
    Worker(full).step()
    for file in full.data.glob("ledger.jsonl*"):
        file.unlink()
    monkeypatch.setattr("busgen_client.worker.run", lambda *_, **__: pytest.fail("it ran"))
    Worker(full).step()
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("failed", LedgerError.code)
