"""The gate: turns an audit and a policy into *release* or *refuse*, with every reason in plain words. Pure.

``judge`` asks five things, and one that fails is enough to refuse:

1.  Does an attack surely tell members from patients never seen, by more than is granted? What is granted is a Gaussian leak (``leak``):
    *   with a promise, the smaller of what (epsilon, delta) allows at all and AUC .575, what epsilon 1 allows. The ceiling alone would be
        blind: at epsilon 8 it is AUC .881, for an attacker who knows all but one patient, and a generator that memorises its patients
        can lie below it. Attacks that exist reach far less where the noise is right (AUC .52 to .55, bench/results/real_round.json), so
        one that is surely above .575 shows that patients were learnt, not the population. But AUC 1/2 cannot be demanded of a promise
        either: some of it is there to be spent, and a large cohort would see it.
    *   without a promise, nothing: AUC 1/2. No mathematics bounds what a better attack would find, so any sure sign is one too many. A
        claim counts as none beyond ``weakest_promise``, or if delta is above 1 / members (it could give away one patient whole).
    Each deciding attack is tested by its AUC, and by its hit rates: before the first false alarm, and at 5 %, 1 % and .1 % where there
    are patients enough, since a leak of a few patients hardly moves an AUC. Holm corrects over all these tests. What also passes the
    promise's own ceiling is told apart in words: then the code does not do what was claimed. So does a hit rate whose lower end, exact and
    for all attacks together, lies above its ceiling. An attack that surely ranks members *below* patients never seen refuses too: turned
    round it is an attack, or the inputs are wrong (members among the public images, a split that is not at random), and nothing holds.
2.  Is a released image a copy of a member's, as it is, or once shift, crop, flip and gray map are undone? One is one too many, whatever
    the promise; what the holdout gives, chance alone, is said beside it.
3.  Are there holdout patients enough?
4.  Would the audit have seen a leak? At least one attack must have caught ``must_catch_auc`` four times out of five (``power``). One whose
    scores are mostly equal does not count: whatever order they had, it could not have been called.
5.  Does some text in the released pixels read like a name, a number or a date? This follows from what leaves alone. Where no engine could
    read, the verdict says so.

False alarms: if members and holdout are exchangeable and nothing was learnt, 1 refuses with chance at most ``family_level`` without a
promise, and far less with one; the level is split over the three kinds of tests (``ABOVE``, ``BEYOND``, ``TURNED``). That assumes a split
by patient, at random, before adaptation; a split by site or year looks like a leak.

Holdout disclosure and the distances to the closest record are diagnostic: shown, and never asked. No bound is known of how far a granted leak
moves them, and what they look at, the nearest patient, the attacks look at by patient.

What a refusal tells: one bit that patients' exact figures decided, outside epsilon. It stays in the hospital with its reasons, or is charged
to the budget. *Release* is the other value of that bit, and every release shows it; the privacy statement lists it as a heuristic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal

from busgen_core.errors import ConfigError
from busgen_core.release import GateVerdict
from busgen_privacy.audit import TravellingAttack, TravellingAudit
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.findings import CopyFinding, Findings
from busgen_privacy.leak import auc_chance, auc_of, hit_chance, hit_rate_of, mu_of
from busgen_privacy.pixel_text import PixelText
from busgen_privacy.policy import GatePolicy
from busgen_privacy.power import Sight, in_words, sight
from busgen_privacy.statistics import ceiling_auc, holm

# Shares of the family's level: AUCs and hit rates above what is granted (Holm), exact lower ends of hit rates above the promise's ceiling
# (Bonferroni), attacks that are turned round (Holm).
ABOVE, BEYOND, TURNED = 0.9, 0.05, 0.05
NONE_PASS = 1e-9  # a rate of false alarms at which no holdout patient passes
SLACK = 1e-6  # rounding of a ceiling on its way through JSON
STAYS = (
    "This refusal is one bit that patients' own figures decided. It is outside epsilon: "
    "it stays in the hospital with its reasons, or is charged to the budget."
)
INVERTED = (
    "Turned round it is an attack; or the inputs are wrong, and nothing here holds. Look at them first: "
    "are members among the public images, were members and holdout split at random?"
)

UNREAD = "Nobody looked for text in the released pixels (why: see what was not tested); look at the images before they leave."

Checked = tuple[bool, str]  # whether all is well, and what to tell people


@dataclass(frozen=True, kw_only=True, slots=True)
class HitFigures:
    """Members found at a rate of false alarms, exact.

    Attributes:
        fpr: Share of holdout patients taken for members, at most; only where holdout x fpr is at least 1 (``statistics.hit_rate``).
        tpr: Share of members found.
        surely: Lower end that holds for all hit rates of the audit together (``Hits.surely``).
    """

    fpr: float
    tpr: float
    surely: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackFigures:
    """What one attack found, exact.

    Attributes:
        name: Short stable name.
        kind: What the attacker holds.
        auc: Chance that a member scores above a holdout patient.
        members: Member patients attacked.
        holdout: Holdout patients attacked.
        hits: At each rate of false alarms that can be measured.
        outright: Share of members above every holdout patient.
        reach: Largest AUC that the scores allow, however they were split (``statistics.best_auc``).
        diagnostic: Shown and never deciding.
    """

    name: str
    kind: Literal["white-box", "black-box"]
    auc: float
    members: int
    holdout: int
    hits: tuple[HitFigures, ...] = ()
    outright: float = 0.0
    reach: float = 1.0
    diagnostic: bool = False

    def chances(self, mu: float) -> list[float]:
        """Chance of the AUC, of the members found outright, then of each hit rate, under a leak of at most ``mu``."""
        members, holdout = self.members, self.holdout
        found = [hit_chance(hit.tpr, fpr=hit.fpr, members=members, holdout=holdout, mu=mu) for hit in self.hits]
        first = hit_chance(self.outright, fpr=NONE_PASS, members=members, holdout=holdout, mu=mu)
        return [auc_chance(self.auc, members=members, holdout=holdout, mu=mu), first, *found]

    def turned_chance(self, mu: float) -> float:
        """Chance of the AUC of the attack turned round, which takes the lowest scores for members, under a leak of at most ``mu``."""
        return auc_chance(1 - self.auc, members=self.members, holdout=self.holdout, mu=mu)

    def beyond(self, mu: float) -> tuple[HitFigures, ...]:
        """Hit rates that even by their lower end are above what a leak of ``mu`` allows."""
        return tuple(hit for hit in self.hits if hit.surely > hit_rate_of(mu, fpr=hit.fpr) + SLACK)

    @property
    def sound(self) -> bool:
        """Whether every figure is one."""
        hits = all(0 < hit.fpr < 1 and 0 <= hit.surely <= 1 and 0 <= hit.tpr <= 1 and self.holdout * hit.fpr >= 1 - SLACK for hit in self.hits)
        return 0 <= self.auc <= 1 and 0 <= self.reach <= 1 and 0 <= self.outright <= 1 and min(self.members, self.holdout) >= 2 and hits


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyFigures:
    """What one search for copies found, exact.

    Attributes:
        count: Released images that are copies of a member's image.
        holdout_count: The same against holdout patients, from whom nothing was learnt: chance.
        compared: Released (or generated) images compared.
        threshold: Distance below which an image counts as a copy.
    """

    count: int
    holdout_count: int
    compared: int
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is promised, and to how many.

    Attributes:
        epsilon: Claim, if it comes from composed Gaussian mechanisms as ours does; None for any other or no claim.
        delta: Claim.
        members: Member patients.
    """

    epsilon: float | None
    delta: float | None
    members: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence(Claim):
    """All that the gate judges: the claim, and what was found. Exact: stays in the hospital.

    Attributes:
        attacks: Every attack that was run.
        near_copies: Copies by pixels as they are.
        registered_copies: Copies after registration.
        holdout: Holdout patients.
        text: Text in the released pixels; None: not looked for.
    """

    attacks: tuple[AttackFigures, ...]
    near_copies: CopyFigures
    registered_copies: CopyFigures
    holdout: int
    text: PixelText | None = None

    @classmethod
    def of(cls, findings: Findings) -> "Evidence":
        """What counts of a suite's findings."""
        attacks = tuple(
            AttackFigures(
                name=a.name,
                kind=a.kind,
                auc=a.auc,
                members=a.members,
                holdout=a.holdout,
                hits=tuple(HitFigures(fpr=hit.fpr, tpr=hit.tpr, surely=hit.surely) for hit in a.hits),
                outright=a.outright,
                reach=a.reach,
                diagnostic=a.diagnostic,
            )
            for a in findings.attacks
        )
        return cls(
            epsilon=findings.epsilon,
            delta=findings.delta,
            attacks=attacks,
            near_copies=_figures(findings.near_copies),
            registered_copies=_figures(findings.registered_copies),
            members=findings.members,
            holdout=findings.holdout,
            text=findings.text,
        )


def _figures(found: CopyFinding) -> CopyFigures:
    return CopyFigures(count=found.count, holdout_count=found.holdout_count, compared=found.compared, threshold=found.threshold)


def judge(evidence: Evidence, policy: GatePolicy) -> GateVerdict:
    """Judge exact findings. Pure, and the same everywhere: chances that are simulated have a fixed seed.

    Guarantees: a larger AUC from 1/2 on, a larger hit rate or number of copies, or fewer holdout patients set aside, never turns *refuse*
    into *release*. Nor does a tighter threshold, but for one thing that is meant: a higher ``family_level``, or a lower ``tolerated_auc``
    or ``weakest_promise``, makes the same audit catch more, which question 4 counts. *Release* proves nothing of attacks that were not run.

    Returns:
        *refuse* with every reason against, and what the refusal itself tells; or *release* with everything that was checked.
    """
    written = (True, UNREAD) if evidence.text is None else evidence.text.judged()
    checked = [*_attacked(evidence, policy), *_copied(evidence, policy), _held_out(evidence.holdout, policy), written]
    if against := tuple(text for good, text in checked if not good):
        of_images_alone = against == (written[1],)  # then no patient's own figure decided
        return GateVerdict(verdict="refuse", reasons=against if of_images_alone else (*against, STAYS))
    return GateVerdict(verdict="release", reasons=tuple(text for _, text in checked))


def promised_mu(claim: Claim, policy: GatePolicy) -> float | None:
    """Gaussian leak that the claim allows at all; None where there is no claim that counts."""
    epsilon, delta = claim.epsilon, claim.delta
    if epsilon is None or delta is None or not 0 < epsilon <= policy.weakest_promise or not 0 < delta * max(claim.members, 1) <= 1:
        return None
    return gdp_mu(epsilon, delta)


def granted_mu(claim: Claim, policy: GatePolicy) -> float:
    """Gaussian leak above which no attack may surely lie."""
    promise = promised_mu(claim, policy)
    return 0.0 if promise is None else min(promise, mu_of(policy.tolerated_auc))


def _attacked(evidence: Evidence, policy: GatePolicy) -> Iterator[Checked]:
    deciding = [attack for attack in evidence.attacks if not attack.diagnostic]
    sound = [attack for attack in deciding if attack.sound and attack.members <= evidence.members and attack.holdout <= evidence.holdout]
    for attack in deciding:
        if attack not in sound:
            yield False, f"The {_named(attack)} has figures that are not numbers, or more patients than there are."
    if not sound:
        yield False, "No attack was run that decides, so nothing is known of what the release gives away."
        return
    promise, granted, seen = promised_mu(evidence, policy), granted_mu(evidence, policy), _sights(sound, evidence, policy)
    surely = _significant(sound, granted, ABOVE * policy.family_level)
    broken = _significant(sound, promise, ABOVE * policy.family_level) if promise is not None else [()] * len(sound)
    turned = holm([attack.turned_chance(granted) for attack in sound], level=TURNED * policy.family_level)
    for attack, above, ceiling, below, own in zip(sound, surely, broken, turned, seen, strict=True):
        beyond = () if promise is None else attack.beyond(promise)
        if any(above) or beyond:
            yield False, f"{_against(attack, above, beyond, granted)} {_beyond(promise, any(ceiling) or bool(beyond))}"
        elif below:
            yield False, f"The {_named(attack)} surely ranks members below patients never seen, AUC {attack.auc:.3f}. {INVERTED}"
        else:
            yield True, _passed(attack, granted, own)
    yield _sighted(seen, policy)
    if not any(attack.kind == "white-box" and own.auc is not None for attack, own in zip(sound, seen, strict=True)):
        yield True, "No attack that could see had the adapted network: what is said here holds for the images alone, and the network must not leave."


def _passed(attack: AttackFigures, granted: float, own: Sight) -> str:
    blind = " It could not be relied on to catch any leak, so that this says nothing." if own.auc is None else ""
    return f"The {_named(attack)} reached AUC {attack.auc:.3f}, not surely above the {auc_of(granted):.3f} that is granted.{blind}"


def _significant(attacks: Sequence[AttackFigures], mu: float, level: float) -> list[tuple[bool, ...]]:
    """For each attack, which of its figures are surely above a leak of ``mu``, all attacks together."""
    chances = [attack.chances(mu) for attack in attacks]
    flags = iter(holm([chance for each in chances for chance in each], level=level))
    return [tuple(next(flags) for _ in each) for each in chances]


def _against(attack: AttackFigures, above: Sequence[bool], beyond: Sequence[HitFigures], granted: float) -> str:
    figures = [f"AUC {attack.auc:.3f}, where {auc_of(granted):.3f} is granted"]
    figures += [f"{attack.outright:.1%} of members found before the first of {attack.holdout} holdout patients"]
    figures += [
        f"{hit.tpr:.1%} of members found at {hit.fpr:.1%} false alarms, where {hit_rate_of(granted, fpr=hit.fpr):.1%} is granted"
        for hit in attack.hits
    ]
    sure = [figure for figure, is_above in zip(figures, above, strict=True) if is_above]
    sure += [f"at least {hit.surely:.1%} of members found at {hit.fpr:.1%} false alarms, more than the promise allows" for hit in beyond]
    return f"The {_named(attack)} surely tells members from patients never seen: {'; '.join(sure)}."


def _beyond(promise: float | None, broken: bool) -> str:
    if promise is None:
        return "No promise that counts bounds what a better attack would find. If the split was not at random by patient, look there first."
    if broken:
        return f"The promise allows at most AUC {auc_of(promise):.3f}. The promise is broken: look for the fault before anything else."
    return f"It may lie within the promise, whose ceiling is AUC {auc_of(promise):.3f}, but no attack should come so far on noise that is right."


def _sights(attacks: Sequence[AttackFigures], evidence: Evidence, policy: GatePolicy) -> list[Sight]:
    """What each attack would have caught."""
    tests, null = sum(2 + len(attack.hits) for attack in attacks), auc_of(granted_mu(evidence, policy))
    return [
        sight(members=attack.members, holdout=attack.holdout, level=ABOVE * policy.family_level, tests=tests, null=null, reach=attack.reach)
        for attack in attacks
    ]


def _sighted(seen: Sequence[Sight], policy: GatePolicy) -> Checked:
    """Whether the attack that sees most would have caught what the policy demands."""
    best = min(seen, key=lambda one: 2.0 if one.auc is None else one.auc)
    good = best.auc is not None and best.auc <= policy.must_catch_auc
    rule = (
        "" if good else f" An audit must catch AUC {policy.must_catch_auc:.3f} to count: attack more patients, or with attacks whose scores differ."
    )
    return good, f"{in_words(best)}{rule}"


def _copied(evidence: Evidence, policy: GatePolicy) -> Iterator[Checked]:
    undone = " once shift, crop, flip and gray map are undone"
    for found, allowed, how in ((evidence.near_copies, policy.near_copies, ""), (evidence.registered_copies, policy.registered_copies, undone)):
        good = isfinite(found.threshold) and found.compared > 0 and found.count <= allowed
        yield (
            good,
            (
                f"{found.count} of {found.compared} images compared are near copies of a member's image{how}; {allowed} are allowed. "
                f"Chance gave {found.holdout_count} of holdout patients' images."
            ),
        )


def _held_out(holdout: int, policy: GatePolicy) -> Checked:
    floor = policy.smallest_holdout
    return holdout >= floor, f"The holdout has {holdout} patients; an audit needs at least {floor} to say anything."


def _named(attack: AttackFigures) -> str:
    return f"{attack.kind} attack '{attack.name[:60]}'"


def decide(audit: Findings | TravellingAudit, policy: GatePolicy) -> GateVerdict:
    """Judge an audit: the hospital its exact findings (``judge``), the hub the figures that travel.

    The hub judges as far as that can be done without exact counts, and the verdict says what it rests on: *release* only if no attack's
    interval lies wholly above the ceiling that epsilon and delta allow, every figure is a number, and copies and holdout are said to
    keep within the policy. A verdict of *release* proves nothing about attacks that were not run.

    Returns:
        *refuse* with every reason against; or *release* with everything that was checked.
    """
    if isinstance(audit, Findings):
        return judge(Evidence.of(audit), policy)
    findings = [*_attacks(audit), *_travelling(audit, policy)]
    if against := tuple(text for good, text in findings if not good):
        return GateVerdict(verdict="refuse", reasons=against)
    return GateVerdict(verdict="release", reasons=tuple(text for _, text in findings))


def _attacks(audit: TravellingAudit) -> Iterator[Checked]:
    """Whether each attack stays below the ceiling, computed here from epsilon and delta."""
    if not audit.attacks:
        yield False, "No attack was run, so nothing is known of what the release gives away."
    try:
        allowed = ceiling_auc(audit.epsilon, audit.delta)
    except ConfigError:
        allowed = nan
    if not 0.5 <= allowed < 1:
        yield False, "The audit's epsilon and delta promise nothing that could be tested."
        return
    for attack in audit.attacks:
        yield _judged(attack, allowed)


def _judged(attack: TravellingAttack, allowed: float) -> Checked:
    had = "with and without the adapted network" if attack.kind == "white-box" else "on the images alone"
    name = f"figure '{attack.name[:60]}' of attacks {had}"
    figures = (attack.auc, attack.low, attack.high, attack.ceiling)
    if not all(isfinite(figure) for figure in figures) or not 0 <= attack.low <= attack.high <= 1:
        return False, f"The {name} has figures that are not numbers, or an interval upside down."
    if attack.ceiling > allowed + SLACK:
        return False, f"The {name} is held against a ceiling of {attack.ceiling:.3f}; epsilon and delta allow {allowed:.3f}."
    if attack.low > attack.ceiling:
        return False, (
            f"The {name} tells members from others with AUC {attack.auc:.3f}, surely above {attack.low:.3f}; "
            f"the promise allows {attack.ceiling:.3f}. The promise is broken: look for the fault before anything else."
        )
    return True, f"The {name} reached AUC {attack.auc:.3f} ({attack.low:.3f} to {attack.high:.3f}); the promise allows {attack.ceiling:.3f}."


def _travelling(audit: TravellingAudit, policy: GatePolicy) -> Iterator[Checked]:
    """What the hub can judge: the exact counts stay in the hospital."""
    told = "is" if audit.near_copies_within else "is not"
    yield audit.near_copies_within, f"The number of near copies stays in the hospital, which says that it {told} within its limit; not checked here."
    floor = policy.smallest_holdout
    yield (
        audit.smallest_holdout >= floor,
        f"The number of holdout patients stays in the hospital, whose floor is {audit.smallest_holdout}; the floor here is {floor}.",
    )
