"""The fictitious studies."""

import csv
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from busgen_client.intake.labels import read_labels
from busgen_client.intake.phantom_dicom import REGION_SIZE, REGION_X0, REGION_Y0, site_scanner, write_phantom_study
from busgen_core.errors import ConfigError
from busgen_core.labels import Birads, parse_birads
from busgen_core.phantom import SCANNERS


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    """A study repeats byte by byte; another seed or site gives other objects."""
    for name, site, seed in (("a", "x", 1), ("b", "x", 1), ("c", "x", 2), ("d", "y", 1)):
        write_phantom_study(tmp_path / name, site=site, patients=3, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["IM00001"] != contents(tmp_path / "c")["IM00001"]
    assert contents(tmp_path / "a")["IM00001"] != contents(tmp_path / "d")["IM00001"]


def test_study_has_patients_of_every_class_and_one_or_two_images_each(tmp_path: Path) -> None:
    """Classes come in about 20/45/35 %, every object has a label, and only lesions have boxes."""
    write_phantom_study(tmp_path, site="x", patients=60, seed=0)
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as stream:
        labels = {row["SOPInstanceUID"]: row for row in csv.DictReader(stream)}
    objects = [dcmread(path) for path in sorted(tmp_path.glob("IM*"))]
    assert {o.SOPInstanceUID for o in objects} == set(labels)
    per_patient = Counter(o.PatientID for o in objects)
    assert (len(per_patient), set(per_patient.values())) == (60, {1, 2})
    classes = Counter({o.PatientID: labels[o.SOPInstanceUID]["pathology"] for o in objects}.values())
    assert 4 <= classes["normal"] <= 22  # binomial(60, 0.2), six deviations wide
    assert classes["benign"] >= 10
    assert classes["malignant"] >= 8
    assert all(bool(row["x0"]) == (row["pathology"] != "normal") for row in labels.values())


def test_sites_look_different(tmp_path: Path) -> None:
    """Three sites have three scanner presets, and every two differ in brightness or lateral sharpness by more than three standard errors."""
    assert len({site_scanner(site) for site in ("cairo", "rio", "warsaw")}) == 3
    features = {}
    for site in ("cairo", "rio", "warsaw"):
        write_phantom_study(tmp_path / site, site=site, patients=12, seed=0)
        frames = [dcmread(file).pixel_array.astype(float) for file in sorted((tmp_path / site).glob("IM*"))]
        scans = [frame[REGION_Y0 : REGION_Y0 + REGION_SIZE, REGION_X0 : REGION_X0 + REGION_SIZE] for frame in frames]
        features[site] = np.array([(scan.mean(), np.abs(np.diff(scan, axis=1)).mean() / scan.std()) for scan in scans])
    for one, other in combinations(features.values(), 2):
        gap = np.abs(one.mean(0) - other.mean(0))
        error = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        assert (gap > 3 * error).any()


def test_header_names_the_preset_and_its_scale(tmp_path: Path) -> None:
    """Model, burnt-in frequency's source and centimetres a pixel are those of the site's preset."""
    write_phantom_study(tmp_path, site="cairo", patients=1, seed=0)
    header, scanner = dcmread(tmp_path / "IM00001"), SCANNERS[site_scanner("cairo")]
    region = header.SequenceOfUltrasoundRegions[0]
    assert header.ManufacturerModelName == site_scanner("cairo")
    assert region.PhysicalDeltaX * REGION_SIZE == pytest.approx(scanner.width_cm)
    assert region.PhysicalDeltaY * REGION_SIZE == pytest.approx(scanner.depth_cm)


def test_text_is_burnt_in_outside_the_region_alone(tmp_path: Path) -> None:
    """Name and number stand above the scan region; the region holds the phantom and nothing else."""
    write_phantom_study(tmp_path, site="cairo", patients=2, seed=0)
    one, other = (dcmread(tmp_path / f"IM0000{n}").pixel_array for n in (1, 2))
    above = np.s_[:REGION_Y0]
    assert (one[above] > 128).sum() > 300
    side = np.s_[REGION_Y0 : REGION_Y0 + REGION_SIZE, REGION_X0 + REGION_SIZE :]
    assert np.array_equal(one[side], other[side])  # settings: the same for both patients


def test_birads_follows_the_pathology_and_the_reader_takes_the_table(tmp_path: Path) -> None:
    """Every row has a category, 1 exactly for normal tissue; the reader of label files is not disturbed by the column."""
    write_phantom_study(tmp_path, site="x", patients=30, seed=0)
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all((parse_birads(row["birads"]) is Birads.ONE) == (row["pathology"] == "normal") for row in rows)
    labels = read_labels(tmp_path / "labels.csv")
    assert all(labels.of(row["SOPInstanceUID"]).pathology == row["pathology"] for row in rows)


def test_no_patients_is_refused(tmp_path: Path) -> None:
    """A study without a patient is a mistake."""
    with pytest.raises(ConfigError):
        write_phantom_study(tmp_path, site="x", patients=0, seed=0)
