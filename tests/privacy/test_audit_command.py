"""``busgen-audit``: files in, verdict and two files out; whatever the files are, a named refusal or a right answer."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from typer.testing import CliRunner

from busgen_core.errors import CheckpointError, ConfigError, CorruptImageError, GateRefusedError, InputError, TableError, UnavailableError
from busgen_core.foundation import save_foundation
from busgen_core.images import decode_gray, encode_png
from busgen_core.repository import write_parquet
from busgen_privacy import suite
from busgen_privacy.attacked import Release, check
from busgen_privacy.cli import app, shared_folder
from busgen_privacy.findings import Findings, Pair
from busgen_privacy.folders import read_people, read_release
from tests.privacy.found import COPIES, findings
from tests.privacy.pages import carried
from tests.privacy.small import small_foundation
from tests.privacy.test_shadows import SMALL64, same
from tests.privacy.test_suite import sides
from tests.releases import synthetic_images


@dataclass(frozen=True)
class Ran:
    """One run of the suite."""

    release: Release
    seed: int


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Ran]:
    """The suite finds nothing at once; each run is noted. The closest pair is the third of the further images, or the third released one."""
    ran: list[Ran] = []

    def found(release: Release, *_: object, seed: int, **__: object) -> Findings:
        ran.append(Ran(release, seed))
        pair = Pair(released=2 if release.more is None else len(release.images) + 2, member=0, distance=0.3)
        return findings(registered_copies=COPIES.model_copy(update={"closest": (pair,)}))

    monkeypatch.setattr(suite, "run", found)
    return ran


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
    found = CliRunner().invoke(app, arguments(tmp_path, sides()[3][:24]), catch_exceptions=False)
    assert found.exit_code == 0
    assert "release:" in found.output
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["members"] == 40
    assert "Release" in (tmp_path / "out" / "audit.html").read_text()


def test_copies_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Members' own images: exit status not 0, the reason is said, and both files are there for the officer."""
    found = CliRunner().invoke(app, arguments(tmp_path, sides()[0].images[:24]))
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


def test_images_are_no_patients(tmp_path: Path) -> None:
    """Files alone, a table without patients or with some missing are refused; only who says so has every image count as a patient.

    Fails in versions that count images as patients: there "60 + 60 patients" were 20, and no copy was nearer than the closest pair of one patient.
    """
    images = sides()[0].images[:4]
    alone = folder(tmp_path / "a", images)
    unnamed = folder(tmp_path / "b", images, [{"pathology": "benign"}] * 4)
    empty = folder(tmp_path / "c", images, [{"patient": ""}] * 4)
    for where in (alone, unnamed, empty):
        with pytest.raises(TableError, match="--one-image-per-patient"):
            read_people(str(where))
        assert len(read_people(str(where), one_image_each=True).patient_rows()) == 4
    grouped = folder(tmp_path / "d", images, [{"group": name} for name in "xxyz"])
    partly = folder(tmp_path / "e", images, [{"patient": name, "group": "g"} for name in ("x", "x", "", "z")])
    for sure in (False, True):
        assert list(read_people(str(grouped), one_image_each=sure).patient_rows().values()) == [[0, 1], [2], [3]]
        with pytest.raises(TableError, match="1 of 4 rows"):
            read_people(str(partly), one_image_each=sure)


def test_the_command_asks_whose_images_they_are(tmp_path: Path, quick: list[Ran]) -> None:
    """Members and holdout without patients: a named refusal and nothing is attacked; with the word of whoever calls, the report says so."""
    members, holdout, public, released = sides()
    where = {name: folder(tmp_path / name, images) for name, images in (("a", members.images), ("b", holdout.images), ("p", public), ("r", released))}
    ask = [str(where["r"]), "--members", str(where["a"]), "--holdout", str(where["b"]), "--public", str(where["p"]), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, ask).exception, TableError)
    assert (quick, (tmp_path / "out").exists()) == ([], False)
    assert CliRunner().invoke(app, [*ask, "--one-image-per-patient"], catch_exceptions=False).exit_code == 0
    assert "where no table names patients, each image counts as one" in (tmp_path / "out" / "audit.html").read_text()


PLACES = {"the release": "release", "a folder in it": "release/audit", "the real images": "real/out", "the public ones": "public", "more": "more/x"}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_nothing_exact_is_written_into_what_is_shared(tmp_path: Path, quick: list[Ran], place: str) -> None:
    """Exact figures and real images never land in the release that is about to leave, or among the images that are read; a link does not help."""
    ask = [*arguments(tmp_path, sides()[3]), "--more", str(folder(tmp_path / "more", sides()[3][:2]))]
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path / place, tmp_path / "release" / ".." / place, tmp_path / "link" / place):
        found = CliRunner().invoke(app, [*ask, "--out", str(out)])
        assert isinstance(found.exception, InputError)
        assert "--out" in str(found.exception)
    (tmp_path / "link").unlink()
    assert (quick, sorted(tmp_path.rglob("*"))) == ([], before)


def test_a_parquet_file_leaves_with_its_folder(tmp_path: Path) -> None:
    """A table of one of our releases: the folder of its manifest is what leaves. A lone table: the file."""
    table = tmp_path / "cairo-1" / "data" / "train-00000.parquet"
    table.parent.mkdir(parents=True)
    assert shared_folder(table) == table
    (tmp_path / "cairo-1" / "manifest.json").write_text("{}")
    assert shared_folder(table) == tmp_path / "cairo-1"
    assert shared_folder(tmp_path / "cairo-1") == tmp_path / "cairo-1"


def test_both_files_are_for_their_owner_alone(tmp_path: Path, quick: list[Ran]) -> None:
    """audit.json and audit.html, exact and with real images: mode 0600, also over files that others could read."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "audit.json").write_text("{}")
    (tmp_path / "out" / "audit.json").chmod(0o644)
    assert CliRunner().invoke(app, arguments(tmp_path, sides()[3]), catch_exceptions=False).exit_code == 0
    assert [(tmp_path / "out" / name).stat().st_mode & 0o777 for name in ("audit.json", "audit.html")] == [0o600, 0o600]


CLAIMS = [("-1", "1e-5"), ("0", "1e-5"), ("nan", "1e-5"), ("inf", "1e-5"), ("8", "0"), ("8", "1"), ("8", "nan"), ("1e-9", "1e-12")]


@pytest.mark.parametrize(("epsilon", "delta"), CLAIMS)
def test_a_claim_that_is_none_is_refused_before_any_attack(tmp_path: Path, quick: list[Ran], epsilon: str, delta: str) -> None:
    """Claims that nothing can be held against end in a named error at once, at the command line and in a manifest."""
    found = CliRunner().invoke(app, [*arguments(tmp_path, sides()[3]), f"--epsilon={epsilon}", f"--delta={delta}"])
    assert isinstance(found.exception, ConfigError)
    assert quick == []
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_release(our_release(tmp_path / "ours", epsilon=float(epsilon), delta=float(delta)))


@pytest.mark.slow
def test_a_weak_claim_is_a_claim(tmp_path: Path) -> None:
    """Epsilon of a million promises next to nothing and is judged and shown all the same; the report says that nobody verified it."""
    found = CliRunner().invoke(app, [*arguments(tmp_path, sides()[3]), "--epsilon", "1e6", "--delta", "1e-5"], catch_exceptions=False)
    assert found.exit_code == 0
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (audit["epsilon"], audit["attacks"][0]["ceiling"]) == (1e6, 1.0)
    assert "epsilon 1e+06 at delta 1e-05, as the command line says: not verified" in (tmp_path / "out" / "audit.html").read_text()


def test_the_seed_is_drawn_for_each_audit_and_kept(tmp_path: Path, quick: list[Ran]) -> None:
    """Two audits have two seeds, both printed and in the report; one that is given is taken."""
    ask = arguments(tmp_path, sides()[3])
    said = [CliRunner().invoke(app, each, catch_exceptions=False).output for each in (ask, ask, [*ask, "--seed", "7"])]
    assert quick[0].seed != quick[1].seed
    assert quick[2].seed == 7
    assert all(f"(seed {ran.seed})" in output for ran, output in zip(quick, said, strict=True))
    assert '<th scope="row">Seed</th><td>7</td>' in (tmp_path / "out" / "audit.html").read_text()


def test_pairs_of_more_images_are_shown(tmp_path: Path, quick: list[Ran]) -> None:
    """A near copy among the further images has its place in the report: the picture is that image, and the report counts what was looked at."""
    more = sides()[0].images[:5]
    ask = [*arguments(tmp_path, sides()[3][:20]), "--more", str(folder(tmp_path / "more", more))]
    assert CliRunner().invoke(app, ask, catch_exceptions=False).exit_code == 0
    assert (len(quick[0].release.images), len(quick[0].release.more)) == (20, 5)
    report = (tmp_path / "out" / "audit.html").read_text()
    assert [picture.tobytes() for picture in map(decoded, carried(report))][1::2] == [more[2].tobytes()]
    assert "25 images: the released ones and 5 more" in report


def our_release(where: Path, *, epsilon: float, delta: float) -> Path:
    """A folder with a table and a manifest of ours, as far as they are read here."""
    images = synthetic_images()
    (where / "data").mkdir(parents=True)
    (where / "data" / "train-00000.parquet").write_bytes(write_parquet(images))
    labels = Counter(image.pathology.value for image in images)
    (where / "manifest.json").write_text(json.dumps({"labels": labels, "privacy": {"epsilon": epsilon, "delta": delta}}))
    return where


def decoded(png: bytes) -> NDArray[np.uint8]:
    return decode_gray(png, size=64)


def test_files_of_one_name_in_two_folders_are_two_patients(tmp_path: Path) -> None:
    """Members and holdout in folders of their own, numbered alike: two people each time. One folder on both sides: the same people, refused."""
    images = sides()[0].images
    inside, outside = (read_people(str(folder(tmp_path / name, part)), one_image_each=True) for name, part in (("a", images[:3]), ("b", images[3:6])))
    check(Release(images=images), inside, outside, sides()[2])
    with pytest.raises(InputError, match="3 patients are members and holdout at once"):
        check(Release(images=images), inside, read_people(str(tmp_path / "a"), one_image_each=True), images)


def test_an_image_of_two_names_is_on_both_sides(tmp_path: Path) -> None:
    """A member's file copied into the holdout's folder under another name is noticed by its pixels."""
    images = sides()[0].images
    parts = (("a", [0, 1, 2]), ("b", [3, 4, 5, 2]))
    inside, outside = (read_people(str(folder(tmp_path / name, images[rows])), one_image_each=True) for name, rows in parts)
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


def test_networks_are_attacked_where_they_are_given(tmp_path: Path, quick: list[Ran]) -> None:
    """--network gives the suite the foundation with the file's numbers in place, --shadow others like it; each is named in the report.

    Files that are none, that do not fit, or a shadow without a network are refused before anything is attacked.
    """
    (tmp_path / "files").mkdir()
    names = {"adapted": 1, "other": 2, "third": 3}
    for name, seed in names.items():
        save_file(small_foundation(SMALL64, seed=seed).network.state_dict(), tmp_path / "files" / f"{name}.safetensors")
    whole = small_foundation(SMALL64).network.state_dict()
    first, values = next(iter(whole.items()))
    wrong = {
        "foreign": {"nothing": torch.zeros(3)},
        "whole numbers": whole | {first: torch.ones_like(values, dtype=torch.int8)},
        "complex": whole | {first: values.to(torch.complex64)},
        "beyond": whole | {first: torch.full_like(values, 1e300, dtype=torch.float64)},
        "nan": whole | {first: torch.full_like(values, float("nan"))},
    }
    for name, tensors in wrong.items():
        save_file(tensors, tmp_path / "files" / f"{name}.safetensors")
    (tmp_path / "files" / "text.safetensors").write_text("no tensors")
    base = small_foundation(SMALL64)
    save_foundation(tmp_path / "foundation", network=base.network, scheduler=base.scheduler, boxes=base.boxes, card="A test's.")
    given = [*arguments(tmp_path, sides()[3]), "--foundation", str(tmp_path / "foundation")]

    def files(*options: str) -> list[str]:
        return [option if option.startswith("--") else str(tmp_path / "files" / f"{option}.safetensors") for option in options]

    assert (
        CliRunner().invoke(app, [*given, *files("--network", "adapted", "--shadow", "other", "--shadow", "third"), "--member-share", "0.6"]).exit_code
        == 0
    )
    (ran,) = quick
    assert ran.release.member_share == 0.6
    assert ran.release.access is not None
    assert ran.release.shadows is not None
    assert [same(ran.release.access.adapted, small_foundation(SMALL64, seed=seed).network) for seed in (0, 1)] == [False, True]
    assert same(ran.release.access.reference, base.network)
    assert [same(shadow, small_foundation(SMALL64, seed=n).network) for n, shadow in enumerate(ran.release.shadows.networks, 2)] == [True, True]
    assert "attacked, beside 2 adapted to other patients" in (tmp_path / "out" / "audit.html").read_text()
    assert CliRunner().invoke(app, [*given, *files("--shadow", "other")]).exit_code == 2
    assert CliRunner().invoke(app, [*given, "--member-share", "1"]).exit_code == 2
    for name in (*wrong, "text", "missing"):
        assert isinstance(CliRunner().invoke(app, [*given, *files("--network", name)]).exception, CheckpointError), name
    assert CliRunner().invoke(app, [*given, "--member-share", "nan"]).exit_code == 2
    assert len(quick) == 1
