"""Pulling from an archive: find, fetch what is not here, take in; killed anywhere, the same command goes on from there.

Guarantees: each object that the archive lists is in the cohort, in quarantine or counted as missing at the end; an object that is here is
not fetched again, nor one that was fetched before and is in quarantine, with or without its file.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from busgen_client.cohort import CohortStore
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.labels import Labels, read_labels
from busgen_client.intake.query import Archive, Query, Series
from busgen_client.intake.run import Source, take_in
from busgen_client.intake.spool import Spool
from busgen_core.errors import UnavailableError

log = logging.getLogger("busgen.pull")

ATTEMPTS = 4  # for the objects of one series
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further one


def found(archive: Archive, query: Query, *, progress: bool) -> list[Series]:
    """All series that match.

    Raises:
        UnavailableError: the archive cannot be reached, or refuses.
    """
    return list(tqdm(archive.find(query), desc="find", unit="series", disable=not progress))


def pull(store: CohortStore, spool: Spool, archive: Archive, series: Sequence[Series], labels: Path | None, *, progress: bool) -> IntakeResult:
    """Fetch and take in all objects of ``series``.

    Raises:
        TableError: the label file cannot be used; nothing was fetched.
        StateError: another intake is running.
        UnavailableError: objects are missing after several attempts, or the node's store failed; what came before stays.
    """
    missing: list[int] = []
    known = read_labels(labels, store.mapping)
    sources, total = _sources(store, spool, archive, series, known, missing), sum(len(each.objects) for each in series)
    result = take_in(store, sources, total=total, event="intake.pull", progress=progress, unread=known.unread)
    if sum(missing):
        raise UnavailableError(
            f"{result.added} images were added, {sum(missing)} objects did not arrive; run the same command again, it goes on from here"
        )
    return result


def _sources(store: CohortStore, spool: Spool, archive: Archive, series: Sequence[Series], labels: Labels, missing: list[int]) -> Iterator[Source]:
    """Objects as they come, series by series; after an archive that is gone, only what is here already."""
    gone = False
    for each in series:
        taken = {uid: row.images for uid in each.objects if (row := store.taken(store.pseudonyms.object_key(uid)))}
        for images in taken.values():
            yield Source(key="", read=partial(int, images))
        wanted = spool.absent(uid for uid in each.objects if uid not in taken)
        if wanted and not gone:
            gone = not _fetched(archive, each, wanted, spool)
        missing.append(len(spool.absent(wanted)))
        yield from spool.sources(labels, only=each.objects)


def _fetched(archive: Archive, series: Series, wanted: Sequence[str], spool: Spool) -> bool:
    """Fetch with patience; False if the archive did not answer to the last."""
    answered = True
    for attempt in range(ATTEMPTS):
        left = spool.absent(wanted)
        if not left:
            return True
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0.0)
        try:
            archive.fetch(series, left, spool)
            answered = True
        except UnavailableError as error:
            log.warning("pull.attempt_failed attempt=%d left=%d code=%s", attempt + 1, len(left), error.code)
            answered = False
    return answered
