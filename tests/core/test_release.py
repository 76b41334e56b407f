"""The release format: what a manifest says, and its one spelling. Attacks on it are in claims/test_tamper.py."""

import json
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from busgen_core.errors import ContentMismatchError, ManifestError
from busgen_core.labels import Pathology
from busgen_core.release import MANIFEST, Event, Manifest, statement_payload, verify_release
from tests.releases import PRIVACY, TRUSTED, documents, good_release, manifest_of, synthetic_images

GOOD = good_release()[MANIFEST]


def test_a_good_release_is_accepted() -> None:
    """Untouched files verify, and the manifest that comes back is the one that was built."""
    files = documents(synthetic_images())
    manifest = verify_release(good_release(), TRUSTED)
    assert manifest == manifest_of(files)
    assert manifest.images == 6
    assert manifest.labels == dict.fromkeys(Pathology, 2)
    assert manifest.files == {name: sha256(data).hexdigest() for name, data in files.items()}


def test_what_is_signed_is_an_in_toto_statement() -> None:
    """The payload is an in-toto Statement v1 whose subject is manifest.json by its digest."""
    statement = json.loads(statement_payload(GOOD, Manifest.from_bytes(GOOD)))
    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "manifest.json", "digest": {"sha256": sha256(GOOD).hexdigest()}}],
        "predicateType": "urn:busgen:release:v1",
        "predicate": {"release_id": "cairo-1", "site": "cairo", "campaign_id": "spring"},
    }


@pytest.mark.parametrize("change", [{"note.txt": b"x"}, {"data/train-00002.parquet": b"x"}, {"../README.md": b"x"}, {"README.md": None}])
def test_only_the_files_of_a_release_are_described(change: dict) -> None:
    """A manifest is built only over exactly the files that the format has."""
    files = documents(synthetic_images()) | change
    with pytest.raises(ContentMismatchError):
        manifest_of({name: data for name, data in files.items() if data is not None})


def edited(**changes: object) -> bytes:
    """The good manifest with other fields, in canonical JSON."""
    return json.dumps(json.loads(GOOD) | changes, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


BAD = {
    "empty": b"",
    "not JSON": b"{",
    "blank added": GOOD + b"\n",
    "key repeated": GOOD.replace(b'"images":6', b'"images":6,"images":6'),
    "number respelled": GOOD.replace(b'"lifetime_epsilon":3.5', b'"lifetime_epsilon":3.50'),
    "infinite": GOOD.replace(b'"epsilon":3.5', b'"epsilon":1e999', 1),
    "NaN": GOOD.replace(b'"epsilon":3.5', b'"epsilon":NaN', 1),
    "huge": b"[" * 2_000_000,
    "unknown field": edited(patients=312),
    "other version": edited(version=2),
    "version true": edited(version=True),
    "site with a path": edited(site="../cairo"),
    "no such day": edited(created="2026-02-30"),
    "count as text": edited(images="6"),
    "unknown label": edited(labels={"cyst": 6}),
    "no digest": edited(files={"README.md": "0"}),
    "unit is the image": edited(privacy=json.loads(GOOD)["privacy"] | {"unit": "image"}),
    "verdict perhaps": edited(gate={"verdict": "perhaps", "reasons": []}),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_manifest_has_one_form(data: bytes) -> None:
    """Everything but canonical JSON with every field in its range is refused as a ManifestError."""
    assert Manifest.from_bytes(edited()) == Manifest.from_bytes(GOOD)
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@given(st.one_of(st.binary(max_size=100), st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=5))))
def test_only_our_errors_leave_the_parser(found: bytes | tuple[int, bytes]) -> None:
    """Random bytes, and random bytes in a good manifest, end in our own error or in a manifest of the same bytes."""
    data = found if isinstance(found, bytes) else GOOD[: found[0]] + found[1] + GOOD[found[0] + len(found[1]) :]
    with suppress(ManifestError):
        assert Manifest.from_bytes(data).to_bytes() == data


EVENT_CHANGES = [{"noise_multiplier": 0.0}, {"noise_multiplier": float("nan")}, {"sample_rate": 1.1}, {"count": 0}, {"account": "x"}]


@pytest.mark.parametrize("changes", EVENT_CHANGES)
def test_an_event_outside_its_range_is_refused(changes: dict) -> None:
    """No mechanism without noise, without steps or for nobody's account can be stated."""
    with pytest.raises(ValidationError):
        Event(**PRIVACY.events[0].model_dump() | changes)
