"""What the spool keeps, deletes, and has fetched again: nothing is deleted for want of time, and nothing that was refused is fetched twice."""

import io
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless

from busgen_client.cohort import CohortStore
from busgen_client.consent import withdraw
from busgen_client.intake import decode, decoder, run, spool
from busgen_client.intake.decoder import Decoder, DecoderTimeError
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.labels import read_labels
from busgen_client.intake.pull import pull
from busgen_client.intake.query import Query, Series
from busgen_client.intake.run import take_in
from busgen_client.intake.spool import TRIES, Spool
from busgen_client.quarantine import Quarantine
from busgen_client.settings import NodeSettings
from tests.client.node import cohort
from tests.client.test_intake_decoder import SPECKLE, described, jpeg2000
from tests.client.waiting import study_of_unknown_device

pytestmark = pytest.mark.usefixtures("unread")


@pytest.fixture
def store(node: NodeSettings) -> CohortStore:
    return cohort(node)


@pytest.fixture
def waiting(node: NodeSettings, store: CohortStore) -> Iterator[Spool]:
    ours = Spool(store, node.data)
    with ours.receiving():
        yield ours


def put(waiting: Spool, header: Dataset) -> None:
    out = io.BytesIO()
    header.save_as(out)
    waiting.put(out.getvalue(), header.SOPInstanceUID)


def drain(store: CohortStore, waiting: Spool, labels: Path, *, held: bool = False) -> IntakeResult:
    return take_in(store, waiting.sources(read_labels(labels), held=held), total=None, event="test", progress=False)


def compressed(header: Dataset) -> Dataset:
    other = deepcopy(header)
    other.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return other


def test_what_was_not_decoded_in_time_is_kept_and_tried_again(
    store: CohortStore, waiting: Spool, study: Path, objects: Sequence[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that was too slow once, an object stays where it was, is passed over for a while, and is taken in later."""
    put(waiting, compressed(objects[0]))
    with monkeypatch.context() as slow:
        slow.setattr(decode, "SECONDS", 0.0)
        assert drain(store, waiting, study / "labels.csv").codes == {"pixels-slow": 1}
    assert len(waiting.waiting()) == 1
    assert waiting.due() == []
    assert drain(store, waiting, study / "labels.csv") == IntakeResult()
    after = Spool(store, store.data)  # of another process
    assert drain(store, after, study / "labels.csv") == IntakeResult(added=1)
    assert after.waiting() == []
    assert Quarantine(store).items() == []


def test_what_is_never_decoded_in_time_is_not_tried_for_ever(
    store: CohortStore, waiting: Spool, study: Path, objects: Sequence[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many looks as promised, whatever process they are of, the file is held for a person, who can have it tried once more."""
    monkeypatch.setattr(spool, "AGAIN_SECONDS", 0.0)
    put(waiting, compressed(objects[0]))
    with monkeypatch.context() as slow:
        slow.setattr(decode, "SECONDS", 0.0)
        looks = [drain(store, Spool(store, store.data), study / "labels.csv").quarantined for _ in range(TRIES + 2)]
        assert looks == [1] * TRIES + [0, 0]
        assert waiting.waiting() == []
        assert drain(store, waiting, study / "labels.csv", held=True).codes == {"pixels-slow": 1}
    assert len(waiting.waiting(held=True)) == 1
    assert drain(store, waiting, study / "labels.csv", held=True) == IntakeResult(added=1)
    assert waiting.waiting(held=True) == []


def test_what_can_be_looked_at_is_kept_until_its_picture_is(
    store: CohortStore, waiting: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that a person decides on by its picture is deleted once the picture is there, and held as it came where none could be made."""
    study_of_unknown_device(tmp_path / "study")
    put(waiting, dcmread(sorted((tmp_path / "study").glob("IM*"))[0]))
    with monkeypatch.context() as failing:
        failing.setattr(run, "_shown", lambda _source: None)
        assert drain(store, waiting, tmp_path / "study" / "labels.csv").codes == {"device-unknown": 1}
    assert len(waiting.waiting(held=True)) == 1
    assert drain(store, waiting, tmp_path / "study" / "labels.csv", held=True).codes == {"device-unknown": 1}
    assert waiting.waiting(held=True) == []
    assert Quarantine(store).items()[0].releasable


def child_that_does_not_start(_decoder: Decoder, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(decoder.sys, "executable", "/bin/false")


def child_that_the_kernel_ended(ours: Decoder, _patched: pytest.MonkeyPatch) -> None:
    ours.decoded(described(SPECKLE, "1.2.840.10008.1.2.4.90"), jpeg2000(SPECKLE), seconds=20)
    assert ours._process is not None
    ours._process.kill()
    ours._process.wait()


@pytest.mark.parametrize("trouble", [child_that_does_not_start, child_that_the_kernel_ended])
def test_what_is_not_the_frame_s_doing_is_told_apart(trouble: Callable[[Decoder, pytest.MonkeyPatch], None]) -> None:
    """A decoder that cannot be started, or was ended from outside, says nothing of the frame; the next one decodes it."""
    ours = Decoder()
    try:
        with pytest.MonkeyPatch.context() as patched:
            trouble(ours, patched)
            with pytest.raises(DecoderTimeError):
                ours.decoded(described(SPECKLE, "1.2.840.10008.1.2.4.90"), jpeg2000(SPECKLE), seconds=20)
        assert (ours.decoded(described(SPECKLE, "1.2.840.10008.1.2.4.90"), jpeg2000(SPECKLE), seconds=20) == SPECKLE).all()
    finally:
        ours.close()


class Shelf:
    """An archive in memory, and what was fetched from it."""

    def __init__(self, objects: Sequence[Dataset]) -> None:
        self.objects, self.fetched = {str(each.SOPInstanceUID): each for each in objects}, list[str]()

    def find(self, _query: Query) -> Iterator[Series]:
        yield from self.series

    @property
    def series(self) -> list[Series]:
        return [Series("study", "series", tuple(self.objects))]

    def fetch(self, _series: Series, wanted: Sequence[str], spool: Spool) -> None:
        self.fetched += wanted
        for uid in wanted:
            put(spool, self.objects[uid])


def test_what_was_refused_is_fetched_once(store: CohortStore, waiting: Spool, study: Path, objects: Sequence[Dataset]) -> None:
    """An object of which neither file nor picture is kept is not fetched at the next pull, nor the one after."""
    lying = deepcopy(objects[0])
    lying.PixelData = lying.PixelData[:1000]
    there = Shelf([lying])
    for expected in ({"pixels-lie": 1}, {}, {}):
        assert pull(store, Spool(store, store.data), there, there.series, study / "labels.csv", progress=False).codes == expected
    assert len(there.fetched) == 1
    people = Quarantine(store)
    people.delete(people.items()[0].name, who="a person")
    there.objects[lying.SOPInstanceUID] = objects[0]  # mended in the archive
    assert pull(store, waiting, there, there.series, study / "labels.csv", progress=False).added == 1


def test_an_object_of_a_withdrawn_patient_is_refused_once(
    node: NodeSettings, store: CohortStore, waiting: Spool, study: Path, objects: Sequence[Dataset]
) -> None:
    """After a withdrawal the archive still lists the object: it is fetched once more, refused, and then left where it is."""
    there = Shelf([objects[0]])
    assert pull(store, waiting, there, there.series, study / "labels.csv", progress=False).added == 1
    withdraw(node, store.pseudonyms.patient_key(objects[0].PatientID, issuer=objects[0].IssuerOfPatientID), known=False)
    for expected in ({"consent-withdrawn": 1}, {}, {}):
        assert pull(store, waiting, there, there.series, study / "labels.csv", progress=False).codes == expected
    assert len(there.fetched) == 2
    assert not any(path.is_file() for path in (node.data / "spool").rglob("*"))
