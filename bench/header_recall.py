"""How much of what identifies is left of a header: ours under the Basic Profile and under every option, dicom-anonymizer, and deid.

Three questions: of identifiers planted in every attribute of PS3.6 and every nested place, how many are gone; of free texts in seven languages,
how many identifying characters; and what is left that describes image and scanner, since deleting everything would answer the first two.

Peers run as strict as they come: dicom-anonymizer with its newest table (2026c) and without private attributes; deid with its default recipe,
sequences and private attributes removed. An object that a tool refuses to write counts as gone, and is counted by itself too.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pydicom
from pydicom import Dataset, dcmread
from tqdm import tqdm

from bench.planted import MACHINE, Planted, planted_objects
from bench.rows import ROOT, row, write
from busgen_client.intake.annex_e import basic_action
from busgen_client.intake.dicom import clean_scans
from busgen_client.intake.export import as_objects
from busgen_client.intake.header import read_clean
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.profile import Profile
from busgen_client.intake.replacements import Keyed
from busgen_privacy.attributes import REGION_RULES, RULES
from busgen_privacy.deidentify import BASIC, Choices, Option
from busgen_privacy.vocabulary import TOKEN, fold

PEERS = ROOT / "bench" / "work" / "header_peers"
FIELDS = ("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "ManufacturerModelName", "Manufacturer")
TEXTS = 1_050
SEED = 7
ALL, NAMED, UNNAMED = "all", "in attributes that table E.1-1 names, or private", "elsewhere"

Tool = Callable[[bytes], bytes]


def install_peers() -> None:
    """Put the peers where only this benchmark finds them."""
    wanted = ROOT / "bench" / "requirements-header_recall.txt"
    if not (PEERS / "deid").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), "--requirement", str(wanted)]
        subprocess.run(command, check=True)
    sys.path.append(str(PEERS))


def ours(data: bytes, *, choices: Choices, key: Keyed) -> bytes:
    """The whole way of intake, and the object that it would let a hospital look at."""
    profile = Profile(key=key, choices=choices)
    clean = read_clean(data, profile)
    crop, scans, _ = clean_scans(clean.header)
    return as_bytes(as_objects(clean, scans, crop=crop, profile=profile)[0])


def dicom_anonymizer(data: bytes) -> bytes:
    """KitwareMedical/dicom-anonymizer."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions

    header = dcmread(io.BytesIO(data))
    anonymize_dataset(header, delete_private_tags=True, base_rules_gen=partial(initialize_actions, "dicomfields_2026c"))
    return as_bytes(header)


def deid(data: bytes) -> bytes:
    """pydicom/deid."""
    from deid.config import DeidRecipe
    from deid.dicom import replace_identifiers

    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        Path(file.name).write_bytes(data)
        (header,) = replace_identifiers(file.name, deid=DeidRecipe(), save=False, strip_sequences=True, remove_private=True)
    return as_bytes(header)


def as_bytes(header: Dataset) -> bytes:
    """A written file."""
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


def tools() -> Mapping[str, Tool]:
    """What is compared."""
    import hmac

    def key(kind: str, *parts: bytes | str) -> str:
        return hmac.digest(b"benchmark", repr((kind, parts)).encode(), "sha256").hex()

    return {
        "ours, Basic Profile": partial(ours, choices=BASIC, key=key),
        "ours, every option": partial(ours, choices=Choices(options=frozenset(Option)), key=key),
        "dicom-anonymizer 2.1.0": dicom_anonymizer,
        "deid 0.4.13": deid,
    }


def phantom() -> bytes:
    """One object of a fictitious study, with attributes that describe it."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_study(Path(folder), site="bench", patients=1, seed=SEED)
        header = dcmread(next(iter(sorted(Path(folder).glob("IM*")))))
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SeriesNumber, header.ImageLaterality, header.BodyPartExamined, header.TransducerType = 2, "L", "BREAST", "LINEAR"
    header.MechanicalIndex, header.DepthOfScanField, header.FocusDepth, header.PixelSpacing = 1.1, 40, 2.0, [0.3, 0.3]
    header.WindowCenter, header.WindowWidth, header.LossyImageCompression = 127, 254, "00"
    header.SequenceOfUltrasoundRegions[0].TransducerFrequency = 12_000
    return as_bytes(header)


def recall(tool: Tool, objects: Sequence[tuple[bytes, list[Planted]]]) -> tuple[Counter[str], Counter[str], int]:
    """Planted identifiers and those that survived, by ``groups``, and how many went with objects that were refused."""
    planted, left, refused = Counter[str](), Counter[str](), 0
    for data, inside in tqdm(objects, desc="objects", unit="object", leave=False):
        planted.update(name for p in inside for name in groups(p))
        try:
            written = quiet(tool, data).lower()
        except Exception:  # a refusal, whatever it says
            refused += len(inside)
            continue
        left.update(name for p in inside if p.needle.lower() in written for name in groups(p))
    return planted, left, refused


def groups(planted: Planted) -> tuple[str, ...]:
    """What an identifier counts for: everything, where identifiers are expected or not, its kind of place, and its VR; but what a site may choose to
    retain counts for itself."""
    if planted.place == MACHINE:
        return (MACHINE,)
    return (ALL, NAMED if planted.named else UNNAMED, planted.place, f"VR {planted.vr}")


def quiet(tool: Tool, data: bytes) -> bytes:
    """Run a tool without its prints and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return tool(data)


def free_text(tool: Tool, source: bytes) -> tuple[Counter[str], Counter[str], int, int]:
    """Identifying characters by language, those left, harmless words, and those kept; refused objects keep none."""
    from bench.header_texts import texts

    total, left, words, kept = Counter[str](), Counter[str](), 0, 0
    for n, text in enumerate(tqdm(texts(TEXTS, SEED), total=TEXTS, desc="texts", unit="text", leave=False)):
        header, field = dcmread(io.BytesIO(source)), FIELDS[n % 4 if n % 8 < 6 else 4 + n % 2]
        header[field] = pydicom.DataElement(field, pydicom.datadict.dictionary_VR(field), text.text)
        if n % 2:
            header.PatientName = text.person
        value = str(dcmread(io.BytesIO(quiet(tool, as_bytes(header)))).get(field) or "")
        have = {token.casefold() for token in TOKEN.findall(fold(value))}
        identifying = {token.casefold() for token in TOKEN.findall(fold(text.identifier))}
        harmless = {token.casefold() for token in TOKEN.findall(fold(text.text))} - identifying
        for name in (ALL, text.language, text.kind):
            total[name] += sum(map(len, identifying))
            left[name] += sum(len(token) for token in identifying & have if len(token) > 1)
        words, kept = words + len(harmless), kept + len(harmless & have)
    return total, left, words, kept


def described(tool: Tool, source: bytes) -> float:
    """Share of the attributes that describe image and scanner, and that table E.1-1 does not name, that came through unchanged."""
    before, after = dcmread(io.BytesIO(source)), dcmread(io.BytesIO(quiet(tool, source)))
    same = [
        after.get(word) == before[word].value for word in RULES if word in before and not basic_action(before[word].tag) and before[word].VR != "SQ"
    ]
    inside = before.SequenceOfUltrasoundRegions[0], next(iter(after.get("SequenceOfUltrasoundRegions", ())), Dataset())
    same += [inside[0][word].value == inside[1].get(word) for word in REGION_RULES if word in inside[0] and "Location" not in word]
    return sum(same) / len(same)


def measure() -> Iterator[dict[str, object]]:
    """Every row, ours with the peers beside."""
    source = phantom()
    objects = [(as_bytes(whole), planted) for whole, planted in planted_objects(lambda: dcmread(io.BytesIO(source)))]
    hidden = [p for data, planted in objects for p in planted if p.needle.lower() not in data.lower()]
    assert not hidden, f"{len(hidden)} identifiers are not in the objects that they were planted in"
    for name, tool in tools().items():
        quiet(tool, source)  # imports
        began = time.perf_counter()
        planted, left, refused = recall(tool, objects)
        yield from structure_rows(name, planted, left, refused, time.perf_counter() - began, len(objects))
        yield from text_rows(name, *free_text(tool, source))
        yield row(f"{name}: attributes of image and scanner unchanged", 100 * described(tool, source), "%")


def structure_rows(name: str, planted: Counter[str], left: Counter[str], refused: int, seconds: float, objects: int) -> Iterator[dict[str, object]]:
    """What became of the planted identifiers."""
    goal = {"goal": "100 %", "met": not left[ALL]} if name.startswith("ours") else {}
    yield row(f"{name}: planted identifiers gone, of {planted[ALL]}", 100 * (1 - left[ALL] / planted[ALL]), "%", seconds=round(seconds, 1), **goal)
    yield row(f"{name}: {NAMED}, gone, of {planted[NAMED]}", 100 * (1 - left[NAMED] / planted[NAMED]), "%")
    yield row(f"{name}: gone because the object was refused", 100 * refused / planted[ALL], "%")
    for place in (p for p in planted if left[p] and p not in (ALL, NAMED, UNNAMED) and not p.startswith("VR")):
        yield row(f"{name}: left, {place}, of {planted[place]}", left[place], "identifiers")
    kinds = [p for p in planted if p.startswith("VR")]
    yield row(f"{name}: value representations in which any is left, of {len(kinds)}", sum(left[vr] > 0 for vr in kinds), "VRs")
    yield row(f"{name}: time for one object", 1000 * seconds / objects, "ms")


def text_rows(name: str, total: Counter[str], left: Counter[str], words: int, kept: int) -> Iterator[dict[str, object]]:
    """What became of the free texts."""
    goal = {"goal": "100 %", "met": not left[ALL]} if name.startswith("ours") else {}
    yield row(f"{name}: free text, identifying characters gone, of {total[ALL]}", 100 * (1 - left[ALL] / total[ALL]), "%", **goal)
    for kind in (k for k in total if left[k] and k != ALL):
        yield row(f"{name}: free text left, {kind}, of {total[kind]}", left[kind], "characters")
    yield row(f"{name}: free text, harmless words kept", 100 * kept / words, "%")


def main() -> None:
    """Measure and write bench/results/header_recall.json."""
    install_peers()
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write("header_recall", list(measure()))


if __name__ == "__main__":
    main()
