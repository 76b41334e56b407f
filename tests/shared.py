"""Where tests find the real images; they lie beside the checkout and never in it."""

import os
from pathlib import Path

import pytest


def shared_data() -> Path:
    """Folder of the real images, or skip: set BUSGEN_SHARED_DATA, or keep ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("BUSGEN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "cairo" / "images.csv").is_file():
        pytest.skip("real images are not beside the checkout (shared/data); CI has them")
    return folder
