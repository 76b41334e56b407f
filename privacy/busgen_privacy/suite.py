"""The standard suite: every attack on one release, ours or any other tool's, and what they found.

Nothing here decides: ``gate.judge`` does. White-box attacks run where the adapted network is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from busgen_core.errors import InputError
from busgen_core.quality.encoder import load_encoder
from busgen_privacy.attacks import blackbox, copies, extraction, reidentify
from busgen_privacy.attacks.attributes import scanner_leak
from busgen_privacy.attacks.base import Access, BlackBoxAttack, Features, Frames, MemberScores, same_size
from busgen_privacy.attacks.closest_record import closest_record
from busgen_privacy.attacks.copies import NearCopies, near_copies
from busgen_privacy.attacks.extraction import Extraction, extract
from busgen_privacy.attacks.holdout_disclosure import holdout_disclosure
from busgen_privacy.attacks.neighbours import nearest
from busgen_privacy.cohort import Cohort
from busgen_privacy.findings import AttackFinding, ClosestRecords, CopyFinding, Disclosure, Distances, Findings, Hits, Pair, PatientScores, Scanners
from busgen_privacy.gate import ABOVE, BEYOND, Claim, granted_mu
from busgen_privacy.leak import auc_of, drawn_epsilon, gaussian_epsilon, like_a_draw, split_epsilon
from busgen_privacy.lookalikes import in_both
from busgen_privacy.pixel_text import MOST_LOOKED, text_or_why
from busgen_privacy.policy import GatePolicy
from busgen_privacy.power import sight
from busgen_privacy.statistics import (
    auc,
    auc_exact_interval,
    auc_interval,
    best_auc,
    ceiling_auc,
    ceiling_tpr,
    found_outright,
    hit_rate,
    passing,
    permutation_chance,
    surely_found,
)

if TYPE_CHECKING:  # attacks on images alone need neither torch nor diffusers
    from busgen_core.generator import Generator
    from busgen_privacy.shadows import Shadows

Progress = Callable[[str, int, int], None]

DRAWS = 2  # noise draws for each image in white-box attacks
FALSE_ALARMS = (0.001, 0.01, 0.05)
CLOSEST_PAIRS = 12
USUAL = 10  # times the release, that copies are looked for among: Carlini et al. 2023 draw many more images than they show
AT_ONCE = 512  # images embedded at once


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is attacked.

    Attributes:
        images: Released images, uint8 [m, px, px].
        more: Further images of the same generator, up to ten times the release, for extraction; none: the release alone.
        epsilon: Claim of composed Gaussian mechanisms; None for another or no claim.
        delta: Claim.
        access: The adapted network, where the attacker is given it; None where only images leave, or nothing was trained.
        no_access: Why there is none, for the report.
        member_share: Chance with which each patient became a member, by a draw of its own; None: roles came about in another way.
        shadows: Networks for the reference-model attack, where there are some; asked only beside ``access``.
    """

    images: Frames
    more: Frames | None = None
    epsilon: float | None = None
    delta: float | None = None
    access: Access | None = None
    no_access: str = "no adapted network was given"
    member_share: float | None = None
    shadows: "Shadows | None" = None


def run(
    release: Release,
    members: Cohort,
    holdout: Cohort,
    public: Frames,
    *,
    groups: Sequence[str] = (),
    scanners: Sequence[str] = (),
    before: Frames | None = None,
    most_read: int = MOST_LOOKED,
    policy: GatePolicy,
    draws: int,
    seed: int,
    progress: Progress,
) -> Findings:
    """Attack a release with everything that applies.

    Args:
        release: What is attacked.
        members: Patients of the adaptation.
        holdout: Patients it never saw, split off at random by patient before.
        public: Images of nobody here, for calibration: public ones, or images of the un-adapted foundation; uint8 [r, px, px].
        groups: Patient of each public image; with at least 20 of several images re-identification runs too.
        scanners: Scanner of each public image, beside ``groups``: then the report says what released images tell of the scanner.
        before: Images that the generator drew before it was adapted, same px: what they tell of the scanner is no patient's.
        most_read: Released images that are read for text; a sample where there are more.
        policy: For the power of the attacks: level and what is granted.
        draws: Noise draws for each image in white-box attacks.
        seed: Of draws, bootstraps and permutations.
        progress: Called with (what is done now, done, of).

    Raises:
        InputError: a patient or an image on both sides, or among the public images; an adapted network that is the reference; sizes that do
            not fit; fewer than two patients on a side.
    """
    check(release, members, holdout, public, groups)
    embedded = Embedded.of(release.images, members, holdout, public, progress)
    scores, described, not_run = _scores(release, embedded, groups, draws=draws, seed=seed, progress=progress)
    looked = len(release.images) + (0 if release.more is None else len(release.more))
    found = extract(release.images, members, holdout, more=release.more, progress=lambda done, of: progress("looking for copies", done, of))
    scores[REGISTRATION.name] = found.scores
    described[REGISTRATION.name] = replace(REGISTRATION, cost=(len(members) + len(holdout)) * len(release.images))
    reading = partial(progress, "reading text in the images")
    text, unread = text_or_why(list(release.images), most=most_read, seed=seed, progress=reading)
    near = near_copies(release.images, members, holdout)
    closest = closest_record(embedded.released, embedded.members, embedded.holdout, seed=seed)
    seen_scanners, unseen = _scanners(embedded, groups, scanners, before, seed=seed)
    told = holdout_disclosure(embedded.released, embedded.members, embedded.holdout, seed=seed)
    inside, outside = len(members.patient_rows()), len(holdout.patient_rows())
    told_by_draw = {name: _by_draw(release, scores[name], outside, seed=seed) for name in described}
    deciding = [scores[name] for name, attack in described.items() if not attack.diagnostic]
    judged = _Judged.of(release, deciding, policy, members=inside)
    attacks = tuple(_finding(attack, scores[name], release, judged, coin=told_by_draw[name], seed=seed) for name, attack in described.items())
    return Findings(
        epsilon=release.epsilon,
        delta=release.delta,
        attacks=attacks,
        near_copies=_near(near, len(release.images)),
        registered_copies=_registered(found, looked),
        disclosure=Disclosure(share=told.share, chance_low=told.chance_low, chance_high=told.chance_high, chance=told.p_value),
        closest_records=ClosestRecords(
            member_distance=closest.member_distance,
            holdout_distance=closest.holdout_distance,
            member_ratio=closest.member_ratio,
            holdout_ratio=closest.holdout_ratio,
        ),
        distances=embedded.distances(),
        members=inside,
        holdout=outside,
        released=len(release.images),
        reference=len(public),
        duplicates=len(release.images) - len({image.tobytes() for image in release.images}),
        text=text,
        scanners=seen_scanners,
        not_run=(
            *not_run,
            *unseen,
            *(SILENT.format(name=attack.name) for attack in attacks if judged.silent(attack)),
            *unread,
            *_searched(looked, len(release.images)),
            *_coarse(near.threshold, found.threshold),
        ),
        seed=seed,
    )


def _searched(looked: int, released: int) -> tuple[str, ...]:
    """How far the search for copies falls short of ten times the release."""
    if looked >= USUAL * released:
        return ()
    return (f"Copies among {USUAL} times the release: {looked} images were looked at, {looked / released:.1f} times the release.",)


def _scanners(
    embedded: "Embedded", groups: Sequence[str], scanners: Sequence[str], before: Frames | None, *, seed: int
) -> tuple[Scanners | None, tuple[str, ...]]:
    """What released images say of the scanner; or why nobody looked."""
    if not groups or not scanners:
        return None, ("Leak of scanners: nothing names a patient and a scanner for each public image.",)
    try:
        usual = None if before is None else load_encoder()(before)
        leak = scanner_leak(embedded.public, scanners, groups, embedded.released, before=usual, seed=seed)
    except InputError as error:
        return None, (f"Leak of scanners: {error}.",)
    known = leak.public
    chance = {"chance_low": known.chance_low, "chance_high": known.chance_high}
    return Scanners(shares=dict(leak.shares), before=leak.before, sure=leak.sure, accuracy=known.accuracy, **chance), ()


def _coarse(near: float, registered: float) -> tuple[str, ...]:
    """Searches whose threshold lies at its floor: it was to be half the distance between different patients, and they are nearer than that."""
    floors = {"as they are": (near, copies.SMALLEST), "after registration": (registered, extraction.SMALLEST)}
    return tuple(
        f"Changed copies, {how}: some images of different patients are so alike that only what is nearer than {floor:g} counts as a copy."
        for how, (threshold, floor) in floors.items()
        if threshold <= floor
    )


def check(release: Release, members: Cohort, holdout: Cohort, public: Frames, groups: Sequence[str] = ()) -> None:
    """Raise InputError for what would make every figure meaningless; see ``run``."""
    check_people(members, holdout, public, groups)
    same_size(release.images, members.images, holdout.images, public, *([] if release.more is None else [release.more]))
    if release.access is not None:
        _check_networks(release.access, release.shadows)
    taught = frozenset() if release.shadows is None else release.shadows.patients
    if taught & set(members.patients) or len(set(holdout.patients) - taught) < 2:
        raise InputError("shadow networks were adapted to members, or leave fewer than two holdout patients to attack")
    sizes, share = (len(members.patient_rows()), len(holdout.patient_rows())), release.member_share
    if share is not None and not (0 < share < 1 and like_a_draw(*sizes, share=share)):
        raise InputError(
            f"{sizes[0]} members and {sizes[1]} holdout patients do not come from a draw of each with chance {share:g} of being a member"
        )


def _check_networks(access: Access, shadows: "Shadows | None") -> None:
    """Raise InputError for networks that are one network under two names: attacks that compare them could see nothing."""
    named = [("the adapted network", access.adapted), ("the reference", access.reference)]
    named += [(f"shadow {number}", network) for number, network in enumerate(() if shadows is None else shadows.networks, 1)]
    for place, (name, network) in enumerate(named):
        for other, known in named[:place]:
            if _same(network, known):
                raise InputError(f"{other} and {name} are one network, number for number: no attack that compares them could see anything")


def check_people(members: Cohort, holdout: Cohort, public: Frames, groups: Sequence[str] = ()) -> None:
    """What ``check`` asks of the real images alone, so that a node can ask before it spends; ``public`` may be empty. Raises InputError."""
    inside, outside = set(members.patients), set(holdout.patients)
    if both := inside & outside:
        raise InputError(f"{len(both)} patients are members and holdout at once; the audit would measure nothing")
    if min(len(inside), len(outside)) < 2:
        raise InputError("an audit needs at least two members and two holdout patients")
    same_size(members.images, holdout.images, *([public] if len(public) else []))
    if same := in_both(members.images, holdout.images):
        raise InputError(f"{same} images are of members and of holdout patients at once, or as good as the same; the split is not by patient")
    if known := set(groups) & (inside | outside):
        raise InputError(f"{len(known)} patients of the public images are members or holdout patients too; if they are not, give them other keys")
    if len(public) and (same := in_both(public, members.images) + in_both(public, holdout.images)):
        raise InputError(
            f"{same} images that attacks are calibrated on (public ones, or the foundation's) are of members or holdout patients, or as good as the "
            "same; attacks would be turned round"
        )


def _same(one: "Generator", other: "Generator") -> bool:
    """Whether two networks hold the same numbers under the same names."""
    own, known = one.state_dict(), other.state_dict()
    return own.keys() == known.keys() and all(np.array_equal(own[name].cpu().numpy(), known[name].cpu().numpy()) for name in own)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """All images in the shipped encoder's embedding, float32 [n, d] each."""

    released: Features
    public: Features
    members: tuple[Cohort, Features]
    holdout: tuple[Cohort, Features]

    @classmethod
    def of(cls, released: Frames, members: Cohort, holdout: Cohort, public: Frames, progress: Progress) -> "Embedded":
        """Look at every image once."""
        wanted, done, total = [released, public, members.images, holdout.images], 0, sum(map(len, (released, public, members.images, holdout.images)))
        encoder, out = load_encoder(), []
        for images in wanted:
            parts = []
            for start in range(0, len(images), AT_ONCE):
                parts.append(encoder(images[start : start + AT_ONCE]).astype(np.float32))
                done += len(parts[-1])
                progress("looking at images", done, total)
            out.append(np.concatenate(parts))
        return cls(released=out[0], public=out[1], members=(members, out[2]), holdout=(holdout, out[3]))

    def distances(self) -> Distances:
        """Of each released image to the nearest one of each group."""
        groups = (self.members[1], self.holdout[1], self.public)
        found = [tuple(np.round(nearest(self.released, group), 5).astype(float).tolist()) for group in groups]
        return Distances(members=found[0], holdout=found[1], reference=found[2])


@dataclass(frozen=True, kw_only=True)
class Described:
    """An attack as its finding names it."""

    name: str
    white: bool
    what: str
    source: str
    cost: float
    diagnostic: bool


SILENT = "{name}: it ran, but so many patients have the same score that its silence says nothing."

# The scores come with the search for copies. On a generator that memorised 60 patients it saw most of all attacks without the network
# (bench/audit_power.py): the other ones look through an embedding that knows less of an image than its pixels.
REGISTRATION = Described(
    name="registration",
    white=False,
    what="Does some released image match a member's image more closely, once shift, crop, flip and gray map are undone, than any patient never seen?",
    source="Carlini et al. 2023, arXiv:2301.13188, section 4 (nearest generated image); registered as attacks/registration.py says",
    cost=0,
    diagnostic=False,
)


def _scores(
    release: Release, embedded: Embedded, groups: Sequence[str], *, draws: int, seed: int, progress: Progress
) -> tuple[dict[str, MemberScores], dict[str, Described], tuple[str, ...]]:
    """Scores by attack, what each attack is, and what was not run."""
    attacks, not_run = _black(embedded, groups)
    members, holdout = embedded.members, embedded.holdout
    attacked = len(members[0]) + len(holdout[0])
    scores = dict(
        blackbox.run_all(
            embedded.released, embedded.public, members, holdout, attacks=attacks, progress=lambda d, of: progress("black-box attacks", d, of)
        )
    )
    pairs = blackbox.cost(len(embedded.released), len(embedded.public), attacked, attacks=attacks)
    described = {
        a.name: Described(name=a.name, white=False, what=a.what, source=a.source, cost=pairs[a.name], diagnostic=a.diagnostic) for a in attacks
    }
    if release.access is None:
        return scores, described, (*not_run, f"White-box attacks: {release.no_access}.")
    from busgen_privacy.attacks import whitebox  # imports diffusers, which takes seconds

    passes = whitebox.cost(draws)
    scores |= whitebox.run_all(
        release.access, members[0], holdout[0], draws=draws, seed=seed, progress=lambda d, of: progress("white-box attacks", d, of)
    )
    described |= {
        a.name: Described(name=a.name, white=True, what=a.what, source=a.source, cost=passes[a.name] * attacked, diagnostic=False)
        for a in whitebox.STANDARD
    }
    if release.shadows is None:
        return scores, described, (*not_run, "Reference-model attack: no network adapted to other patients was given.")
    from busgen_privacy.attacks import reference_model

    beside = reference_model.attack(release.shadows.networks)
    others = holdout[0].only(set(holdout[0].patients) - release.shadows.patients)
    scores[beside.name] = beside.run(
        release.access, members[0], others, draws=draws, seed=seed, progress=lambda d, of: progress("reference-model attack", d, of)
    )
    cost = beside.passes(draws) * (len(members[0]) + len(others))
    described[beside.name] = Described(name=beside.name, white=True, what=beside.what, source=beside.source, cost=cost, diagnostic=False)
    return scores, described, not_run


def _black(embedded: Embedded, groups: Sequence[str]) -> tuple[tuple[BlackBoxAttack, ...], tuple[str, ...]]:
    """The standard black-box attacks, and re-identification where public patients have several images."""
    if not groups:
        return blackbox.STANDARD, ("Re-identification: the public images come without patients.",)
    try:
        verifier = reidentify.train(embedded.public, groups)
    except InputError as error:
        return blackbox.STANDARD, (f"Re-identification: {error}.",)
    if verifier.low <= 0.5:
        return blackbox.STANDARD, (
            f"Re-identification: on public patients it told the same from others with AUC {verifier.auc:.2f}, no better than guessing.",
        )
    return (*blackbox.STANDARD, reidentify.attack(verifier)), ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What every attack is held against.

    Attributes:
        level: Of the tests for more than is granted, all together.
        tests: How many share it.
        null: AUC that is granted.
        alarm: Chance that the lower end of one hit rate is too high.
    """

    level: float
    tests: int
    null: float
    alarm: float

    @classmethod
    def of(cls, release: Release, deciding: Sequence[MemberScores], policy: GatePolicy, *, members: int) -> "_Judged":
        claim = Claim(epsilon=release.epsilon, delta=release.delta, members=members)
        rates = sum(passing(len(scores.holdout), fpr) >= 1 for scores in deciding for fpr in FALSE_ALARMS)
        return cls(
            level=ABOVE * policy.family_level,
            tests=2 * len(deciding) + rates,
            null=auc_of(granted_mu(claim, policy)),
            alarm=BEYOND * policy.family_level / max(rates, 1),
        )

    def caught(self, *, members: int, holdout: int, reach: float = 1.0) -> float | None:
        """Smallest true AUC that an attack would have caught; None: none."""
        return sight(members=members, holdout=holdout, level=self.level, tests=self.tests, null=self.null, reach=reach).auc

    def silent(self, attack: AttackFinding) -> bool:
        """Whether equal scores alone keep an attack from catching anything."""
        return not attack.diagnostic and attack.caught is None and self.caught(members=attack.members, holdout=attack.holdout) is not None


def _finding(attack: Described, scores: MemberScores, release: Release, judged: _Judged, *, coin: float | None, seed: int) -> AttackFinding:
    members, holdout = scores.members, scores.holdout
    (low, high), (exact_low, exact_high) = auc_interval(members, holdout, seed=seed), auc_exact_interval(members, holdout)
    delta, reach = release.delta or 1e-5, best_auc(members, holdout)
    claim = None if release.epsilon is None or release.delta is None else (release.epsilon, release.delta)
    return AttackFinding(
        name=attack.name,
        kind="white-box" if attack.white else "black-box",
        what=attack.what,
        source=attack.source,
        cost=attack.cost,
        auc=auc(members, holdout),
        low=low,
        high=high,
        exact_low=exact_low,
        exact_high=exact_high,
        reach=reach,
        chance=permutation_chance(members, holdout, seed=seed),
        ceiling=None if claim is None else ceiling_auc(*claim),
        outright=found_outright(members, holdout),
        hits=_hits(scores, claim, judged, seed=seed),
        epsilon_low=gaussian_epsilon(members, holdout, delta=delta),
        epsilon_any=split_epsilon(members, holdout, delta=delta, seed=seed),
        epsilon_coin=coin,
        caught=judged.caught(members=len(members), holdout=len(holdout), reach=reach),
        diagnostic=attack.diagnostic,
        scores=PatientScores(members=tuple(members.tolist()), holdout=tuple(holdout.tolist())),
        members=len(members),
        holdout=len(holdout),
    )


def _by_draw(release: Release, scores: MemberScores, holdout: int, *, seed: int) -> float | None:
    """Bound of epsilon from the draw of roles; None where they were not drawn, or some holdout patients were set aside from this attack."""
    if release.member_share is None or len(scores.holdout) != holdout:
        return None
    return drawn_epsilon(scores.members, scores.holdout, share=release.member_share, delta=release.delta or 1e-5, seed=seed)


def _hits(scores: MemberScores, claim: tuple[float, float] | None, judged: _Judged, *, seed: int) -> tuple[Hits, ...]:
    found = [hit_rate(scores.members, scores.holdout, fpr=fpr, seed=seed) for fpr in FALSE_ALARMS]
    return tuple(
        Hits(
            fpr=hit.fpr,
            tpr=hit.tpr,
            low=hit.low,
            high=hit.high,
            bootstrap_low=hit.bootstrap_low,
            bootstrap_high=hit.bootstrap_high,
            ceiling=None if claim is None else ceiling_tpr(*claim, fpr=hit.fpr),
            surely=surely_found(scores.members, scores.holdout, fpr=hit.fpr, alarm=judged.alarm),
        )
        for hit in found
        if hit is not None
    )


def _near(found: NearCopies, compared: int) -> CopyFinding:
    order = np.argsort(found.member_distance, kind="stable")[:CLOSEST_PAIRS]
    pairs = tuple(Pair(released=int(i), member=int(found.member_row[i]), distance=max(0.0, float(found.member_distance[i]))) for i in order)
    return CopyFinding(count=found.count, holdout_count=found.holdout_count, compared=compared, threshold=found.threshold, closest=pairs)


def _registered(found: Extraction, compared: int) -> CopyFinding:
    near = found.members
    order = np.argsort(near.distance, kind="stable")[:CLOSEST_PAIRS]
    pairs = tuple(
        Pair(released=int(i), member=int(near.row[i]), distance=max(0.0, float(near.distance[i])), mirrored=bool(near.mirrored[i])) for i in order
    )
    return CopyFinding(count=found.count, holdout_count=found.holdout_count, compared=compared, threshold=found.threshold, closest=pairs)
