"""The comparison as a whole: floor, matched sizes, report, refusals. A made-up encoder, so no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from busgen_core.errors import ConfigError, CorruptImageError, InputError
from busgen_core.quality.compare import compare
from busgen_core.quality.floor import draw_splits, over_splits
from busgen_core.quality.plot import draw
from busgen_core.quality.report import QualityReport
from busgen_core.quality.samples import Indices

Frames = NDArray[np.uint8]


def frames(count: int, *, seed: int, level: float = 120, per: int = 1) -> tuple[Frames, list[str]]:
    """Noise frames whose level and slope vary from patient to patient."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(-(-count // per)), per)[:count]
    own = rng.normal(size=(patients.max() + 1, 2))[patients]
    slope = np.linspace(-1, 1, 32)[None, :, None] * own[:, 1, None, None] * 8
    noise = gaussian_filter1d(rng.normal(size=(count, 32, 32)), 0.7, axis=2) * 25
    images = (level + own[:, 0, None, None] * 10 + slope + noise).clip(0, 255)
    return images.round().astype(np.uint8), [f"p{i}" for i in patients]


def summary(images: Frames, /) -> NDArray[np.float32]:
    """Eight numbers of a frame, roughly of deviation 1."""
    rows = images.astype(np.float64).reshape(len(images), 4, -1)
    table = np.concatenate([(rows.mean(axis=2) - 120) / 10, rows.std(axis=2) / 5 - 5], axis=1)
    return table.astype(np.float32)


@pytest.fixture(scope="module")
def like() -> QualityReport:
    (real, groups), (fake, _) = frames(160, seed=1, per=2), frames(120, seed=2)
    return compare(real, fake, encoder=summary, groups=groups, seed=1, splits=8, quiet=True)


def test_sets_of_one_kind_stay_at_the_floor(like: QualityReport) -> None:
    """Fakes from the real distribution: KID's interval holds 0, no measure is worse than the floor in every split."""
    kid = like.measure("kid")
    assert kid.low <= 0 <= kid.high
    assert all(0.02 < m.worse_share < 0.98 for m in like.measures if m.name in ("kid", "coverage", "density", "precision"))


def test_other_sets_rise_above_the_floor() -> None:
    """Fakes of another level are worse than the floor in every split, and no interval of KID holds 0."""
    (real, groups), (fake, _) = frames(120, seed=1, per=2), frames(80, seed=2, level=150)
    report = compare(real, fake, encoder=summary, groups=groups, seed=1, splits=6, quiet=True)
    for name in ("kid", "coverage", "recall"):
        assert report.measure(name).worse_share == 1.0, name
    assert report.measure("kid").low > 0
    assert report.measure("kid").matched.low > report.measure("kid").floor.high


def test_lost_grain_is_seen_without_any_encoder() -> None:
    """Blurred fakes stand out in the speckle measures, whatever the encoder sees."""
    (real, _), (fake, _) = frames(80, seed=1), frames(80, seed=2)
    blurred = gaussian_filter(fake.astype(float), (0, 1, 1)).round().astype(np.uint8)
    report = compare(real, blurred, encoder=summary, seed=1, splits=6, quiet=True)
    assert report.measure("lateral_px").low > 0
    assert report.measure("axial_px").worse_share == 1.0
    assert report.measure("gray_snr").value > 0


def test_samples_of_a_split_are_of_one_size_and_share_no_patient() -> None:
    """Floor and matched value come from equally many images; a patient is never on both sides; halves differ between splits."""
    groups = np.repeat(np.arange(50), [1, 2, 3, 2, 2] * 10)
    splits = draw_splits(groups, 45, repeats=10, seed=1)
    assert {len(part) for split in splits for part in split} == {min(45, min(len(s.here) for s in splits))}
    assert all(not set(groups[s.here]) & set(groups[s.there]) for s in splits)
    assert all(len(np.unique(part)) == len(part) and part.max() < 100 for s in splits for part in s)
    assert all(s.fake.max() < 45 for s in splits)
    assert len({tuple(s.here) for s in splits}) == 10
    halves = draw_splits(groups, 1000, repeats=10, seed=1)
    assert min(len(s.here) for s in halves) >= 47  # of 100, cut where it is nearest to the middle


def test_worse_share_follows_the_direction() -> None:
    """A measure is worse by its loss, ties count half."""
    splits = draw_splits(np.arange(60), 60, repeats=4, seed=1)

    def measure(_here: Indices, _other: Indices, fake: bool) -> float:
        return -2.0 if fake else 1.0

    assert over_splits(splits, measure, loss=float).worse_share == 0
    assert over_splits(splits, measure, loss=abs).worse_share == 1
    assert over_splits(splits, lambda _a, _b, _fake: 1.0, loss=float).worse_share == 0.5


def test_the_report_survives_json_and_reads_as_a_table(like: QualityReport) -> None:
    """JSON and back is the same report; the table names every measure once."""
    assert QualityReport.model_validate_json(like.model_dump_json()) == like
    text = like.table()
    assert all(text.count(f"\n{m.name} ") == 1 for m in like.measures)
    assert [m.name for m in like.measures] == [
        *("kid", "density", "coverage", "precision", "recall", "vendi"),
        *("envelope_snr", "gray_snr", "axial_px", "lateral_px"),
    ]
    assert (like.real_images, like.real_patients, like.fake_images, like.features, like.image_px) == (160, 80, 120, 8, 32)
    assert like.encoder == "summary"
    with pytest.raises(InputError, match="fid"):
        like.measure("fid")


def test_the_same_seed_gives_the_same_report(like: QualityReport) -> None:
    """Everything random comes from the seed."""
    (real, groups), (fake, _) = frames(160, seed=1, per=2), frames(120, seed=2)
    assert compare(real, fake, encoder=summary, groups=groups, seed=1, splits=8, quiet=True) == like
    assert compare(real, fake, encoder=summary, groups=groups, seed=2, splits=8, quiet=True) != like


def test_a_set_without_speckle_is_noted_and_the_rest_is_measured() -> None:
    """Nearly black fakes cannot be measured for speckle: the report says so and holds the other measures."""
    (real, _), (fake, _) = frames(60, seed=1), frames(60, seed=2, level=3)
    report = compare(real, fake, encoder=summary, seed=1, splits=3, quiet=True)
    assert len(report.measures) == 6
    assert "of the fake images" in report.notes[0]
    assert report.notes[0] in report.table()


def test_large_sets_are_measured_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a random part is measured, and the report states how many."""
    monkeypatch.setattr("busgen_core.quality.compare.LARGEST", 50)
    (real, groups), (fake, _) = frames(120, seed=1, per=2), frames(80, seed=2)
    report = compare(real, fake, encoder=summary, groups=groups, seed=1, splits=2, quiet=True)
    assert (report.real_images, report.fake_images) == (50, 50)


def test_bad_input_is_refused() -> None:
    """Sizes that differ, constant frames, too few images or patients, groups that do not fit: each is named."""
    (real, _), (fake, _) = frames(60, seed=1), frames(60, seed=2)
    run = {"encoder": summary, "seed": 1, "quiet": True}
    with pytest.raises(InputError, match="one size"):
        compare(real, np.repeat(np.repeat(fake, 2, 1), 2, 2), **run)
    with pytest.raises(CorruptImageError, match="fake images: 1 of 60"):
        compare(real, np.concatenate([fake[1:], np.zeros((1, 32, 32), np.uint8)]), **run)
    with pytest.raises(InputError, match="20 fake"):
        compare(real, fake[:19], **run)
    with pytest.raises(InputError, match="40 real"):
        compare(real[:30], fake, **run)
    with pytest.raises(InputError, match="halves"):
        compare(real, fake, groups=[f"p{i % 9}" for i in range(60)], **run)
    with pytest.raises(InputError, match="groups"):
        compare(real, fake, groups=["p"] * 59, **run)
    with pytest.raises(ConfigError, match="repeats"):
        compare(real, fake, splits=0, **run)
    with pytest.raises(InputError, match="uint8"):
        compare(real.astype(np.float32), fake, **run)


def test_a_bad_encoder_is_refused() -> None:
    """An encoder that loses rows or gives NaN does not lead to a number."""
    (real, _), (fake, _) = frames(60, seed=1), frames(60, seed=2)
    for wrong in (lambda images: summary(images)[1:], lambda images: summary(images)[:, 0], lambda images: summary(images) * np.nan):
        with pytest.raises(InputError):
            compare(real, fake, encoder=wrong, seed=1, quiet=True)


def test_the_picture_is_written(like: QualityReport, tmp_path: Path) -> None:
    """PNG and SVG by ending; another ending is refused."""
    pytest.importorskip("matplotlib")
    draw(like, tmp_path / "report.png")
    draw(like, tmp_path / "report.svg")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "coverage" in (tmp_path / "report.svg").read_text()
    with pytest.raises(ConfigError, match="png"):
        draw(like, tmp_path / "report.pdf")


def test_measures_need_no_torch() -> None:
    """Comparing imports no torch, whose import takes seconds; only the shipped encoder does."""
    code = "import sys, busgen_core.quality.compare, busgen_core.quality.plot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
