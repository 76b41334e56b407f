"""The secrets of one-time codes at rest: sealed, a file for each account; in the account's row only where the site seals nothing.

A file takes part in all that ``cohort_files`` and the vault do: it is verified, sealed anew under another key, and keeps its key from being dropped.
Files are written and deleted within the store's transactions alone, which come one after the other, so none is of another account of its name.
"""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.console.rows import AccountRow
from busgen_client.database import compact
from busgen_core.errors import SealError

ROLE = "one-time-code"  # that secrets are sealed for
SUFFIX = ".secret"


class CodeSecrets:
    """The only door to the secrets.

    Args:
        store: The node's; its vault seals them.
    """

    def __init__(self, store: CohortStore) -> None:
        self._engine, self._vault, self._folder = store.engine, store.vault, store.data / "accounts"

    def keep(self, row: AccountRow, secret: str) -> None:
        """Keep a secret for an account, base 32. Within the transaction that writes ``row``.

        Raises:
            StorageKeyError: the site's key is missing or another; nothing was written.
        """
        row.totp = "" if self._vault.seals else secret
        if self._vault.seals:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._vault.write(self._file(row.name), secret.encode(), role=ROLE, name=row.name)

    def check(self) -> None:
        """Return only if sealed secrets can be opened.

        Raises:
            StorageKeyError: the site's key is missing or another.
        """
        self._vault.check()

    def of(self, row: AccountRow) -> str:
        """The secret of an account, base 32.

        Raises:
            StorageKeyError: it is sealed, and the site's key is missing or another.
            SealError: its file is missing, changed, or another account's.
        """
        try:
            return row.totp or self._vault.read(self._file(row.name), role=ROLE, name=row.name).decode()
        except FileNotFoundError:
            raise SealError("the secret of an account's one-time codes is missing; restore it from the backup, or make the account anew") from None

    def drop(self, name: str) -> None:
        """Delete an account's secret. Within the transaction that deletes its row."""
        self._file(name).unlink(missing_ok=True)

    def in_rows(self) -> list[str]:
        """Names of accounts whose secret is not sealed, as from before sealing was switched on."""
        with Session(self._engine) as session:
            return list(session.scalars(select(AccountRow.name).where(AccountRow.totp != "").order_by(AccountRow.name)))

    def files(self) -> set[str]:
        """Names of the files that there should be."""
        with Session(self._engine) as session:
            return {name + SUFFIX for name in session.scalars(select(AccountRow.name).where(AccountRow.totp == ""))}

    def seal(self) -> int:
        """Seal what is not sealed yet, and overwrite what the store has of it; how many. A site that seals nothing keeps it as it is.

        Raises:
            StorageKeyError: the site's key is missing or another; nothing was changed.

        Not promised: a file system or a solid-state disk may keep overwritten bytes for long.
        """
        if not self._vault.seals or not self.in_rows():
            return 0
        with Session(self._engine) as session:
            rows = session.scalars(select(AccountRow).where(AccountRow.totp != "")).all()
            for row in rows:
                self.keep(row, row.totp)
            session.commit()
        compact(self._engine)
        return len(rows)

    def renew(self) -> int:
        """``seal``, put every other secret under the newest key, and delete files of no account; how many were sealed.

        Raises:
            StorageKeyError, SealError: as ``of``.
        """
        done = self.seal()
        with Session(self._engine) as session:
            names = set(session.scalars(select(AccountRow.name).where(AccountRow.totp == "")))
            for file in self._folder.glob("*"):
                if file.name not in {name + SUFFIX for name in names}:
                    file.unlink()
            return done + sum(self._vault.reseal(self._file(name), role=ROLE, name=name) for name in names)

    def _file(self, name: str) -> Path:
        return self._folder / (name + SUFFIX)
