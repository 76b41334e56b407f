"""A data card of the cohort: what is in it, how the split came out, and what is known of its limits. For people at the hospital; never sent.

Counts of fewer than five patients are not shown, so that the card may lie on a desk; all the same it is made from patients' data outside epsilon.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binom

from busgen_client.cohort import SMALLEST_CELL, CohortStore
from busgen_client.cohort_rows import ROLES, ImageRow
from busgen_client.image_files import SEALED
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_core.files import write_durably
from busgen_core.labels import Birads, Pathology

BINS = {"1": range(1, 2), "2": range(2, 3), "3-4": range(3, 5), "5-8": range(5, 9), "9+": range(9, 10**6)}  # views of a patient
OTHERS = "others"
WORST = list(Pathology)  # from harmless to worst, as the enumeration goes

Cells = Mapping[str, int | None]  # patients; None where fewer than SMALLEST_CELL


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """How one stratum was split.

    Attributes:
        members: Patients, or None where the stratum has too few to show.
        holdout: Patients, likewise.
        low: Members that 95 % of draws would not fall below.
        high: Members that they would not rise above.
    """

    members: int | None
    holdout: int | None
    low: int
    high: int

    @property
    def odd(self) -> bool:
        """Whether the split is more uneven than 95 of 100 draws."""
        return self.members is not None and not self.low <= self.members <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The facts of a data card; every count is of patients unless it says otherwise.

    Attributes:
        site: The hospital's name in the consortium.
        patients: All patients, rounded down to tens.
        images: All images, likewise.
        worst: By role, the worst class of each patient.
        strata: By stratum, the split where the node drew it itself.
        views: Patients by number of views: near-duplicates count as one.
        copies: Images that are near-duplicates of another image of their patient, rounded down to tens.
        birads: By BI-RADS category.
        devices: By model.
        boxed: Share of lesion images with a box, in hundredths.
        sealed: Whether every image is sealed.
        quarantined: Objects that wait, by code.
    """

    site: str
    patients: int
    images: int
    worst: Mapping[str, Cells]
    strata: Mapping[str, Stratum]
    views: Cells
    copies: int
    birads: Cells
    devices: Cells
    boxed: int
    sealed: bool
    quarantined: Mapping[str, int]


def write_card(store: CohortStore, out: Path, *, site: str) -> Path:
    """Write ``card.md`` and ``card.png`` to ``out``; the path of the first.

    Raises:
        CorruptImageError: an image is not what was stored.
    """
    card = card_of(store, site=site)
    write_durably(out / "card.png", picture(card))
    write_durably(out / "card.md", words(card).encode())
    return out / "card.md"


def card_of(store: CohortStore, *, site: str) -> Card:
    """Count what a cohort holds."""
    rows = store.rows()
    views = [len(cohort.views(mine)) for cohort in map(store.load, ROLES) for mine in cohort.patient_rows().values()]
    lesions = [row for row in rows if row.pathology != Pathology.NORMAL]
    return Card(
        site=site,
        patients=_tens(len({row.patient_key for row in rows})),
        images=_tens(len(rows)),
        worst=_worst(rows),
        strata=_strata(store),
        views=_shown({name: sum(count in span for count in views) for name, span in BINS.items()}),
        copies=_tens(len(rows) - sum(views)),
        birads=_shown({each.value: len({row.patient_key for row in rows if row.birads == each}) for each in Birads}),
        devices=_merged({(row.device or "not named", row.patient_key) for row in rows}),
        boxed=round(100 * sum(row.box is not None for row in lesions) / max(len(lesions), 1)),
        sealed=all(row.file.endswith(SEALED) for row in rows),
        quarantined=store.summary().quarantined,
    )


def _worst(rows: Sequence[ImageRow]) -> dict[str, Cells]:
    """By role, patients by the worst class of their images."""
    worst: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        key = (row.role, row.patient_key)
        worst[key] = max(worst[key], Pathology(row.pathology).class_index)
    counted = Counter((role, WORST[index]) for (role, _), index in worst.items())
    return {role: _shown({kind.value: counted[role, kind] for kind in WORST}) for role in ROLES}


def _strata(store: CohortStore) -> dict[str, Stratum]:
    """Strata of the patients whose role the node drew itself; those of earlier versions, which noted none, are left out."""
    people, lines = store.split()
    drawn = [(line["stratum"], line["role"]) for line in lines if "stratum" in line and line["rule"] != "given" and line["patient"] in people]
    counted = Counter(drawn)
    return {kind.value: _stratum(counted[kind, "member"], counted[kind, "holdout"]) for kind in WORST}


def _stratum(members: int, holdout: int) -> Stratum:
    low, high = binom.interval(0.95, members + holdout, MEMBER_SHARE) if members + holdout else (0, 0)
    hidden = min(members, holdout) < SMALLEST_CELL
    return Stratum(members=None if hidden else members, holdout=None if hidden else holdout, low=int(low), high=int(high))


def _shown(counts: Mapping[str, int]) -> Cells:
    return {name: count if count >= SMALLEST_CELL else None for name, count in counts.items()}


def _merged(pairs: Iterable[tuple[str, str]]) -> Cells:
    """Patients by model; models with few patients together, since a rare scanner may point to a few people."""
    counts = Counter(name for name, _ in pairs)
    large = {name: count for name, count in counts.most_common() if count >= SMALLEST_CELL}
    few = counts.total() - sum(large.values())
    return {**large, **_shown({OTHERS: few})} if few else large


def _tens(count: int) -> int:
    return count // 10 * 10


def words(card: Card) -> str:
    """The card as Markdown."""
    parts = [
        f"# Data card: {card.site}\n",
        "**Stays in the hospital.** Made from patients' data, outside the privacy budget; counts of fewer than "
        f"{SMALLEST_CELL} patients are not shown (-), totals are rounded down to tens.\n",
        f"About {card.patients} patients, {card.images} images. {card.boxed} % of lesion images have a box. "
        f"{'Every image is encrypted at rest.' if card.sealed else 'NOT every image is encrypted at rest.'}\n",
        "![The cohort in three charts](card.png)\n",
        _table("Patients by worst class", ["role", *(kind.value for kind in WORST)], [[role, *card.worst[role].values()] for role in ROLES]),
        "Members are learned from; holdout patients never are. A patient's role was fixed when the first image came and is in the journal.\n",
        _table("How the draw came out", ["stratum", "members", "holdout", "95 % of draws"], [_stratum_row(*each) for each in card.strata.items()]),
        "Each patient is drawn alone (60 to 40), so that no patient's part depends on another's: strata are even by chance, not by force.\n",
        _table("Views of a patient", ["views", "patients"], list(card.views.items())),
        f"Near-duplicates within a patient count as one view; about {card.copies} images are such copies.\n",
        _table("BI-RADS", ["category", "patients"], list(card.birads.items())),
        _table("Scanners", ["model", "patients"], list(card.devices.items())),
        _table("In quarantine", ["reason", "objects"], list(card.quarantined.items())),
    ]
    return "\n".join(parts)


def _stratum_row(name: str, stratum: Stratum) -> list[str | int | None]:
    span = "-" if stratum.members is None else f"{stratum.low} to {stratum.high} members{', uneven' if stratum.odd else ''}"
    return [name, stratum.members, stratum.holdout, span]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str | int | None]]) -> str:
    lines = [f"| {' | '.join('-' if cell is None else str(cell).replace('|', '/') for cell in row)} |" for row in rows] or [
        "| nothing |" + " |" * (len(head) - 1)
    ]
    return "\n".join([f"## {title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, ""])


def picture(card: Card) -> bytes:
    """The card's three charts as PNG: classes by role, views of a patient, scanners. Cells that are not shown have no bar and a dash."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    classes, views, devices = figure.subplots(1, 3)
    for place, (role, hatch) in enumerate(zip(ROLES, ("", "//"), strict=True)):
        heights = [count or 0 for count in card.worst[role].values()]
        bars = classes.bar(
            [x + 0.4 * place - 0.2 for x in range(len(WORST))], heights, 0.38, label=role, hatch=hatch, color=f"C{place}", edgecolor="white"
        )
        classes.bar_label(bars, ["–" if count is None else str(count) for count in card.worst[role].values()], fontsize=8)
    classes.set_xticks(range(len(WORST)), [kind.value for kind in WORST])
    classes.set_title("patients by worst class")
    classes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _bars(views, card.views, "patients by number of views")
    _sideways(devices, card.devices, "patients by scanner")
    for axes in (classes, views, devices):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    for axis in (classes.yaxis, views.yaxis, devices.xaxis):
        axis.get_major_locator().set_params(integer=True)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _bars(axes, cells: Cells, title: str) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no type hints
    bars = axes.bar(list(cells), [count or 0 for count in cells.values()], color="C0", edgecolor="white")
    axes.bar_label(bars, ["–" if count is None else str(count) for count in cells.values()], fontsize=8)
    axes.set_title(title)


def _sideways(axes, cells: Cells, title: str) -> None:  # type: ignore[no-untyped-def]
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in cells]
    bars = axes.barh(names, [count or 0 for count in cells.values()], color="C0", edgecolor="white")
    axes.bar_label(bars, ["–" if count is None else str(count) for count in cells.values()], fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.set_title(title)
