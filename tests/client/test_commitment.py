"""Storage commitment says what is true, and its answer arrives or is tried again."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom import AE, build_context, evt
from sqlalchemy import update
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ObjectRow
from busgen_client.intake import commitment
from busgen_client.intake.commitment import ATTEMPTS, Commitments
from busgen_client.intake.entity import COMMITMENT, COMMITMENT_INSTANCE
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.labels import read_labels
from busgen_client.intake.receiver import receiving
from busgen_client.intake.run import take_in
from busgen_client.intake.spool import Spool
from busgen_client.pacs import PacsSettings, PeerSettings
from busgen_client.quarantine import Quarantine
from busgen_client.settings import NodeSettings
from busgen_core.errors import UnavailableError
from tests.client.node import cohort
from tests.client.orthanc import free_port

# The library forgets to close a socket whose peer was quicker; Python closes it when it collects the association, and warns.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.usefixtures("unread", "collected")]

FAILED, UNKNOWN, OTHER_CLASS = 0x0110, 0x0112, 0x0119
CLIP = "1.2.840.10008.5.1.4.1.1.3.1"  # Ultrasound Multi-frame Image Storage


class Node:
    """A node with a spool, a sender, and the reports that the sender was given."""

    def __init__(self, settings: NodeSettings, labels: Path) -> None:
        self.store, self._labels = cohort(settings), labels
        self.spool = Spool(self.store, settings.data)
        peer = PeerSettings(ae_title="SCANNER", host="127.0.0.1", port=free_port())
        self.pacs = PacsSettings(port=free_port(), commitment=True, peers={"scanner": peer})
        self.commitments = Commitments(self.pacs, self.store, self.spool)
        self.reports: list[Dataset] = []
        self.reply: Callable[[evt.Event], int] = lambda _event: 0

    def put(self, header: Dataset) -> None:
        out = io.BytesIO()
        header.save_as(out)
        self.spool.put(out.getvalue(), header.SOPInstanceUID)

    def drain(self) -> IntakeResult:
        return take_in(self.store, self.spool.sources(read_labels(self._labels)), total=None, event="test", progress=False)

    def ask(self, *items: tuple[str, str]) -> None:
        """Ask for commitment to objects, by class and UID."""
        wanted = Dataset()
        wanted.TransactionUID = f"1.2.3.{len(self.reports)}.{len(items)}"
        wanted.ReferencedSOPSequence = [_item(*item) for item in items]
        line = AE("SCANNER").associate("127.0.0.1", self.pacs.port, [build_context(COMMITMENT)], "BUSGEN")
        status, _ = line.send_n_action(wanted, 1, COMMITMENT, COMMITMENT_INSTANCE)
        assert status.Status == 0
        line.release()

    def answers(self, *items: tuple[str, str]) -> list[int]:
        """What the node answers at once to ``ask``: 0 for what it commits to, the reason for what not."""
        self.ask(*items)
        self.commitments.answer()
        report = self.reports[-1]
        failed = {str(each.ReferencedSOPInstanceUID): int(each.FailureReason) for each in report.get("FailedSOPSequence", [])}
        assert len(failed) + len(report.get("ReferencedSOPSequence", [])) == len(items)
        return [failed.get(uid, 0) for _, uid in items]

    def hear(self, event: evt.Event) -> tuple[int, None]:
        self.reports.append(event.event_information)
        return self.reply(event), None


def _item(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


@pytest.fixture
def there(node: NodeSettings, study: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(commitment, "PAUSE_SECONDS", 0.0)
    ours = Node(node, study / "labels.csv")
    with receiving(ours.pacs, node.data, ours.spool, ours.commitments), _listening(ours):
        yield ours


@contextmanager
def _listening(ours: Node) -> Iterator[None]:
    sender = AE("SCANNER")
    sender.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    where = ("127.0.0.1", ours.pacs.peers["scanner"].port)
    server = sender.start_server(where, block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, ours.hear)])
    assert server is not None
    try:
        yield
    finally:
        server.shutdown()


def darker(header: Dataset) -> Dataset:
    """Another object under the same UID."""
    other = deepcopy(header)
    pixels = header.pixel_array.copy()
    pixels[60, 100] ^= 1
    other.PixelData = pixels.tobytes()
    return other


def torn(header: Dataset) -> Dataset:
    """The same object, cut off."""
    other = deepcopy(header)
    other.PixelData = header.PixelData[:1000]
    return other


def named(header: Dataset) -> tuple[str, str]:
    return str(header.SOPClassUID), str(header.SOPInstanceUID)


def test_nothing_is_committed_under_a_uid_that_something_waits_under(
    there: Node, objects: Sequence[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once other pixels came under the UID of a committed object, it is answered as failed: while they wait, and while they are in quarantine;
    after a person deleted them it is committed again."""
    there.put(objects[0])
    assert there.drain().added == 1
    assert there.answers(named(objects[0])) == [0]
    there.put(darker(objects[0]))
    there.ask(named(objects[0]))
    there.commitments.answer()
    assert len(there.reports) == 1  # intake is waited for
    monkeypatch.setattr(commitment, "PATIENCE_SECONDS", -1.0)
    assert there.answers(named(objects[0]), named(objects[1])) == [FAILED, UNKNOWN]
    assert there.drain().codes == {"uid-reused": 1}
    assert there.answers(named(objects[0])) == [FAILED]
    people = Quarantine(there.store)
    people.delete(people.items()[0].name, who="a person")
    assert there.answers(named(objects[0])) == [0]


def test_a_wrong_class_is_a_conflict(there: Node, objects: Sequence[Dataset]) -> None:
    """An object is committed under the class that it came with; one that an earlier version took in, under any that a node takes."""
    there.put(objects[0])
    assert there.drain().added == 1
    sop_class, uid = named(objects[0])
    assert there.answers((sop_class, uid)) == [0]
    assert there.answers((CLIP, uid)) == [OTHER_CLASS]
    with Session(there.store.engine) as session:
        session.execute(update(ObjectRow).values(class_key=None))
        session.commit()
    assert there.answers((CLIP, uid)) == [0]
    assert there.answers(("1.2.840.10008.5.1.4.1.1.2", uid)) == [OTHER_CLASS]


def test_an_object_that_nothing_is_kept_of_is_failed_until_it_comes_whole(there: Node, objects: Sequence[Dataset]) -> None:
    """What was refused, with no file kept, is 0110 and not unknown; sent again whole it is committed, and nothing of it waits."""
    there.put(torn(objects[0]))
    assert there.drain().codes == {"pixels-lie": 1}
    assert there.answers(named(objects[0])) == [FAILED]
    there.put(objects[0])
    assert there.drain().added == 1
    assert there.answers(named(objects[0])) == [0]
    assert Quarantine(there.store).items() == []


def test_what_came_again_with_its_label_waits_no_more(there: Node, objects: Sequence[Dataset]) -> None:
    """The same bytes, held for their label before, are deleted where they were held, so that the object is committed."""
    there.put(objects[0])
    take_in(there.store, there.spool.sources(read_labels(None)), total=None, event="test", progress=False)
    assert there.answers(named(objects[0])) == [FAILED]
    there.put(objects[0])
    assert there.drain().added == 1
    assert there.spool.waiting(held=True) == []
    assert there.answers(named(objects[0])) == [0]


def test_a_store_that_fails_for_a_while_delays_an_answer_and_ends_nothing(
    there: Node, objects: Sequence[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the look at the spool or the store raises is an attempt; the thread goes on, and the answer follows."""
    look = Spool.absent
    for error in (UnavailableError("locked"), RuntimeError("unforeseen")):

        def fail(*_: object, error: Exception = error, **__: object) -> list[str]:
            raise error

        monkeypatch.setattr(Spool, "absent", fail)
        there.ask(named(objects[0]))
        there.commitments.answer()
        assert there.reports == []
        monkeypatch.setattr(Spool, "absent", look)
        there.commitments.answer()
        assert len(there.reports) == 1
        there.reports.clear()


def aborting(event: evt.Event) -> int:
    event.assoc.abort()
    return 0


@pytest.mark.parametrize("reply", [lambda _event: FAILED, aborting], ids=["refuses", "aborts"])
def test_a_report_that_was_not_taken_is_sent_again(there: Node, objects: Sequence[Dataset], reply: Callable[[evt.Event], int]) -> None:
    """A peer that answers with a failure, or breaks off, is told again; as often as promised, and no more."""
    there.reply = reply
    there.ask(named(objects[0]))
    for _ in range(ATTEMPTS + 2):
        there.commitments.answer()
    assert len(there.reports) == ATTEMPTS
    there.ask(named(objects[0]))
    there.commitments.answer()
    there.reply = lambda _event: 0
    for _ in range(2):
        there.commitments.answer()
    assert len(there.reports) == ATTEMPTS + 2


def test_objects_of_a_store_from_before_are_known(node: NodeSettings) -> None:
    """A store without the new columns is given them, with their index, and its rows stay."""
    store = cohort(node)
    store.quarantine("x", code="pixels-lie", reason="")
    with store.engine.begin() as connection:
        for statement in (
            "DROP INDEX ix_quarantine_object_key",
            "ALTER TABLE quarantine DROP COLUMN object_key",
            "ALTER TABLE quarantine DROP COLUMN looks",
        ):
            connection.exec_driver_sql(statement)
    later: CohortStore = cohort(node)
    with later.engine.connect() as connection:
        assert "ix_quarantine_object_key" in {row.name for row in connection.exec_driver_sql("PRAGMA index_list(quarantine)")}
    assert later.looks("x") == 0
    later.quarantine("x", code="pixels-lie", reason="")
    assert later.looks("x") == 1
