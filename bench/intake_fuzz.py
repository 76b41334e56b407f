"""Damaged DICOM files through the real intake: crashes, hangs, and identifiers that are stored. Run: python -m bench.intake_fuzz.

BUSGEN_BENCH_COUNT mutations (10,000) of the real files and of two phantoms, each by its own seed, in a child process with bounded memory; the
parent restarts it after a crash and stops a mutation that takes too long. Text is looked for in every 21st of them only, of every kind: what is
burned into pixels belongs to ``burned_in_text``. Reading a clip of eight frames takes a quarter of a minute, damaged or not, so the time of a
mutation is also set beside that of the undamaged file. The mutator is our own: fuzzers by coverage need a compiler.
"""

import io
import json
import logging
import os
import re
import resource
import select as wait
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from tqdm import tqdm

from bench.rows import SHARED, row, write

COUNT = int(os.environ.get("BUSGEN_BENCH_COUNT", "10000"))
TEXT_EVERY = int(os.environ.get("BUSGEN_BENCH_TEXT_EVERY", "21"))  # no multiple of the number of kinds; 0 looks for none
HANG_SECONDS = 5.0
STOP_SECONDS = 60.0
MORE_BYTES = 3 * 2**30  # of address space over what the child has after loading
BATCH = 25  # mutations of one store
SHORTEST = 6  # characters; shorter ones turn up in hexadecimal digests by chance
DISTINCT = 4  # different characters; "XXXXXX", as some files have it, is also a run of one gray value
MARKS = ("Zwetschgenmann^Quirinia", "QX7741209-PLANTED", "19010203040506", "Klinik Hinterwald")
VRS = (b"OB", b"OW", b"PN", b"LO", b"SQ", b"UI", b"US", b"DS", b"IS", b"UN", b"AT", b"FD", b"UT", b"DA")
SEQUENCE, ITEM = b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0"
CLOSE = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"

Mutator = Callable[[bytes, np.random.Generator], bytes]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to sixteen bytes at random places of the first half or anywhere."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 17))):
        out[int(rng.integers(len(out) if rng.random() < 0.5 else min(len(out), 4000)))] = int(rng.integers(256))
    return bytes(out)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The file ends early."""
    return data[: int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 4000)))]


def splice(data: bytes, rng: np.random.Generator) -> bytes:
    """A part is missing, doubled, or lies elsewhere."""
    start, size, to = int(rng.integers(len(data))), int(rng.integers(1, 600)), int(rng.integers(len(data)))
    part, rest = data[start : start + size], data[:start] + data[start + size :]
    return (rest, data[:start] + part + data[start:], rest[:to] + part + rest[to:])[int(rng.integers(3))]


def elements(data: bytes) -> list[int]:
    """Where elements with explicit VR seem to stand in the first 20,000 bytes."""
    return [i for i in range(132, min(len(data), 20_000) - 8) if data[i + 4 : i + 6] in VRS]


def other_vr(data: bytes, rng: np.random.Generator) -> bytes:
    """An element is told to be of another VR."""
    places = elements(data) or [132]
    at = places[int(rng.integers(len(places)))] + 4
    return data[:at] + VRS[int(rng.integers(len(VRS)))] + data[at + 2 :]


def lying_length(data: bytes, rng: np.random.Generator) -> bytes:
    """An element is told to be of another length."""
    places = elements(data) or [132]
    at = places[int(rng.integers(len(places)))] + 6
    lie = (b"\xff\xff\xff\xff", b"\x00\x00", b"\x01\x00", b"\xff\x7f", struct.pack("<I", 2**31 - 2), b"\x00\x00\xfe\xff\xff\x7f")[
        int(rng.integers(6))
    ]
    return data[:at] + lie + data[at + len(lie) :]


def rewritten(change: Callable[[Dataset, np.random.Generator], None]) -> Mutator:
    """A mutation of a data set that parses; what does not is flipped instead."""

    def mutate(data: bytes, rng: np.random.Generator) -> bytes:
        try:
            header, out = dcmread(io.BytesIO(data), force=True), io.BytesIO()
            change(header, rng)
            header.save_as(out)
            return out.getvalue()
        except Exception:
            return flip(data, rng)

    return mutate


def lying_pixels(header: Dataset, rng: np.random.Generator) -> None:
    """What is said of the pixels is wrong."""
    words = {
        "Rows": (0, 1, 7, 65535, 20000),
        "Columns": (0, 1, 33, 65535, 20000),
        "BitsAllocated": (1, 12, 16, 32, 64),
        "BitsStored": (1, 16, 0),
        "SamplesPerPixel": (0, 2, 3, 4, 1),
        "NumberOfFrames": ("0", "-1", "65", "2147483647", "x"),
        "PhotometricInterpretation": ("RGB", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1", "nothing"),
        "PlanarConfiguration": (0, 1, 9),
        "PixelRepresentation": (0, 1),
    }
    for word in rng.permutation(list(words))[: int(rng.integers(1, 3))]:
        setattr(header, str(word), words[str(word)][int(rng.integers(len(words[str(word)])))])


def other_syntax(header: Dataset, rng: np.random.Generator) -> None:
    """Another transfer syntax than the bytes have."""
    tails = ("", ".1", ".1.99", ".2", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5", ".4.100")
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" + tails[int(rng.integers(len(tails)))]


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """Sequences in sequences, or very many items, behind the rest."""
    if rng.random() < 0.5:
        depth = int(rng.integers(50, 10_000))
        return data + (SEQUENCE + ITEM + b"\xff\xff\xff\xff") * depth + CLOSE * depth * int(rng.integers(2))
    return data + SEQUENCE + (ITEM + bytes(4)) * int(rng.integers(1000, 500_000)) + CLOSE * int(rng.integers(2))


def planted(header: Dataset, rng: np.random.Generator) -> None:
    """Identifiers where no one looks for them."""
    mark = MARKS[int(rng.integers(len(MARKS)))]
    block = header.private_block(0x0029, mark[:16], create=True)
    block.add_new(1, "LO", mark)
    nested = Dataset()
    nested.PatientComments = nested.CodeMeaning = mark
    header.RequestAttributesSequence = [nested]
    for word in rng.permutation(
        ["SeriesDescription", "ImageComments", "PatientComments", "ProtocolName", "DerivationDescription", "OtherPatientIDs"]
    )[:3]:
        setattr(header, str(word), mark)
    header.ManufacturerModelName = f"{header.get('ManufacturerModelName', '')} {mark}"[:64]
    header.add_new(0xFFFCFFFC, "OB", mark.encode() + b"\0" * (len(mark) % 2))


def other_charset(header: Dataset, rng: np.random.Generator) -> None:
    """Another character set than the texts have."""
    sets = ("ISO_IR 192", "ISO 2022 IR 87", "GB18030", "ISO_IR 13", "nothing", ["", "ISO 2022 IR 149"])
    header.SpecificCharacterSet = sets[int(rng.integers(len(sets)))]


MUTATORS: tuple[Mutator, ...] = (
    *(flip, cut, splice, other_vr, lying_length, bomb),
    *(rewritten(change) for change in (lying_pixels, other_syntax, planted, other_charset)),
)
NAMES = ("flip", "cut", "splice", "other VR", "lying length", "bomb", "lying pixels", "other syntax", "planted", "other charset")


def bases() -> list[bytes]:
    """The real files, and two phantoms whose scanner is known, so that damage reaches the whole of intake."""
    from busgen_client.intake.phantom_dicom import write_phantom_study

    real = [path.read_bytes() for path in sorted((SHARED / "dicom").glob("*.dcm"))]
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_study(Path(folder), site="fuzz", patients=2, seed=7)
        return real + [path.read_bytes() for path in sorted(Path(folder).glob("IM*"))[:2]]


def strings_of(data: bytes) -> set[bytes]:
    """What says who, when or where in a file's own header."""
    header = dcmread(io.BytesIO(data))
    words = ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber", "InstitutionName", "ReferringPhysicianName")
    uids = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    said = {str(header.get(word, "")).strip().encode() for word in (*words, *uids)}
    return {part for part in said if len(part) >= SHORTEST and len(set(part)) >= DISTINCT}


def mutant(files: list[bytes], number: int) -> tuple[str, int, bytes]:
    """Mutation ``number``: of which kind, of which file, and its bytes."""
    rng = np.random.default_rng((2026, number))
    kind, base = number % len(MUTATORS), int(rng.integers(len(files)))
    data = MUTATORS[kind](files[base], rng)
    return NAMES[kind], base, flip(data, rng) if data and rng.random() < 0.2 else data


def child(start: int, count: int) -> None:
    """Take mutations in, and say of each in one line what became of it."""
    import torch

    from busgen_client.cohort import CohortStore
    from busgen_client.database import open_store
    from busgen_client.intake import dicom
    from busgen_client.intake.header import quietly

    torch.set_num_threads(1)
    files, log = bases(), io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(log))
    forbidden = {mark.encode() for mark in MARKS} | {part for file in files for part in strings_of(file)}
    really, looked = dicom.clean_pixels, dicom.covered
    with tempfile.TemporaryDirectory() as first:  # what loading takes is not counted
        _one(CohortStore(open_store(Path(first)), Path(first)), Path(first), files[-1])
    whole = [_seconds(file) for file in files] if TEXT_EVERY else []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, used + MORE_BYTES))
    for begin in range(start, start + count, BATCH):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            engine = open_store(folder)
            store = CohortStore(engine, folder)
            for number in range(begin, min(begin + BATCH, start + count)):
                plain = not TEXT_EVERY or number % TEXT_EVERY != 0
                dicom.clean_pixels = (lambda frames, **_: list(frames)) if plain else really
                dicom.covered = (lambda frames, **_: list(frames)) if plain else looked
                with quietly():  # what this benchmark itself reads is not the node's log
                    kind, base, data = mutant(files, number)
                began = time.process_time()
                try:
                    outcome = _one(store, folder, data)
                except Exception as error:
                    outcome = f"raised {type(error).__name__}"
                took = time.process_time() - began
                more = took - (0.0 if plain else whole[base])
                print(json.dumps([number, kind, took, outcome, more]), flush=True)
            leaked = sum(part in content for content in [*_stored(folder), log.getvalue().encode()] for part in forbidden)
            engine.dispose()
            print(json.dumps([begin, "stored", 0.0, f"leaks {leaked}" if leaked else "clean", 0.0]), flush=True)
    print(json.dumps([0, "memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB", 0.0]), flush=True)


def _seconds(file: bytes) -> float:
    """Processor time of an undamaged file, its text looked for."""
    from busgen_client.cohort import CohortStore
    from busgen_client.database import open_store

    with tempfile.TemporaryDirectory() as name:
        engine = open_store(Path(name))
        began = time.process_time()
        _one(CohortStore(engine, Path(name)), Path(name), file)
        engine.dispose()
        return time.process_time() - began


def _one(store: object, folder: Path, data: bytes) -> str:
    from busgen_client.intake.dicom import intake_dicom
    from busgen_client.intake.header import quietly

    source = folder / "in"
    source.mkdir(exist_ok=True)
    (source / "file").write_bytes(data)
    try:
        with quietly():
            stated = str(dcmread(io.BytesIO(data), force=True, stop_before_pixels=True).get("SOPInstanceUID", ""))
    except Exception:
        stated = ""
    labels = folder / "labels.csv"
    labels.write_text(f"SOPInstanceUID,pathology\n{stated if re.fullmatch('[0-9.]+', stated) else '1.2.3'},benign\n")
    result = intake_dicom(store, source, labels, progress=False)  # type: ignore[arg-type]
    return next(iter(result.codes), "admitted" if result.added else "duplicate" if result.duplicates else "skipped")


def _stored(folder: Path) -> list[bytes]:
    """All bytes that the node keeps: files, pictures as pixels, names, rows."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in ("in", "labels.csv")]
    pixels = []
    for path in kept:
        if path.read_bytes()[:4] == b"\x89PNG":
            with Image.open(path) as picture:
                pixels.append(np.asarray(picture).tobytes())
    return [*(path.read_bytes() for path in kept), *pixels, " ".join(str(path.relative_to(folder)) for path in kept).encode()]


def _lines(running: subprocess.Popen[bytes], seconds: float) -> Iterator[str]:
    """What a child says, until it ends or says nothing for so long; loading, and the undamaged files, may take longer."""
    assert running.stdout is not None
    left, longest = b"", seconds + 180
    while wait.select([running.stdout], [], [], longest)[0] and (more := os.read(running.stdout.fileno(), 65536)):
        *whole, left = (left + more).split(b"\n")
        longest = seconds
        yield from (line.decode() for line in whole)


def main() -> None:
    """Measure and write bench/results/intake_fuzz.json."""
    if len(sys.argv) > 2:
        child(int(sys.argv[1]), int(sys.argv[2]))
        return
    began, done, outcomes, slow, longer, bad, leaks, peak = time.perf_counter(), 0, Counter[str](), [], 0, [], 0, 0.0
    bar = tqdm(total=COUNT, desc="mutations", unit="file", mininterval=20)
    again = -1  # the mutation that is tried alone a second time: one that stood still beside other work may have had too little of the machine
    while done < COUNT:
        only = 1 if again == done else COUNT - done
        command = [sys.executable, "-m", "bench.intake_fuzz", str(done), str(only)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        for line in _lines(running, STOP_SECONDS * (5 if again == done else 1)):
            number, kind, seconds, outcome, more = json.loads(line)
            if kind == "memory":
                peak = max(peak, seconds)
            elif kind == "stored":
                leaks += outcome != "clean"
                bad += [f"{number}: {outcome}"] * (outcome != "clean")
            else:
                done = number + 1
                bar.update()
                longer += more > HANG_SECONDS
                outcomes[outcome] += 1
                slow += [(seconds, number, kind)] * (seconds > HANG_SECONDS)
                bad += [f"{number} {kind}: {outcome}"] * outcome.startswith("raised")
        with suppress(subprocess.TimeoutExpired):
            running.wait(1)
        ended = running.poll()
        running.kill()
        running.communicate()
        if only == 1 and done > again:
            continue
        if done < COUNT and ended is None and again != done:
            again = done
        elif done < COUNT:
            bad.append(f"{done} {mutant(bases(), done)[0]}: {'hang' if ended is None else f'process ended with {ended}'}")
            done += 1
    bar.close()
    for line in [*bad, *(f"{number} {kind}: {seconds:.1f} s" for seconds, number, kind in slow)]:
        print("found:", line)
    where = f"of {COUNT} mutations, text looked for in every {TEXT_EVERY}th"
    rows = [row(f"crashes, hangs and errors that are not ours, {where}", len(bad) - leaks, "files", goal="0", met=len(bad) == leaks)]
    rows[0]["seconds"] = round(time.perf_counter() - began)
    rows.append(row(f"mutations that took more than {HANG_SECONDS:g} s of processor time", len(slow), "files", goal="0", met=not slow))
    rows.append(row(f"mutations that took {HANG_SECONDS:g} s more than the undamaged file", longer, "files", goal="0", met=not longer))
    rows.append(
        row(f"stores of {BATCH} in which an identifying string of {SHORTEST} characters or more was kept", leaks, "stores", goal="0", met=not leaks)
    )
    rows.append(row("resident memory of the process, at most", peak, "MiB"))
    rows += [row(f"ended as {outcome}", count, "files") for outcome, count in outcomes.most_common()]
    write("intake_fuzz", rows)


if __name__ == "__main__":
    main()
