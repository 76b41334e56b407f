"""What a hub finds without patients: repeats, sites, labels, balance; and it says what it did not look at."""

import numpy as np
import pytest

from busgen_core.errors import InputError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_privacy.claims import Claim
from busgen_privacy.ocr import rapid
from busgen_privacy.ocr.find import standard_engine
from busgen_privacy.reaudit import Public, look, reaudit, repeated, shared
from tests.privacy.lettering import burned_in

LESIONS = (Pathology.BENIGN, Pathology.MALIGNANT)
LABELS = [LESIONS[i % 2] for i in range(60)]
IMAGES = np.stack([p.image for p in simulate_batch(LABELS, size=64, seeds=list(range(100, 160)))])
PUBLIC = np.stack([p.image for p in simulate_batch(LABELS, size=64, seeds=list(range(400, 460)))])
ASKED = dict.fromkeys(LESIONS, 30)


def test_a_sound_release_has_no_remarks_but_for_what_was_not_run() -> None:
    """Balanced, without repeats and alike to public phantoms: nothing to look at, a KID interval around 0, and what was left out."""
    public = Public(images=PUBLIC, labels=LABELS, patients=[f"p{i}" for i in range(60)], scanners=["a", "b"] * 30)
    found = reaudit(IMAGES, LABELS, asked=ASKED, others={}, public=public, most_read=6, seed=1)
    assert [text for text in found.remarks if "label" not in text] == []
    assert found.kid_low is not None
    assert found.kid_high is not None
    assert found.kid_low < 0.05
    assert found.kid_public_low is not None
    assert found.kid_public_high is not None
    assert found.kid_public_low < 0 < found.kid_public_high
    assert found.near_inside == 0
    assert found.text is not None
    assert (found.text.images, found.text.looked, found.text.examples) == (60, 6, ())
    assert any("no other release" in text for text in found.not_run)


def test_repeats_inside_and_between_releases_are_counted() -> None:
    """Slightly changed repeats count once for each image that has one; other phantoms do not."""
    noisy = np.clip(IMAGES[:5].astype(int) + np.random.default_rng(0).integers(-2, 3, IMAGES[:5].shape), 0, 255).astype(np.uint8)
    assert repeated(np.concatenate([IMAGES, noisy])) == 10
    assert repeated(IMAGES) == 0
    assert shared(IMAGES, noisy) == 5
    assert shared(IMAGES, PUBLIC) == 0
    found = reaudit(np.concatenate([IMAGES, noisy]), [*LABELS, *LABELS[:5]], asked=ASKED, others={"other-1": noisy}, public=None, most_read=1, seed=1)
    assert (found.near_inside, found.near_others) == (10, {"other-1": 10})
    assert any("repeats itself" in text for text in found.remarks)
    assert any("other-1" in text for text in found.remarks)
    assert any("asked for" in text for text in found.remarks)


def test_a_site_with_a_mark_of_its_own_is_told() -> None:
    """A release of brighter images is told from the others; one of the same kind is not."""
    brighter = np.clip(PUBLIC.astype(int) + 60, 0, 255).astype(np.uint8)
    marked = reaudit(IMAGES, LABELS, asked=ASKED, others={"other-1": brighter}, public=None, most_read=1, seed=1)
    plain = reaudit(IMAGES, LABELS, asked=ASKED, others={"other-1": PUBLIC}, public=None, most_read=1, seed=1)
    assert marked.site is not None
    assert plain.site is not None
    assert marked.site.accuracy > 0.9 > plain.site.accuracy
    assert plain.site.accuracy <= plain.site.chance_high + 0.1


def test_text_and_broken_claims_are_remarked() -> None:
    """A planted name is counted and a claim that does not hold is named; without claims the re-audit says that it had none."""
    marked = IMAGES.copy()
    marked[3], _ = burned_in(IMAGES[3], "DOE JANE", height=6, at=(4, 8))
    claims = (Claim(what="Epsilon", good=False, found="too low"), Claim(what="Bytes", good=True, found="20 files"))
    found = reaudit(marked[:4], LABELS[:4], asked=dict.fromkeys(LESIONS, 2), others={}, public=None, claims=claims, seed=1)
    assert found.text is not None
    assert found.text.identifying == 1
    assert found.claims == claims
    assert [text.partition(":")[0] for text in found.remarks[:1]] == ["A claim does not hold"]
    assert any("reads like a name" in text for text in found.remarks)
    alone = reaudit(IMAGES[:4], LABELS[:4], asked=ASKED, others={}, public=None, most_read=1, seed=1)
    assert any("only its images were given" in text for text in alone.not_run)


def test_without_text_recognition_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no engine is installed the re-audit says so and finds everything else."""
    monkeypatch.setattr(rapid, "RECOGNISER", "absent.onnx")
    standard_engine.cache_clear()
    found = reaudit(IMAGES[:6], LABELS[:6], asked=ASKED, others={}, public=None, seed=1)
    assert found.text is None
    assert any(text.startswith("Text in the pixels: rapidocr is installed without its models") for text in found.not_run)


def test_an_image_s_features_do_not_depend_on_the_others() -> None:
    """The encoder batches by itself: many images and one give the same features."""
    assert np.allclose(look(IMAGES)[7], look(IMAGES[7:8])[0], atol=1e-5)


def test_too_few_public_patients_leave_out_quality_alone() -> None:
    """With three public patients there is no kernel distance, which is said; the rest is looked at."""
    few = Public(images=PUBLIC[:6], labels=LABELS[:6], patients=["a", "a", "b", "b", "c", "c"])
    found = reaudit(IMAGES, LABELS, asked=ASKED, others={}, public=few, most_read=2, seed=1)
    assert found.kid is None
    assert any(text.startswith("Quality: ") for text in found.not_run)
    assert found.near_inside == 0


def test_bad_input_is_named() -> None:
    """Images without labels, none at all, or of another size."""
    for images, labels, others in ((IMAGES, LABELS[:3], {}), (IMAGES[:0], [], {}), (IMAGES, LABELS, {"o": PUBLIC[:, :32, :32]})):
        with pytest.raises(InputError):
            reaudit(images, labels, asked=ASKED, others=others, public=None, most_read=1, seed=1)
