"""``busgen-audit``: files in, verdict and two files out; whatever the files are, a named refusal or a right answer."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from busgen_core.errors import CorruptImageError, GateRefusedError, InputError, TableError, UnavailableError
from busgen_core.images import encode_png
from busgen_privacy.cli import app
from busgen_privacy.folders import read_people, read_release
from busgen_privacy.suite import Release, check
from tests.privacy.test_suite import sides


def folder(path: Path, images: NDArray[np.uint8], rows: list[dict[str, str]] | None = None) -> Path:
    """A folder of PNG files, with a table where rows are given (a row's file is its place)."""
    path.mkdir(parents=True)
    for number, image in enumerate(images):
        (path / f"{number:03d}.png").write_bytes(encode_png(image))
    if rows is not None:
        with (path / "images.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["file", *rows[0]])
            writer.writeheader()
            writer.writerows({"file": f"{number:03d}.png"} | row for number, row in enumerate(rows))
    return path


def arguments(tmp_path: Path, released: NDArray[np.uint8]) -> list[str]:
    """The command on one folder with both roles, and a public one."""
    members, holdout, public, _ = sides()
    rows = [{"patient": f"p{i}", "role": "train" if i < 40 else "holdout"} for i in range(80)]
    real = folder(tmp_path / "real", np.concatenate([members.images, holdout.images]), rows)
    release, known = folder(tmp_path / "release", released), folder(tmp_path / "public", public)
    return [str(release), "--members", f"{real}:train", "--holdout", f"{real}:holdout", "--public", str(known), "--out", str(tmp_path / "out")]


def test_a_clean_folder_is_released(tmp_path: Path) -> None:
    """A folder of any tool's images, members and holdout by role: exit status 0, audit.json and audit.html are written."""
    found = CliRunner().invoke(app, arguments(tmp_path, sides()[3]), catch_exceptions=False)
    assert found.exit_code == 0
    assert "release:" in found.output
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["members"] == 40
    assert "Release" in (tmp_path / "out" / "audit.html").read_text()


def test_copies_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Members' own images: exit status not 0, the reason is said, and both files are there for the officer."""
    found = CliRunner().invoke(app, arguments(tmp_path, sides()[0].images))
    assert isinstance(found.exception, GateRefusedError)
    assert "near copies" in str(found.exception)
    assert (tmp_path / "out" / "audit.html").exists()


def test_members_among_the_public_images_are_refused(tmp_path: Path) -> None:
    """``--public`` on the folder of all patients would turn calibrated attacks round: an error before anything is attacked, and no file."""
    given = arguments(tmp_path, sides()[3])
    given[given.index("--public") + 1] = str(tmp_path / "real")
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, InputError)
    assert "80 patients of the public images" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_half_a_claim_is_wrong_usage(tmp_path: Path) -> None:
    """Epsilon without delta promises nothing: exit status 2."""
    assert CliRunner().invoke(app, [*arguments(tmp_path, sides()[3]), "--epsilon", "8"]).exit_code == 2


def test_without_a_table_every_image_is_a_patient(tmp_path: Path) -> None:
    """Files alone, in folders or not; the table's patient column groups them where it is there."""
    images = sides()[0].images[:4]
    assert len(read_people(str(folder(tmp_path / "a", images))).patient_rows()) == 4
    grouped = folder(tmp_path / "b", images, [{"group": name} for name in "xxyz"])
    assert list(read_people(str(grouped)).patient_rows().values()) == [[0, 1], [2], [3]]


def test_files_of_one_name_in_two_folders_are_two_patients(tmp_path: Path) -> None:
    """Members and holdout in folders of their own, numbered alike: two people each time. One folder on both sides: the same people, refused."""
    images = sides()[0].images
    inside, outside = (read_people(str(folder(tmp_path / name, part))) for name, part in (("a", images[:3]), ("b", images[3:6])))
    check(Release(images=images), inside, outside, sides()[2])
    with pytest.raises(InputError, match="3 patients are members and holdout at once"):
        check(Release(images=images), inside, read_people(str(tmp_path / "a")), images)


def test_an_image_of_two_names_is_on_both_sides(tmp_path: Path) -> None:
    """A member's file copied into the holdout's folder under another name is noticed by its pixels."""
    images = sides()[0].images
    inside, outside = (read_people(str(folder(tmp_path / name, images[rows]))) for name, rows in (("a", [0, 1, 2]), ("b", [3, 4, 5, 2])))
    with pytest.raises(InputError, match="1 images are of members and of holdout patients at once"):
        check(Release(images=images), inside, outside, images)


TABLES = {
    "byte order mark, as spreadsheets write it": (b"\xef\xbb\xbffile,patient\n000.png,a\n", None),
    "not UTF-8": ("file,patient\n000.png,M\u00fcller\n".encode("latin-1"), "UTF-8"),
    "a quote that is not closed": (b'file,patient\n000.png,"a\n', "quote"),
    "a column twice": (b"file,file\n000.png,000.png\n", "repeated"),
    "no column file": (b"name,patient\n000.png,a\n", "lacks the columns"),
    "a header alone": (b"file,patient\n", "empty"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    """Whatever the bytes of images.csv are, its rows come back or a TableError says what is wrong; nothing of a row is in it."""
    table, words = TABLES[name]
    where = folder(tmp_path / "a", sides()[0].images[:1])
    (where / "images.csv").write_bytes(table)
    if words is None:
        assert read_people(str(where)).patients == ("a",)
        return
    with pytest.raises(TableError, match=words) as found:
        read_people(str(where))
    assert "ller" not in str(found.value)


def test_bad_folders_are_named_without_their_files(tmp_path: Path) -> None:
    """Missing, empty, torn, undecodable, shared by two patients, of no such role: one named error each, and no file's name in it."""
    images = sides()[0].images[:3]
    (tmp_path / "empty").mkdir()
    torn = folder(tmp_path / "torn", images, [{"patient": name} for name in "abc"])
    (torn / "images.csv").write_text("file,patient\n000.png,a,b\n")
    rotten = folder(tmp_path / "rotten", images)
    (rotten / "001.png").write_bytes(b"no picture")
    twice = folder(tmp_path / "twice", images[[0, 0, 1]], [{"patient": name} for name in "abc"])
    cases = {
        str(tmp_path / "nowhere"): UnavailableError,
        str(tmp_path / "empty"): InputError,
        str(torn): TableError,
        str(rotten): CorruptImageError,
        str(twice): InputError,
        f"{rotten}:train": TableError,
    }
    for where, error in cases.items():
        with pytest.raises(error) as found:
            read_people(where)
        assert ".png" not in str(found.value)
        assert str(tmp_path) not in str(found.value)


def test_labels_that_no_image_has_are_refused(tmp_path: Path) -> None:
    """A release whose manifest counts another label than its images have was changed after it was made."""
    from busgen_core.repository import write_parquet
    from tests.releases import synthetic_images

    images = synthetic_images()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.parquet").write_bytes(write_parquet(images))
    counts: dict[str, int] = {}
    for image in images:
        counts[image.pathology.value] = counts.get(image.pathology.value, 0) + 1
    manifest = {"labels": counts, "privacy": {"epsilon": 3.5, "delta": 1e-5}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_release(tmp_path).epsilon == 3.5
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"labels": counts | {"normal": 99}}))
    with pytest.raises(InputError, match="labels"):
        read_release(tmp_path)
