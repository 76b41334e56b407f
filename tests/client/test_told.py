"""What the hub is told of a job that will not release."""

from pathlib import Path

import pytest

from busgen_client.database import open_store
from busgen_client.jobs import JobStore, status_of
from busgen_client.release import lay_out_again
from busgen_core.wire import JobState
from tests.client.node import campaign, lay_out

ENDS = {
    "waiting for the officer": (JobState.REVIEW, ""),
    "refused by the gate": (JobState.REFUSED, "gate-refused"),
    "refused by the officer": (JobState.REFUSED, "officer-refused"),
    "crashed": (JobState.FAILED, "worker-crash"),
    "stopped by the watchdog": (JobState.FAILED, "privacy-invariant"),
    "consent withdrawn": (JobState.FAILED, "consent-withdrawn"),
}


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    """A store with one offer."""
    store = JobStore(open_store(lay_out(tmp_path).data))
    store.offer(campaign("c1"))
    return store


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_refusal_never_leaves(jobs: JobStore, end: tuple[JobState, str]) -> None:
    """Whatever keeps a job from releasing after its images were read, the hub is told the same, byte for byte; the node keeps the reason."""
    for state in (JobState.ACCEPTED, JobState.ADAPTING, JobState.GENERATING, JobState.AUDITING, JobState.REVIEW):
        jobs.move("c1", state)
    waiting = status_of(jobs.need("c1")).model_dump_json()
    jobs.end("c1", end[0], code=end[1], message="why")
    assert jobs.status("c1").model_dump_json() == waiting
    assert jobs.need("c1").code == end[1]


def test_a_second_look_never_leaves(jobs: JobStore) -> None:
    """A job that the officer sends back to be audited and laid out again looks as if it waited, also while the worker reports progress."""
    for state in (JobState.ACCEPTED, JobState.ADAPTING, JobState.GENERATING, JobState.AUDITING, JobState.REVIEW):
        jobs.move("c1", state)
    waiting = jobs.status("c1").model_dump_json()
    lay_out_again(jobs, "c1")
    assert jobs.status("c1").model_dump_json() == waiting
    jobs.move("c1", JobState.AUDITING, progress=0.3)
    assert (jobs.status("c1").model_dump_json(), jobs.need("c1").progress) == (waiting, 0.3)
    jobs.move("c1", JobState.REVIEW)
    assert jobs.need("c1").code == ""


def test_what_the_ledger_alone_refuses_is_a_decline(jobs: JobStore) -> None:
    """A job that the budget refuses read no image: the hub may know, and waits no longer."""
    jobs.move("c1", JobState.ACCEPTED)
    jobs.end("c1", JobState.REFUSED, code="budget-exceeded", message="why")
    status = jobs.status("c1")
    assert (status.state, status.code, status.state.ended) == (JobState.DECLINED, "budget-exceeded", True)
