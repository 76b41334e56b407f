"""What a hub finds in a release without any real patient: repeats, what images say of site, scanner and label, text, balance, quality.

Nothing here needs, or costs, budget: all of it follows from released images and public ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from busgen_core.errors import InputError
from busgen_core.labels import Pathology
from busgen_core.quality.encoder import load_encoder
from busgen_core.quality.kid import kid
from busgen_privacy.attacks.attributes import Told, label_leak, scanner_leak, site_leak
from busgen_privacy.attacks.base import Features, Frames
from busgen_privacy.claims import Claim
from busgen_privacy.cohort import normalised
from busgen_privacy.pixel_text import MOST_LOOKED, PixelText, text_or_why
from busgen_privacy.reaudit_findings import Reaudit, Telling

NEAR = 0.02  # distance (1 - correlation) below which two released images count as one; real patients' closest pairs lie above .14
BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Public:
    """Public images, column by column.

    Attributes:
        images: uint8 [n, px, px].
        labels: Of each.
        patients: Of each.
        scanners: Of each, or empty where unknown.
    """

    images: Frames
    labels: Sequence[Pathology]
    patients: Sequence[str]
    scanners: Sequence[str] = ()


def reaudit(
    images: Frames,
    labels: Sequence[Pathology],
    *,
    asked: Mapping[Pathology, int],
    others: Mapping[str, Frames],
    public: Public | None,
    claims: Sequence[Claim] = (),
    most_read: int = MOST_LOOKED,
    seed: int,
) -> Reaudit:
    """Look at a release again.

    Args:
        images: uint8 [m, px, px].
        labels: Of each.
        asked: Images of each label that the campaign asked for.
        others: Images of each other admitted release, by its id.
        public: Public images; None: quality and leaks of label and scanner are not looked at.
        claims: Of ``claims.check_claims``, where the release is there as a whole.
        most_read: Images that are read for text; a sample where there are more.
        seed: Of folds, permutations, and of the sample that is read for text; secret until then, where that sample must not be foreseen.

    Raises:
        InputError: no image, another number of labels, or images of another size.
    """
    if not len(images) or len(images) != len(labels):
        raise InputError("released images and labels differ in number, or there are none")
    own = look(images)
    text, unread = text_or_why(list(images), most=most_read, seed=seed)
    not_run = list(unread)
    site = _told(site_leak({"this": own} | {name: look(each) for name, each in others.items()}, seed=seed)) if others else None
    if site is None:
        not_run.append("Telling sites apart: no other release was admitted.")
    counts = Counter(labels)
    found = {
        "images": len(images),
        "labels": {label: counts.get(label, 0) for label in Pathology},
        "asked": {label: asked.get(label, 0) for label in Pathology},
        "near_inside": repeated(images),
        "near_others": {name: shared(images, each) for name, each in others.items()},
        "site": site,
        "text": text,
        "claims": tuple(claims),
        "seed": seed,
    }
    if not claims:
        not_run.append("What the release says of itself: only its images were given.")
    found |= _beside_public(own, labels, public, not_run, seed=seed)
    return Reaudit(**found, remarks=_remarks(found), not_run=tuple(not_run))


def look(images: Frames) -> Features:
    """Features of images by the shipped encoder, float32 [n, d]."""
    return load_encoder()(images)


def repeated(images: Frames) -> int:
    """Images that have a near duplicate among the others.

    >>> repeated(np.stack([np.eye(8), np.eye(8), np.eye(8)[::-1]]).astype(np.uint8))
    2
    """
    return _near(images, images, but_itself=True)


def shared(images: Frames, others: Frames) -> int:
    """Images that have a near duplicate in another set.

    Raises:
        InputError: images of another size.
    """
    if images.shape[1:] != others.shape[1:]:
        raise InputError("releases have images of different sizes")
    return _near(images, others, but_itself=False)


def _near(images: Frames, others: Frames, *, but_itself: bool) -> int:
    """Images with a near duplicate in ``others``; ``but_itself``: both are one set, and row i of one is no duplicate of row i of the other."""
    flat, known, found = normalised(images), normalised(others), 0
    for start in range(0, len(flat), BLOCK):
        near = 1 - flat[start : start + BLOCK] @ known.T < NEAR
        if but_itself:
            near[np.arange(len(near)), start + np.arange(len(near))] = False
        found += int(near.any(1).sum())
    return found


def _beside_public(own: Features, labels: Sequence[Pathology], public: Public | None, not_run: list[str], *, seed: int) -> dict[str, object]:
    """Quality, and leaks of label and scanner, against public images; adds to ``not_run`` what they do not allow."""
    names = ("label", "label_public", "scanners", "scanner_sure", *(f"kid{set_}{end}" for set_ in ("", "_public") for end in ("", "_low", "_high")))
    nothing: dict[str, object] = dict.fromkeys(names)
    if public is None:
        not_run.append("Quality, and leaks of label and scanner: no public images were given.")
        return nothing
    known = look(public.images)
    found = nothing | _quality(known, public.patients, own, not_run, seed=seed)
    try:
        leak = label_leak(known, list(public.labels), public.patients, own, list(labels), seed=seed)
        found |= {"label": _told(leak.released), "label_public": _told(leak.public)}
    except InputError as error:
        not_run.append(f"Leak of labels: {error}.")
    if not public.scanners:
        not_run.append("Leak of scanners: the public images come without scanners.")
        return found
    try:
        scanners = scanner_leak(known, public.scanners, public.patients, own, seed=seed)
        return found | {"scanners": dict(scanners.shares), "scanner_sure": scanners.sure}
    except InputError as error:
        not_run.append(f"Leak of scanners: {error}.")
        return found


def _quality(known: Features, patients: Sequence[str], own: Features, not_run: list[str], *, seed: int) -> dict[str, object]:
    """Distance of the release to the public images, beside that of two halves of them."""
    try:
        distance = kid(known, own, seed=seed, groups_a=patients)
    except InputError as error:
        not_run.append(f"Quality: {error}.")
        return {}
    return {"kid": distance.value, "kid_low": distance.low, "kid_high": distance.high} | _halves(known, patients, seed=seed)


def _halves(known: Features, patients: Sequence[str], *, seed: int) -> dict[str, object]:
    """The distance between two random halves of the public patients; nothing where they are too few."""
    names, groups = np.unique(patients), np.array(patients)
    first = np.isin(groups, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
    try:
        distance = kid(known[first], known[~first], seed=seed, groups_a=groups[first].tolist(), groups_b=groups[~first].tolist())
    except InputError:
        return {}
    return {"kid_public": distance.value, "kid_public_low": distance.low, "kid_public_high": distance.high}


def _told(told: Told) -> Telling:
    return Telling(accuracy=told.accuracy, chance_low=told.chance_low, chance_high=told.chance_high, chance=told.p_value)


def _remarks(found: Mapping[str, object]) -> tuple[str, ...]:
    """What someone should look at."""
    claims: tuple[Claim, ...] = found["claims"]  # type: ignore[assignment]
    said = [f"A claim does not hold: {claim.what}: {claim.found}." for claim in claims if not claim.good]
    if isinstance(text := found["text"], PixelText):
        said += text.remarks()
    if found["near_inside"]:
        said.append(f"{found['near_inside']} images have a near duplicate in the release: the generator repeats itself.")
    others: Mapping[str, int] = found["near_others"]  # type: ignore[assignment]
    said += [f"{count} images have a near duplicate in release {name}." for name, count in others.items() if count]
    if found["labels"] != found["asked"]:
        said.append("The numbers of images by label are not those that the campaign asked for.")
    label, usual = found["label"], found["label_public"]
    if isinstance(label, Telling) and isinstance(usual, Telling):
        if label.chance > 0.05:
            said.append("A public classifier names the released labels no better than chance: the labels may be of no use.")
        elif label.accuracy > usual.accuracy + 0.15:
            said.append("Labels are far easier to see in the released images than in public ones: classes may be drawn too clearly.")
    return tuple(said)
