"""The loop that both intakes share: one object at a time, admitted or quarantined, never both and never neither."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from busgen_client.cohort import Admission, CohortStore, NewImage
from busgen_client.intake.findings import REASONS, Code, IntakeResult, QuarantineError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One object from outside.

    Attributes:
        key: Keyed digest under which it would be quarantined.
        read: Returns its clean images, or None for an object that is no business of this cohort; raises ``QuarantineError``.
    """

    key: str
    read: Callable[[], Sequence[NewImage] | None]


def take_in(store: CohortStore, sources: Iterable[Source], *, total: int, event: str, progress: bool) -> IntakeResult:
    """Take all sources in, count what became of them, and note the counts in the journal.

    Raises:
        StateError: another intake is running.
        UnavailableError: the store or the data folder failed; what was admitted before stays.
    """
    seen: Counter[Admission] = Counter()
    held: Counter[str] = Counter()
    skipped = 0
    with store.intake():
        for source in tqdm(sources, total=total, desc="intake", unit="file", disable=not progress):
            try:
                images = source.read()
                if images is None:
                    skipped += 1
                    continue
                outcomes = [store.add(image, clears=source.key) for image in images]
                seen.update(outcomes)
                if Admission.ROLE_CONFLICT in outcomes:
                    raise QuarantineError(Code.ROLE_CONFLICT)
                if Admission.WITHDRAWN in outcomes:
                    raise QuarantineError(Code.CONSENT_WITHDRAWN)
            except QuarantineError as refused:
                held[refused.finding.value] += 1
                store.quarantine(source.key, code=refused.finding.value, reason=REASONS[refused.finding])
        result = IntakeResult(seen[Admission.ADDED], seen[Admission.DUPLICATE], skipped, held.total(), dict(sorted(held.items())))
        detail = {"added": result.added, "duplicates": result.duplicates, "skipped": skipped, "quarantined": result.codes}
        store.note(event, detail)
    return result
