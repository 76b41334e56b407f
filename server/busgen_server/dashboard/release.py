"""What the page of one release shows: the release, and what the hub found when it looked at it again."""

from collections.abc import Iterator
from pathlib import Path

from busgen_core.errors import StateError
from busgen_privacy.pixel_text import PixelText
from busgen_privacy.reaudit_findings import Reaudit
from busgen_server.dashboard.plot import Plot, Told, balance_plot, count_plot, distance_plot, share_plot, told_plot
from busgen_server.dashboard.state import ReleaseView, View, release_view
from busgen_server.dashboard.words import READS
from busgen_server.looks import look_and_findings
from busgen_server.store import HubStore


class RepeatView(View):
    """Images of a release with a near copy in another one, or in the release itself, which has no id here."""

    release_id: str
    images: int


class ReleasePage(View):
    """Everything on the page of a release; ``found`` is None until the hub has looked."""

    campaign_id: str
    release: ReleaseView
    found: Reaudit | None
    repeats: tuple[RepeatView, ...] = ()
    told: Plot | None = None
    scanners: Plot | None = None
    balance: Plot | None = None
    distance: Plot | None = None
    text: Plot | None = None


def release_page(store: HubStore, data: Path, release_id: str) -> ReleasePage:
    """Read one release.

    Raises:
        StateError: none of that id arrived.
    """
    row = store.release(release_id)
    if row is None:
        raise StateError("no release of that id arrived")
    look, found = look_and_findings(store, row)
    page = ReleasePage(campaign_id=row.campaign_id, release=release_view(row, data, store.withdrawals(), look), found=found)
    return page if found is None else page.model_copy(update=_drawn(found))


def _drawn(found: Reaudit) -> dict[str, object]:
    """What a page shows of findings beside their figures."""
    told = tuple(_told(found))
    return {
        "repeats": _repeats(found),
        "told": told_plot(told) if told else None,
        "scanners": None if found.scanners is None else share_plot(found.scanners),
        "balance": balance_plot(*({label.value: count for label, count in each.items()} for each in (found.asked, found.labels))),
        "distance": _distance(found),
        "text": None if found.text is None else _text(found.text),
    }


def _repeats(found: Reaudit) -> tuple[RepeatView, ...]:
    others = (RepeatView(release_id=name, images=count) for name, count in sorted(found.near_others.items()))
    return (RepeatView(release_id="", images=found.near_inside), *others)


def _told(found: Reaudit) -> Iterator[Told]:
    named = (
        ("the release it is from", found.site, False),
        ("its label, here", found.label, False),
        ("its label, in public images", found.label_public, True),
    )
    for label, telling, baseline in named:
        if telling is not None:
            yield Told(label, telling.accuracy, telling.chance_low, telling.chance_high, baseline)


def _distance(found: Reaudit) -> Plot | None:
    if found.kid is None or found.kid_low is None or found.kid_high is None:
        return None
    marks = [("this release", found.kid, found.kid_low, found.kid_high, False)]
    if found.kid_public is not None and found.kid_public_low is not None and found.kid_public_high is not None:
        marks.append(("public images, half against half", found.kid_public, found.kid_public_low, found.kid_public_high, True))
    return distance_plot(marks)


def _text(text: PixelText) -> Plot:
    """Images looked at, worst first."""
    counts = {READS["identifying"]: text.identifying, READS["words"]: text.words, READS["furniture"]: text.furniture}
    counts["no text that could be read"] = text.looked - sum(counts.values())
    return count_plot(counts)
