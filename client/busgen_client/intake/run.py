"""The loop that all ways in share: one object at a time, admitted or quarantined, never both and never neither."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from busgen_client.admission import Admission, NewImage
from busgen_client.cohort import CohortStore
from busgen_client.held import DELETED, RELEASED, Held, HeldStore
from busgen_client.intake.findings import ALL_READ, BY_EYE, BY_LABEL, REASONS, Code, IntakeResult, QuarantineError, Unread


def _nothing(_code: Code | None) -> None:
    pass


def _no_picture() -> None:
    pass


def _no_doubt() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One object from outside.

    Attributes:
        key: Keyed digest under which it would be quarantined.
        read: Returns its clean images; or how many it gave, where it is known to be in the cohort already; or None for an object that is no
            business of this cohort, or was deleted by a person. Raises ``QuarantineError``.
        show: Returns what a person is shown of an object that waits. Raises whatever it likes where there is nothing to show.
        check: Looks whether an object that a person released is still the same patient's. Raises ``QuarantineError``.
        place: Where a row of a table stands, as a keyed digest: what waited for the row before its picture was corrected waits no more.
        done: Told once what became of it is on the disk: the code under which it waits, or None.
        object_key: Of a DICOM object that came over the network, as ``QuarantineRow`` has it.
    """

    key: str
    read: Callable[[], Sequence[NewImage] | int | None]
    show: Callable[[], Held | None] = _no_picture
    check: Callable[[], None] = _no_doubt
    place: str = ""
    done: Callable[[Code | None], None] = _nothing
    object_key: str = ""


@dataclass(slots=True)
class _Tally:
    """What became of the sources so far."""

    seen: Counter[Admission]
    held: Counter[str]
    skipped: int = 0

    def result(self) -> IntakeResult:
        return IntakeResult(
            self.seen[Admission.ADDED], self.seen[Admission.DUPLICATE], self.skipped, self.held.total(), dict(sorted(self.held.items()))
        )


def take_in(
    store: CohortStore, sources: Iterable[Source], *, total: int | None, event: str, progress: bool, unread: Unread = ALL_READ
) -> IntakeResult:
    """Take all sources in, count what became of them, and note the counts in the journal, those of reports that could not be read too.

    The cohort is held from the first source to the last, so sources that are fetched one by one keep a second intake out all the while.

    Raises:
        StateError: another intake is running.
        UnavailableError: the store or the data folder failed; what was admitted before stays.
    """
    tally, waiting = _Tally(Counter(), Counter()), HeldStore(store)
    with store.intake():
        for source in tqdm(sources, total=total, desc="intake", unit="object", disable=not progress):
            code = None
            try:
                _admit(store, waiting, source, tally)
            except QuarantineError as refused:
                code = refused.finding
                tally.held[code.value] += 1
                store.quarantine(source.key, code=code.value, reason=REASONS[code], object_key=source.object_key)
                if code in BY_EYE | BY_LABEL and (held := _shown(source)) is not None:
                    waiting.put(source.key, held)
            if source.place:
                waiting.follow(source.place, source.key if code else "")
            source.done(code)
        result = replace(tally.result(), unread=unread)
        detail = {"added": result.added, "duplicates": result.duplicates, "skipped": result.skipped, "quarantined": result.codes}
        store.note(event, detail | ({"reports_unread": unread.reports, "reports_unplaced": unread.unplaced} if unread.reports else {}))
    return result


def _shown(source: Source) -> Held | None:
    try:
        return source.show()
    except Exception:  # a picture is a help to people and no condition; a parser of untrusted bytes raises whatever it likes
        return None


def _admit(store: CohortStore, waiting: HeldStore, source: Source, tally: _Tally) -> None:
    if (verdict := waiting.decided(source.key)) == DELETED:
        tally.skipped += 1
        return
    if verdict == RELEASED:
        source.check()
        tally.seen[Admission.DUPLICATE] += 1
        return
    images = source.read()
    if images is None or isinstance(images, int):
        _waits_no_more(store, waiting, source.key)
        tally.skipped += images is None
        tally.seen[Admission.DUPLICATE] += images or 0
        return
    outcomes = store.add_all(images, clears=source.key)
    tally.seen.update(outcomes)
    if Admission.ROLE_CONFLICT in outcomes:
        raise QuarantineError(Code.ROLE_CONFLICT)
    if Admission.PATIENT_CONFLICT in outcomes:
        raise QuarantineError(Code.PATIENT_UNSURE)
    if Admission.WITHDRAWN in outcomes:
        raise QuarantineError(Code.CONSENT_WITHDRAWN)
    waiting.drop(source.key)


def _waits_no_more(store: CohortStore, waiting: HeldStore, key: str) -> None:
    store.lift(key)
    waiting.drop(key)


def combined(results: Iterable[IntakeResult]) -> IntakeResult:
    """The counts of several runs as those of one.

    >>> combined([IntakeResult(added=1), IntakeResult(added=2, quarantined=1, codes={"colour": 1})])
    IntakeResult(added=3, duplicates=0, skipped=0, quarantined=1, codes={'colour': 1}, unread=Unread(reports=0, unplaced=0))
    """
    every = list(results)
    codes = sum((Counter(result.codes) for result in every), Counter[str]())
    added, duplicates = sum(result.added for result in every), sum(result.duplicates for result in every)
    skipped, unread = sum(result.skipped for result in every), max((result.unread for result in every), default=ALL_READ)
    return IntakeResult(added, duplicates, skipped, codes.total(), dict(sorted(codes.items())), unread)
