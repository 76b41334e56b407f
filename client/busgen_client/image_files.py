"""The files of the cohort's images: data/images, one a row, sealed for the image's own id where the site seals its files.

A file is complete on disk (written aside, fsync, renamed) before its row commits, so a crash leaves at most a file that no row names.
"""

import os
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from busgen_client.cohort_rows import ImageRow
from busgen_client.database import store_errors
from busgen_client.storage import Vault
from busgen_core.digests import sha256_bytes
from busgen_core.errors import CorruptImageError, SealError, StorageKeyError

SEALED, PLAIN = ".sealed", ".png"  # suffixes of image files
IMAGE = "image"  # the role that images are sealed for
SWEPT_AT_ONCE = 500  # files


class ImageFiles:
    """The only door to the files; what names them are the rows in the node's store.

    Args:
        engine: The node's store.
        data: The node's data folder; holds ``images/``.
        vault: Seals and opens.

    Raises:
        UnavailableError: the folder cannot be made.
    """

    def __init__(self, engine: Engine, data: Path, vault: Vault) -> None:
        self._engine, self._folder, self._vault = engine, data / "images", vault
        with store_errors():
            self._folder.mkdir(parents=True, exist_ok=True)

    def name_for(self, session: Session, image_id: str, *, anew: bool = False) -> str:
        """Name of a file to be written now; with ``anew``, beside the one that the image has.

        Raises:
            StorageKeyError: sealing it would make new keys beside files that were sealed with others.
        """
        sealed = select(ImageRow.image_id).where(ImageRow.file.endswith(SEALED)).limit(1)
        if self._vault.seals and not self._vault.begun and session.scalar(sealed):
            raise StorageKeyError("storage.json is missing, and images are sealed; restore it from the backup, nothing opens without it")
        return self._named(f"{image_id}.{uuid.uuid4().hex}" if anew else image_id)

    def _named(self, stem: str) -> str:
        return stem + (SEALED if self._vault.seals else PLAIN)

    def write(self, name: str, image_id: str, png: bytes) -> None:
        """Write one file, whole; its row is to follow."""
        self._vault.write(self._folder / name, png, role=IMAGE, name=image_id)

    def delete(self, names: Sequence[str]) -> None:
        """Delete files that no row names, there or not."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def read(self, row: ImageRow) -> bytes:
        """The PNG of one image.

        Raises:
            CorruptImageError: the file is missing, or is not the bytes that were stored.
            StorageKeyError: it is sealed, and the key is not there.
        """
        data = self._content(row.file, row.image_id)
        if data is None and (now := self._row_now(row.image_id)):  # 'cohort encrypt' or a release runs beside us
            row, data = now, self._content(now.file, now.image_id)
        if data is None:
            raise CorruptImageError(f"image {row.image_id} is missing from the data folder; restore it from the backup")
        if sha256_bytes(data) != row.sha256:
            raise CorruptImageError(f"image {row.image_id} is not the bytes that were stored; restore it from the backup")
        return data

    def _content(self, file: str, image_id: str) -> bytes | None:
        """The PNG in a file; None if the file is not there."""
        try:
            with store_errors():
                stored = (self._folder / file).read_bytes() if (self._folder / file).exists() else None
            return self._vault.open(stored, role=IMAGE, name=image_id) if stored is not None and file.endswith(SEALED) else stored
        except SealError:
            raise CorruptImageError(f"image {image_id} is cut short, changed or another's; restore it from the backup") from None

    def names(self) -> set[str]:
        """Names of all files in the folder of images."""
        with store_errors():
            return {file.name for file in self._folder.iterdir()}

    def reseal(self, row: ImageRow) -> bool:
        """Seal one image as it would be sealed now; False if it is so already. While ``intake`` is held.

        The new file is whole before the row names it, and the old one goes after, so a crash leaves a whole image and at most a file too many.
        """
        with store_errors():
            stored = (self._folder / row.file).read_bytes() if (self._folder / row.file).exists() else b""
        if self._vault.is_current(stored):
            return False
        path = self._folder / self._named(row.image_id)
        with store_errors(), Session(self._engine) as session:
            self._vault.write(path, self.read(row), role=IMAGE, name=row.image_id)
            if path.name != row.file:
                session.execute(update(ImageRow).where(ImageRow.image_id == row.image_id).values(file=path.name))
                session.commit()
                (self._folder / row.file).unlink()
        return True

    def _row_now(self, image_id: str) -> ImageRow | None:
        with store_errors(), Session(self._engine) as session:
            return session.get(ImageRow, image_id)

    def sweep(self) -> None:
        """Delete image files that no row names; only while ``intake`` is held, since intake writes the file before the row."""
        with store_errors(), os.scandir(self._folder) as entries:
            names = (entry.name for entry in entries)
            while some := list(islice(names, SWEPT_AT_ONCE)):
                for name in self._strays(some):
                    (self._folder / name).unlink()

    def _strays(self, names: Sequence[str]) -> set[str]:
        ids = [name.partition(".")[0] for name in names]
        with Session(self._engine) as session:
            return set(names).difference(session.scalars(select(ImageRow.file).where(ImageRow.image_id.in_(ids))))
