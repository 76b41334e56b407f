"""A data card of the cohort: what is in it, how the split came out, and what is known of its limits. For people at the hospital; never sent.

Guarantees:
    - No count of fewer than five patients or waiting objects is shown, and every other count, of totals too, is rounded by itself to the nearest
      five: what is not shown is no difference of what is. Exact counts stay inside the node.
    - All the same the card is made from patients' data, outside epsilon.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binom

from busgen_client.cohort import CohortStore
from busgen_client.cohort_counts import ROUNDED_TO, SMALLEST_CELL, shown_count
from busgen_client.cohort_rows import ROLES, ImageRow
from busgen_client.image_files import SEALED
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_core.files import write_durably
from busgen_core.labels import Birads, Pathology

BINS = {"1": range(1, 2), "2": range(2, 3), "3-4": range(3, 5), "5-8": range(5, 9), "9+": range(9, 10**6)}  # views of a patient
OTHERS = "others"
WORST = list(Pathology)  # from harmless to worst, as the enumeration goes

Cell = int | None  # as ``shown_count`` has it
Cells = Mapping[str, Cell]  # patients
HIDDEN = f"< {SMALLEST_CELL}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """How one stratum was split.

    Attributes:
        members: Patients.
        holdout: Patients.
        low: Members that 95 % of draws of as many patients would not fall below; 0 where either part is not shown.
        high: Members that they would not rise above.
    """

    members: Cell
    holdout: Cell
    low: int
    high: int

    @property
    def odd(self) -> bool:
        """Whether the split is more uneven than 95 of 100 draws, and than rounding explains."""
        slack = ROUNDED_TO // 2
        return None not in (self.members, self.holdout) and not self.low - slack <= (self.members or 0) <= self.high + slack


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The facts of a data card; every count is of patients unless it says otherwise, and as ``shown_count`` has it.

    Attributes:
        site: The hospital's name in the consortium.
        patients: All patients.
        images: All images.
        worst: By role, the worst class of each patient.
        strata: By stratum, the split where the node drew it itself.
        views: Patients by number of views: near-duplicates count as one.
        copies: Images that are near-duplicates of another image of their patient.
        birads: By BI-RADS category.
        devices: By model.
        boxed: Share of lesion images with a box, in hundredths, by the rounded counts; None where too few patients have one.
        sealed: Whether every image is sealed.
        quarantined: Objects that wait, by code.
    """

    site: str
    patients: Cell
    images: Cell
    worst: Mapping[str, Cells]
    strata: Mapping[str, Stratum]
    views: Cells
    copies: Cell
    birads: Cells
    devices: Cells
    boxed: Cell
    sealed: bool
    quarantined: Cells


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
    people = [(len(mine), len(cohort.views(mine))) for cohort in map(store.load, ROLES) for mine in cohort.patient_rows().values()]
    copies = [images - views for images, views in people if images > views]
    lesions = [row for row in rows if row.pathology != Pathology.NORMAL]
    return Card(
        site=site,
        patients=shown_count(_patients(rows)),
        images=_images(rows),
        worst=_worst(rows),
        strata=_strata(store),
        views=_shown({name: sum(views in span for _, views in people) for name, span in BINS.items()}),
        copies=shown_count(sum(copies), patients=len(copies)),
        birads=_shown({each.value: _patients([row for row in rows if row.birads == each]) for each in Birads}),
        devices=_merged({(row.device or "not named", row.patient_key) for row in rows}),
        boxed=_share(_images([row for row in lesions if row.box is not None]), _images(lesions)),
        sealed=all(row.file.endswith(SEALED) for row in rows),
        quarantined=_shown(store.summary().quarantined),
    )


def _patients(rows: Iterable[ImageRow]) -> int:
    return len({row.patient_key for row in rows})


def _images(rows: Sequence[ImageRow]) -> Cell:
    return shown_count(len(rows), patients=_patients(rows))


def _share(part: Cell, whole: Cell) -> Cell:
    return None if part is None or whole is None else round(100 * part / whole)


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
    seen, others = shown_count(members), shown_count(holdout)
    low, high = (0, 0) if seen is None or others is None else binom.interval(0.95, seen + others, MEMBER_SHARE)
    return Stratum(members=seen, holdout=others, low=int(low), high=int(high))


def _shown(counts: Mapping[str, int]) -> Cells:
    return {name: shown_count(count) for name, count in counts.items()}


def _merged(pairs: Iterable[tuple[str, str]]) -> Cells:
    """Patients by model; models with few patients together, since a rare scanner may point to a few people."""
    counts = Counter(name for name, _ in pairs)
    large = {name: count for name, count in counts.most_common() if count >= SMALLEST_CELL}
    few = counts.total() - sum(large.values())
    return _shown({**large, OTHERS: few} if few else large)


def words(card: Card) -> str:
    """The card as Markdown."""
    parts = [
        f"# Data card: {card.site}\n",
        "**Stays in the hospital.** Made from patients' data, outside the privacy budget; counts of fewer than "
        f"{SMALLEST_CELL} are shown as {HIDDEN}, all others, totals too, are rounded to the nearest multiple of {ROUNDED_TO}, each by itself.\n",
        f"About {_text(card.patients)} patients, {_text(card.images)} images. {_boxed(card)} "
        f"{'Every image is encrypted at rest.' if card.sealed else 'NOT every image is encrypted at rest.'}\n",
        "![The cohort in three charts](card.png)\n",
        _table("Patients by worst class", ["role", *(kind.value for kind in WORST)], [[role, *card.worst[role].values()] for role in ROLES]),
        "Members are learned from; holdout patients never are. A patient's role was fixed when the first image came and is in the journal.\n",
        _table("How the draw came out", ["stratum", "members", "holdout", "95 % of draws"], [_stratum_row(*each) for each in card.strata.items()]),
        "Each patient is drawn alone (60 to 40), so that no patient's part depends on another's: strata are even by chance, not by force.\n",
        _table("Views of a patient", ["views", "patients"], list(card.views.items())),
        f"Near-duplicates within a patient count as one view; about {_text(card.copies)} images are such copies.\n",
        _table("BI-RADS", ["category", "patients"], list(card.birads.items())),
        _table("Scanners", ["model", "patients"], list(card.devices.items())),
        _table("In quarantine", ["reason", "objects"], list(card.quarantined.items())),
    ]
    return "\n".join(parts)


def _text(cell: str | Cell) -> str:
    return HIDDEN if cell is None else str(cell)


def _boxed(card: Card) -> str:
    few = f"Fewer than {SMALLEST_CELL} patients have a lesion image with a box."
    return few if card.boxed is None else f"{card.boxed} % of lesion images have a box."


def _stratum_row(name: str, stratum: Stratum) -> list[str | int | None]:
    shown = None not in (stratum.members, stratum.holdout)
    span = f"{stratum.low} to {stratum.high} members{', uneven' if stratum.odd else ''}" if shown else "-"
    return [name, stratum.members, stratum.holdout, span]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str | int | None]]) -> str:
    lines = [f"| {' | '.join(_text(cell).replace('|', '/') for cell in row)} |" for row in rows] or ["| nothing |" + " |" * (len(head) - 1)]
    return "\n".join([f"## {title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, ""])


def picture(card: Card) -> bytes:
    """The card's three charts as PNG: classes by role, views of a patient, scanners. Cells that are not shown have no bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    classes, views, devices = figure.subplots(1, 3)
    for place, (role, hatch) in enumerate(zip(ROLES, ("", "//"), strict=True)):
        heights = [count or 0 for count in card.worst[role].values()]
        bars = classes.bar(
            [x + 0.4 * place - 0.2 for x in range(len(WORST))], heights, 0.38, label=role, hatch=hatch, color=f"C{place}", edgecolor="white"
        )
        classes.bar_label(bars, [_text(count) for count in card.worst[role].values()], fontsize=8)
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
    axes.bar_label(bars, [_text(count) for count in cells.values()], fontsize=8)
    axes.set_title(title)


def _sideways(axes, cells: Cells, title: str) -> None:  # type: ignore[no-untyped-def]
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in cells]
    bars = axes.barh(names, [count or 0 for count in cells.values()], color="C0", edgecolor="white")
    axes.bar_label(bars, [_text(count) for count in cells.values()], fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.set_title(title)
