"""The standard suite: every attack on one release, ours or any other tool's, and what they found.

Nothing here decides: ``gate.judge`` does. White-box attacks run where the adapted network is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from busgen_core.errors import InputError
from busgen_core.quality.encoder import load_encoder
from busgen_privacy.attacked import Release, check
from busgen_privacy.attacks import blackbox, reidentify
from busgen_privacy.attacks.attributes import scanner_leak
from busgen_privacy.attacks.base import BlackBoxAttack, Features, Frames, MemberScores
from busgen_privacy.attacks.closest_record import closest_record
from busgen_privacy.attacks.copies import near_copies
from busgen_privacy.attacks.extraction import extract
from busgen_privacy.attacks.holdout_disclosure import holdout_disclosure
from busgen_privacy.attacks.neighbours import nearest
from busgen_privacy.cohort import Cohort
from busgen_privacy.findings import ClosestRecords, Disclosure, Distances, Findings, Scanners
from busgen_privacy.pixel_text import MOST_LOOKED, text_or_why
from busgen_privacy.policy import GatePolicy
from busgen_privacy.scored import SILENT, Described, Judged, by_draw, coarse, finding, near_finding, registered_finding, searched

Progress = Callable[[str, int, int], None]

DRAWS = 2  # noise draws for each image in white-box attacks
AT_ONCE = 512  # images embedded at once


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
    told_by_draw = {name: by_draw(release, scores[name], outside, seed=seed) for name in described}
    deciding = [scores[name] for name, attack in described.items() if not attack.diagnostic]
    judged = Judged.of(release, deciding, policy, members=inside)
    attacks = tuple(finding(attack, scores[name], release, judged, coin=told_by_draw[name], seed=seed) for name, attack in described.items())
    return Findings(
        epsilon=release.epsilon,
        delta=release.delta,
        attacks=attacks,
        near_copies=near_finding(near, len(release.images)),
        registered_copies=registered_finding(found, looked),
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
            *searched(looked, len(release.images)),
            *coarse(near.threshold, found.threshold),
        ),
        seed=seed,
    )


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
