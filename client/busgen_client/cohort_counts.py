"""Counts of the cohort as people at the hospital may see them: rounded, small cells not shown. Exact ones stay inside the node."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from busgen_client.cohort_rows import ROLES, ImageRow, QuarantineRow
from busgen_core.labels import Pathology

SMALLEST_CELL = 5  # patients; a cell with fewer is shown as suppressed
ROUNDED_TO = 5  # patients or images; what all other cells and totals are rounded to


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortSummary:
    """Counts for people at the hospital, as ``shown_count`` has them.

    Attributes:
        patients: Patients of each role and pathology; a patient with two kinds of image is in two cells.
        images: Images of the same cells, suppressed together with them.
        quarantined: Objects in quarantine by code, exact: a list of work, in which each object is named anyway.
    """

    patients: Mapping[str, Mapping[Pathology, int | None]]
    images: Mapping[str, Mapping[Pathology, int | None]]
    quarantined: Mapping[str, int]


def shown_count(count: int, *, patients: int | None = None) -> int | None:
    """A count as it may lie on a desk: the nearest multiple of ``ROUNDED_TO``, or None for fewer than ``SMALLEST_CELL`` patients, zero included.

    Every cell and every total is rounded by itself, so that a cell that is not shown is no difference of others. No promise of privacy: two
    tables of different days differ by who came in between.

    Args:
        count: Of patients, or of what ``patients`` of them have.
        patients: Not given, ``count`` is of patients.

    >>> [shown_count(count) for count in (0, 4, 5, 7, 8, 30)], shown_count(40, patients=1)
    ([None, None, 5, 5, 10, 30], None)
    """
    if (count if patients is None else patients) < SMALLEST_CELL:
        return None
    return (count + ROUNDED_TO // 2) // ROUNDED_TO * ROUNDED_TO


def summarise(session: Session) -> CohortSummary:
    """Counts by role and pathology, small cells suppressed and others rounded, and the quarantine by code."""
    counted = (ImageRow.role, ImageRow.pathology, func.count(ImageRow.patient_key.distinct()), func.count())
    cells = {(role, name): (p, i) for role, name, p, i in session.execute(select(*counted).group_by(ImageRow.role, ImageRow.pathology))}
    held = session.execute(select(QuarantineRow.code, func.count().label("held")).group_by(QuarantineRow.code).order_by(QuarantineRow.code)).all()

    def table(column: int) -> dict[str, dict[Pathology, int | None]]:
        shown = {cell: shown_count(counts[column], patients=counts[0]) for cell, counts in cells.items()}
        return {role: {p: shown.get((role, p.value)) for p in Pathology} for role in ROLES}

    return CohortSummary(patients=table(0), images=table(1), quarantined={row.code: row.held for row in held})
