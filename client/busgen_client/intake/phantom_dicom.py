"""Writes fictitious ultrasound studies as scanners write them: for demonstrations, installation checks and tests. No person is behind
any of it. A frame holds a phantom in its scan region, text burned in around it, and a header full of names and numbers, private tags too.
"""

import csv
import hashlib
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from busgen_client.devices import PHANTOM_MAKER
from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology
from busgen_core.phantom import SCANNERS, Phantom, Scanner, simulate

COLUMNS, ROWS = 256, 192  # px of the whole frame
REGION_X0, REGION_Y0, REGION_SIZE = 64, 40, 128  # px; the scan region is square
SHARES = (0.20, 0.45, 0.35)  # of patients: normal, benign, malignant
FAMILY = ("EXAMPLE", "FICTITIOUS", "INVENTED", "NOBODY", "PLACEHOLDER", "PRETEND", "SPECIMEN", "TEMPLATE")
GIVEN = ("ADA", "BERTHA", "CLARA", "DORA", "EMMA", "FRIEDA", "GRETA", "HEDDA")
COLUMNS_OF_LABELS = ("SOPInstanceUID", "pathology", "x0", "y0", "x1", "y1", "birads")


def write_phantom_study(folder: Path, *, site: str, patients: int, seed: int) -> None:
    """Write DICOM files and ``labels.csv`` (SOPInstanceUID, pathology, x0, y0, x1, y1 in pixels of the whole frame, birads).

    One or two images a patient, each with a mass of its own. ``site`` decides hospital name and scanner preset, so that sites look different;
    of many sites, some share one of the presets. The same arguments give the same bytes.

    Args:
        folder: Created where needed.
        site: Name of the site.
        patients: Patients to invent, at least 1.
        seed: Seed of patients and phantoms.

    Raises:
        ConfigError: ``patients`` below 1.
    """
    if patients < 1:
        raise ConfigError(f"patients={patients} is below 1")
    folder.mkdir(parents=True, exist_ok=True)
    model = site_scanner(site)
    rng = np.random.default_rng([_number(site), seed])
    labels: list[tuple[str | float, ...]] = [COLUMNS_OF_LABELS]
    for patient in range(patients):
        pathology = list(Pathology)[int(rng.choice(len(SHARES), p=SHARES))]
        person = _person(rng, site, model)
        for image in range(1 + int(rng.random() < 0.4)):
            phantom = simulate(pathology, size=REGION_SIZE, seed=int(rng.integers(2**31)), scanner=model)
            uid = _uid(site, seed, patient, image)
            name = f"IM{len(labels):05d}"
            _write(folder / name, _header(person, uid, _frame(phantom, person), SCANNERS[model]))
            labels.append((uid, pathology.value, *_frame_box(phantom), phantom.birads.value if phantom.birads else ""))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(labels)


def site_scanner(site: str) -> str:
    """Name of the scanner preset that a site's phantoms come from.

    >>> site_scanner("cairo") != site_scanner("rio")
    True
    """
    return list(SCANNERS)[_number(site, "preset") % len(SCANNERS)]


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _uid(*parts: object) -> str:
    """A UID below 2.25 (PS3.5 annex B.2), from a digest instead of a UUID, so that it repeats."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:15], 'big')}"


def _frame_box(phantom: Phantom) -> tuple[str | float, ...]:
    """The phantom's box in pixels of the whole frame; empty fields without a lesion."""
    if phantom.box is None:
        return ("", "", "", "")
    offsets = (REGION_X0, REGION_Y0, REGION_X0, REGION_Y0)
    return tuple(offset + REGION_SIZE * edge for offset, edge in zip(offsets, phantom.box, strict=True))


def _person(rng: np.random.Generator, site: str, model: str) -> Dataset:
    """The study-level header of one fictitious patient."""
    born, studied = date(1940, 1, 1) + timedelta(int(rng.integers(20_000))), date(2020, 1, 1) + timedelta(int(rng.integers(1_800)))
    person = Dataset()
    person.PatientName = f"{FAMILY[int(rng.integers(len(FAMILY)))]}^{GIVEN[int(rng.integers(len(GIVEN)))]}"
    person.PatientID = f"{int(rng.integers(10**9, 10**10))}"
    person.IssuerOfPatientID = site.upper()[:16]
    person.PatientBirthDate = born.strftime("%Y%m%d")
    person.PatientSex = "F"
    person.OtherPatientIDs = f"E{person.PatientID}"
    person.PatientAddress = "1 Nowhere Lane"
    person.PatientTelephoneNumbers = "+00 555 0100"
    person.InstitutionName = f"FICTITIOUS HOSPITAL {site.upper()}"[:64]
    person.StationName = f"US-{site.upper()}"[:16]
    person.ReferringPhysicianName = "REFERRER^INVENTED"
    person.OperatorsName = "OPERATOR^INVENTED"
    person.AccessionNumber = f"{int(rng.integers(10**8, 10**9))}"
    person.StudyDate = person.ContentDate = studied.strftime("%Y%m%d")
    person.StudyTime = "101500"
    person.StudyDescription = "US BREAST"
    person.Manufacturer, person.ManufacturerModelName = PHANTOM_MAKER, model
    person.DeviceSerialNumber = f"{int(rng.integers(10**6, 10**7))}"
    person.StudyInstanceUID = _uid("study", str(person.PatientID))
    person.SeriesInstanceUID = _uid("series", str(person.PatientID))
    private = person.private_block(0x0029, "BUSGEN FICTITIOUS", create=True)
    private.add_new(0x01, "LO", f"{person.PatientName} {person.PatientID}")
    private.add_new(0x02, "PN", str(person.PatientName))
    return person


def _frame(phantom: Phantom, person: Dataset) -> NDArray[np.uint8]:
    """uint8 [ROWS, COLUMNS]: the phantom, name, number and date above it, settings beside it."""
    frame = np.zeros((ROWS, COLUMNS), np.uint8)
    frame[REGION_Y0 : REGION_Y0 + REGION_SIZE, REGION_X0 : REGION_X0 + REGION_SIZE] = phantom.image
    canvas = PillowImage.fromarray(frame)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    pen.text((4, 2), str(person.PatientName).replace("^", ", "), fill=255, font=font)
    pen.text((4, 16), f"{person.PatientID}   {person.StudyDate}", fill=255, font=font)
    pen.text((4, 60), "MI 1.1", fill=200, font=font)
    pen.text((196, 60), f"{SCANNERS[phantom.scanner].centre_mhz:g} MHz", fill=200, font=font)
    pen.text((4, 174), str(person.InstitutionName), fill=255, font=font)
    return np.asarray(canvas)


def _header(person: Dataset, uid: str, frame: NDArray[np.uint8], scanner: Scanner) -> Dataset:
    """The whole object: ``person`` and the Ultrasound Image IOD's pixel modules (PS3.3 A.6)."""
    header = Dataset()
    header.update(person)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = UltrasoundImageStorage, uid, "US"
    header.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    header.InstanceNumber = 1
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0  # 2D, tissue
    region.RegionLocationMinX0, region.RegionLocationMinY0 = REGION_X0, REGION_Y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = REGION_X0 + REGION_SIZE - 1, REGION_Y0 + REGION_SIZE - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = scanner.width_cm / REGION_SIZE, scanner.depth_cm / REGION_SIZE
    header.SequenceOfUltrasoundRegions = [region]
    header.BurnedInAnnotation = "YES"
    header.Rows, header.Columns = frame.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelData = frame.tobytes()
    return header


def _write(path: Path, header: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    FileDataset(str(path), header, file_meta=meta, preamble=b"\0" * 128).save_as(path, enforce_file_format=True)
