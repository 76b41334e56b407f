"""Draws docs/intake-pixels.png: a phantom's frame as a scanner would write it, and what intake stores of it. Run: python -m bench.intake_picture.

No person and no real image is in it.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmread

from bench.intake_speed import PROFILE
from bench.lettering import OWN
from bench.rows import ROOT
from busgen_client.intake.dicom import clean_scans
from busgen_client.intake.header import read_clean
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate

ROWS, COLUMNS, LEFT, TOP, SIDE = 420, 480, 60, 70, 320  # px
OUT = ROOT / "docs" / "intake-pixels.png"


def frame(header: Dataset) -> Image.Image:
    """The whole frame: a scan with letters, calipers, ticks and a gray bar over it, and text around it."""
    whole = np.zeros((ROWS, COLUMNS), np.uint8)
    whole[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = simulate(Pathology.MALIGNANT, size=SIDE, seed=12).image
    whole[TOP + 30 : TOP + 130, LEFT : LEFT + 8] = np.linspace(255, 0, 100).astype(np.uint8)[:, None]
    picture = Image.fromarray(whole)
    pen, font = ImageDraw.Draw(picture), ImageFont.truetype(str(OWN / "DejaVuSans.ttf"), 15)
    name = str(header.PatientName).replace("^", ", ")
    for at, text in (((8, 6), name), ((8, 28), f"{header.PatientID}   {header.StudyDate}"), ((390, 90), "MI 1.1"), ((8, 396), "FICTITIOUS HOSPITAL")):
        pen.text(at, text, fill=255, font=font)
    pen.text((LEFT + 40, TOP + 16), name, fill=235, font=font)  # a sonographer's note, over tissue
    pen.text((LEFT + 40, TOP + 288), "LT BREAST 02.11.1961", fill=255, font=font)
    for x, y in ((LEFT + 105, TOP + 140), (LEFT + 215, TOP + 170)):
        pen.line((x - 5, y, x + 5, y), fill=255)
        pen.line((x, y - 5, x, y + 5), fill=255)
    for y in range(TOP + 20, TOP + SIDE, 40):
        pen.line((LEFT + SIDE - 5, y, LEFT + SIDE - 1, y), fill=255)
    return picture


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_study(Path(folder), site="docs", patients=1, seed=4)
        header = dcmread(Path(folder) / "IM00001")
    before, out = frame(header), io.BytesIO()
    region = header.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMinX0, region.RegionLocationMinY0 = LEFT, TOP
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = LEFT + SIDE - 1, TOP + SIDE - 1
    header.Rows, header.Columns, header.PixelData = ROWS, COLUMNS, before.tobytes()
    header.save_as(out)
    read = read_clean(out.getvalue(), PROFILE)
    _, (after,), _ = clean_scans(read.header, deny=read.deny)
    sheet = Image.new("L", (COLUMNS + SIDE + 20, ROWS))
    sheet.paste(before, (0, 0))
    sheet.paste(Image.fromarray(after), (COLUMNS + 10, TOP))
    sheet.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
