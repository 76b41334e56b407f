"""The suite as a whole, on phantoms: a release that leaks is refused for the right reasons, one that does not is not, and bad input is named."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from busgen_core.errors import InputError
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_privacy.attacked import Release, check
from busgen_privacy.attacks.base import Access
from busgen_privacy.cohort import Cohort, normalised
from busgen_privacy.findings import Findings
from busgen_privacy.findings_report import render_findings
from busgen_privacy.gate import decide
from busgen_privacy.lookalikes import SAME
from busgen_privacy.policy import GatePolicy
from busgen_privacy.scored import coarse
from busgen_privacy.suite import Embedded, _black, _scanners, run
from tests.privacy.lettering import burned_in
from tests.privacy.small import small_foundation
from tests.privacy.test_report import Outline

POLICY = GatePolicy()
FEW = 4
SCHEMA = Path(__file__).parents[2] / "docs" / "audit.schema.json"


def phantoms(count: int, *, first: int) -> NDArray[np.uint8]:
    """Benign and malignant phantoms in turn, uint8 [count, 64, 64]."""
    labels = [(Pathology.BENIGN, Pathology.MALIGNANT)[i % 2] for i in range(count)]
    return np.stack([p.image for p in simulate_batch(labels, size=64, seeds=list(range(first, first + count)))])


def people(images: NDArray[np.uint8], prefix: str) -> Cohort:
    """A patient an image."""
    count = len(images)
    return Cohort(images, (Pathology.BENIGN,) * count, (None,) * count, tuple(f"{prefix}{i:03d}" for i in range(count)))


@cache
def sides() -> tuple[Cohort, Cohort, NDArray[np.uint8], NDArray[np.uint8]]:
    """Members, holdout, public images and a clean release."""
    images = phantoms(220, first=5_000)
    return people(images[:40], "m"), people(images[40:80], "h"), images[80:140], images[140:]


def audited(released: NDArray[np.uint8], *, most_read: int = FEW, **claim: float) -> Findings:
    """The suite on a release of these images; few of them are read for text, which takes longer than all else."""
    members, holdout, public, _ = sides()
    release = Release(images=released, **claim)  # type: ignore[arg-type]
    return run(release, members, holdout, public, most_read=most_read, policy=POLICY, draws=1, seed=1, progress=lambda *_: None)


@cache
def clean() -> Findings:
    """Findings on a release that nobody learnt."""
    return audited(sides()[3], epsilon=8.0, delta=1e-5)


@cache
def leaky() -> Findings:
    """Findings on a release of which half are members' images, slightly changed."""
    released = sides()[3].copy()
    members = sides()[0].images
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4, members.shape)
    released[:40] = np.clip(members + noise, 0, 255).astype(np.uint8)
    return audited(released)


def test_a_release_that_learnt_nobody_passes() -> None:
    """Phantoms that nobody's images were used for: no attack is significant, no copies, and the gate would release."""
    verdict = decide(clean(), POLICY)
    assert verdict.verdict == "release", verdict.reasons
    assert clean().registered_copies.count == 0


def test_a_release_of_copies_is_refused_for_the_right_reasons() -> None:
    """Forty copies are counted before and after registration, attacks see members, and every reason is given."""
    found = leaky()
    assert found.near_copies.count == found.registered_copies.count == 40
    assert found.near_copies.holdout_count == 0
    assert {pair.member for pair in found.near_copies.closest} <= set(range(40))
    verdict = decide(found, POLICY)
    assert verdict.verdict == "refuse"
    words = " ".join(verdict.reasons)
    assert all(text in words for text in ("gan-leaks", "40 of 80", "gray map"))


def test_copies_are_seen_as_an_attack_by_patient() -> None:
    """The distance after registration tells members from holdout where members were copied, and not where nobody was."""
    seen, unseen = ({a.name: a for a in found.attacks}["registration"] for found in (leaky(), clean()))
    assert seen.low > 0.9
    assert not seen.diagnostic
    assert unseen.low < 0.5 < unseen.high


def test_findings_say_how_far_copies_were_looked_for_and_by_which_seed() -> None:
    """Fewer than ten times the release were looked at: what was not run says how many; the seed is kept."""
    assert "Copies among 10 times the release: 80 images were looked at, 1.0 times the release." in clean().not_run
    assert clean().seed == 1


def test_a_name_in_the_released_pixels_refuses() -> None:
    """A release with one name written into an image is refused for that alone, and the reason is not called a bit about patients."""
    released = sides()[3][:24].copy()
    released[7] = burned_in(released[7], "SMITH", height=8, at=(6, 6))[0]
    found = audited(released, most_read=len(released), epsilon=8.0, delta=1e-5)
    assert found.text is not None
    assert (found.text.identifying, found.text.looked) == (1, len(released))
    verdict = decide(found, POLICY)
    assert verdict.verdict == "refuse"
    assert verdict.reasons == (found.text.judged()[1],)
    assert "SMITH" not in found.model_dump_json() + " ".join(verdict.reasons)


def test_findings_follow_the_published_schema() -> None:
    """docs/audit.schema.json is the schema of what is written, and findings read back as they were."""
    assert json.loads(SCHEMA.read_text()) == Findings.model_json_schema()
    text = leaky().model_dump_json()
    assert Findings.model_validate_json(text) == leaky()


def test_the_report_says_first_what_the_gate_says() -> None:
    """Verdict and reasons first, then facts, attacks and copies; well-formed, nothing from elsewhere, and every attack is there."""
    found, pair = leaky(), (encode_png(sides()[0].images[0]), encode_png(sides()[3][0]))
    verdict = decide(found, POLICY)
    text = render_findings(found, verdict=verdict, facts={"Release": "leaky"}, pairs=[pair])
    outline = Outline(text)
    assert outline.open == []
    places = [outline.words.index(word) for word in ("must not leave", verdict.reasons[-1], "leaky", "no privacy promise", "What was not tested")]
    assert places == sorted(places)
    assert all(attack.name in outline.words for attack in found.attacks)
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert len(outline.addresses) == 2
    assert "<script" not in text


def test_a_claim_has_its_own_words_and_curve() -> None:
    """With a claim the report shows it, its ceiling and its curve; without one it says that nothing was promised."""
    verdict = decide(clean(), POLICY)
    words = Outline(render_findings(clean(), verdict=verdict, facts={})).words
    assert "3.0 thousand times" in words
    assert "the most that the promise allows" in words
    assert "no privacy promise" not in words


def test_what_does_not_spoil_the_figures_is_reported() -> None:
    """Nineteen holdout patients are too few for the gate, which says so; images released twice are counted."""
    members, holdout, public, released = sides()
    few, twice = people(holdout.images[:19], "h"), np.concatenate([released[:20], released[:3]])
    found = run(Release(images=twice), members, few, public, most_read=FEW, policy=POLICY, draws=1, seed=1, progress=lambda *_: None)
    assert found.duplicates == 3
    verdict = decide(found, POLICY)
    assert verdict.verdict == "refuse"
    assert "The holdout has 19 patients; an audit needs at least 20 to say anything." in verdict.reasons


def saved_again(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same images after JPEG of quality 75, a little brighter."""
    out = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "jpeg", quality=75)
        out.append(np.clip(np.asarray(Image.open(stream)).astype(float) * 1.03, 0, 255).astype(np.uint8))
    return np.stack(out)


def both(one: Cohort, other: Cohort) -> Cohort:
    """The patients of two cohorts."""
    return Cohort(np.concatenate([one.images, other.images]), one.classes + other.classes, one.boxes + other.boxes, one.patients + other.patients)


BAD = {
    "a patient on both sides": (lambda m, h, p, r: (m, people(h.images, "m"), p, r), "members and holdout at once"),
    "members listed among the holdout": (lambda m, h, p, r: (m, both(h, m), p, r), "40 patients are members and holdout at once"),
    "an image on both sides": (lambda m, h, p, r: (m, people(np.concatenate([h.images, m.images[:1]]), "h"), p, r), "of members and of holdout"),
    "one holdout patient": (lambda m, h, p, r: (m, people(h.images[:1], "h"), p, r), "two holdout"),
    "another size": (lambda m, h, p, r: (m, h, p, r[:, :32, :32]), "of one size"),
    "nothing released": (lambda m, h, p, r: (m, h, p, r[:0]), "of one size"),
    "no public images": (lambda m, h, p, r: (m, h, p[:0], r), "of one size"),
    "an image on both sides, saved again": (lambda m, h, p, r: (m, people(saved_again(m.images[:3]), "h"), p, r), "3 images are of members"),
    "a member among the public images": (lambda m, h, p, r: (m, h, np.concatenate([p, m.images[:2]]), r), "2 images that attacks"),
    "members among the public images, saved again": (lambda m, h, p, r: (m, h, np.concatenate([p, saved_again(m.images)]), r), "40 images that"),
    "a holdout patient among the public images": (lambda m, h, p, r: (m, h, np.concatenate([p, h.images[-1:]]), r), "1 images that attacks"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name: str) -> None:
    """What would make every figure meaningless is refused before anything is measured."""
    change, words = BAD[name]
    members, holdout, public, released = change(*sides())
    with pytest.raises(InputError, match=words):
        run(Release(images=released), members, holdout, public, policy=POLICY, draws=1, seed=1, progress=lambda *_: None)


def test_different_people_are_not_taken_for_one() -> None:
    """No two of 220 phantoms are as near as an image saved again is: nothing is refused that is sound."""
    flat = normalised(phantoms(220, first=5_000))
    assert (1 - flat @ flat.T)[np.triu_indices(len(flat), 1)].min() > 3 * SAME


def test_a_patient_among_the_public_ones_is_refused() -> None:
    """A key that names a member, or a holdout patient, among the public patients too is an error that says how to mend it."""
    members, holdout, public, released = sides()
    groups = ["p"] * (len(public) - 2) + ["m001", "h003"]
    with pytest.raises(InputError, match="2 patients of the public images are members or holdout patients too"):
        check(Release(images=released), members, holdout, public, groups)
    check(Release(images=released), members, holdout, public, ["p"] * len(public))


def test_a_network_that_did_not_change_is_refused() -> None:
    """White-box access whose adapted network is the reference, or a copy of it, is an error: all six attacks would give 1/2."""
    members, holdout, public, released = sides()
    reference, copied, changed = small_foundation(), small_foundation(), small_foundation(seed=1)
    for adapted in (reference, copied):
        access = Access(adapted=adapted.network, reference=reference.network, scheduler=reference.scheduler)
        with pytest.raises(InputError, match="one network, number for number"):
            check(Release(images=released, access=access), members, holdout, public)
    sound = Access(adapted=changed.network, reference=reference.network, scheduler=reference.scheduler)
    check(Release(images=released, access=sound), members, holdout, public)


def test_a_verifier_that_guesses_is_not_asked() -> None:
    """Public patients whose images were dealt out at random teach nothing: re-identification is named as not run, with its AUC."""
    members, holdout, public, released = sides()
    embedded = Embedded.of(released, members, holdout, public, lambda *_: None)
    dealt = np.random.default_rng(0).permutation(len(public)) % 30
    attacks, why = _black(embedded, [f"p{i}" for i in dealt])
    assert "reidentification" not in {attack.name for attack in attacks}
    assert "no better than guessing" in why[0]


def test_equal_scores_are_named() -> None:
    """On the clean release nine patients of ten have one Monte-Carlo score: it catches nothing, and that is told; on the leaky one it sees."""
    silent, seeing = ({a.name: a for a in found.attacks}["monte-carlo"] for found in (clean(), leaky()))
    assert silent.caught is None
    assert silent.reach < 0.7 < seeing.reach
    assert seeing.caught is not None
    assert sum(text.startswith("monte-carlo: it ran") for text in clean().not_run) == 1
    assert not any("it ran" in text for text in leaky().not_run)


def test_both_bounds_and_the_exact_interval_are_found() -> None:
    """At perfect separation the bootstrap's interval is one point; the exact one is not, and the bound for any mechanism is above 0."""
    seen = {a.name: a for a in leaky().attacks}["registration"]
    assert (seen.auc, seen.low) == (1.0, 1.0)
    assert 0.85 < seen.exact_low < 0.95
    assert seen.exact_high == 1
    assert seen.outright == 1
    assert 0 < seen.epsilon_any < seen.epsilon_low


def test_a_threshold_at_its_floor_is_named() -> None:
    """Where different patients' images are nearly alike, only the nearest count as copies, and the report says what may be missed."""
    assert coarse(0.1, 0.3) == ()
    both = coarse(0.02, 0.05)
    assert [("as they are" in both[0], "0.02" in both[0]), ("after registration" in both[1], "0.05" in both[1])] == [(True, True)] * 2


def test_the_scanner_that_a_release_looks_like_is_named() -> None:
    """Public images of two scanners, one of them bright; a release that is bright throughout: the finding and the report name that one.

    Without patients or scanners the report says that nobody looked.
    """
    members, holdout, public, released = sides()
    bright = np.arange(len(public)) % 2 == 0

    def lit(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(np.clip(images * 1.6 + 40, 0, 255), np.uint8)

    shown = np.where(bright[:, None, None], lit(public), public)
    groups, scanners = [f"p{i}" for i in range(len(public))], ["bright" if is_bright else "plain" for is_bright in bright]

    release, known = (
        Release(images=lit(released), epsilon=8.0, delta=1e-5),
        {"groups": groups, "scanners": scanners, "before": released, "most_read": FEW},
    )
    with_leak = run(release, members, holdout, shown, **known, policy=POLICY, draws=1, seed=1, progress=lambda *_: None)  # type: ignore[arg-type]
    leak = with_leak.scanners
    assert leak is not None
    assert leak.before is not None
    assert leak.before["bright"] < 0.3  # the generator before it learnt: plain
    assert leak.shares["bright"] > 0.7
    assert leak.accuracy > leak.chance_high
    page = render_findings(with_leak, verdict=decide(with_leak, POLICY), facts={})
    assert "only a share that has grown" in page
    assert '<th scope="row">bright</th>' in page
    alone = with_leak.model_copy(update={"scanners": leak.model_copy(update={"before": None})})
    assert "says nothing of members by itself" in render_findings(alone, verdict=decide(alone, POLICY), facts={})
    assert clean().scanners is None
    assert "Leak of scanners: nothing names a patient and a scanner for each public image." in clean().not_run
    embedded = Embedded.of(released[:2], members, holdout, shown, lambda *_: None)
    assert _scanners(embedded, groups[:1] * len(public), scanners, None, seed=0)[1][0].startswith("Leak of scanners: a classifier needs two labels")
