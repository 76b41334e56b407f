"""Who may use the console: a name, a role, a password (argon2id) and one-time codes (TOTP) from the person's own phone.

Guarantees:
    - A password is kept as an argon2id hash alone, the secret of one-time codes sealed (``code_secrets``).
    - A one-time code is good once, and 30 seconds early or late.
    - A wrong name, password or code look and cost the same.
"""

import re
import secrets
import time
from dataclasses import dataclass

import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.console.code_secrets import CodeSecrets
from busgen_client.console.roles import Role
from busgen_client.console.rows import AccountRow
from busgen_core.errors import InputError, StateError

HASHER = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)  # RFC 9106, section 4, second recommended option: 64 MiB
NAME = re.compile(r"[a-z][a-z0-9._-]{1,31}")
SHORTEST, LONGEST = 12, 1024  # characters of a password
STEP_SECONDS = 30  # RFC 6238, section 4.1
NOBODY = HASHER.hash(secrets.token_hex())  # what a name that does not exist is compared with, so that it takes as long


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One person."""

    name: str
    role: Role


class Accounts:
    """All reads and writes of accounts.

    Args:
        store: The node's.
    """

    def __init__(self, store: CohortStore) -> None:
        self._engine, self.secrets = store.engine, CodeSecrets(store)

    def add(self, name: str, role: Role, password: str) -> str:
        """Make an account.

        Returns:
            The secret of its one-time codes, base 32; shown once, to be put into an authenticator.

        Raises:
            InputError: the name is not 2 to 32 of ``a-z 0-9 . _ -``, or the password is not 12 to 1024 characters.
            StateError: the name is taken.
            StorageKeyError: the site's key is missing or another, so the secret could not be sealed.
        """
        if not NAME.fullmatch(name):
            raise InputError("a name is 2 to 32 of a-z, 0-9, '.', '_' and '-', and begins with a letter")
        if not SHORTEST <= len(password) <= LONGEST:
            raise InputError(f"a password has at least {SHORTEST} characters, at most {LONGEST}; a sentence is easy to remember")
        hashed, secret = HASHER.hash(password), pyotp.random_base32()
        with Session(self._engine) as session:
            if session.get(AccountRow, name) is not None:
                raise StateError(f"there is an account of the name {name}; remove it first")
            row = AccountRow(name=name, role=role.value, password=hashed)
            self.secrets.keep(row, secret)
            session.add(row)
            session.commit()
        return secret

    def remove(self, name: str) -> None:
        """Take an account away; who is signed in with it is out at once.

        Raises:
            StateError: there is none of that name.
        """
        with Session(self._engine) as session:
            row = session.get(AccountRow, name)
            if row is None:
                raise StateError(f"there is no account of the name {name}")
            self.secrets.drop(name)
            session.delete(row)
            session.commit()

    def all(self) -> list[Account]:
        """All accounts, by name."""
        with Session(self._engine) as session:
            return [_account(row) for row in session.scalars(select(AccountRow).order_by(AccountRow.name))]

    def find(self, name: str) -> Account | None:
        """The account of a name, or None."""
        with Session(self._engine) as session:
            row = session.get(AccountRow, name)
            return _account(row) if row else None

    def check(self, name: str, password: str, code: str) -> Account | None:
        """The account, if name, password and one-time code are right; then the code is used up. Else None, whatever of them is wrong.

        Raises:
            StorageKeyError: the site's key is missing or another; nothing was compared, so this says nothing of name and password.
            SealError: name and password are right, and the secret of the codes is damaged.
        """
        self.secrets.check()
        with Session(self._engine) as session:
            row = session.get(AccountRow, name)
            hashed = row.password if row else NOBODY
        if not _matches(hashed, password[:LONGEST]) or row is None:
            return None
        return self._use(name, hashed, code)

    def _use(self, name: str, hashed: str, code: str) -> Account | None:
        with Session(self._engine) as session:  # takes the write lock, so two sign-ins cannot use one code
            row = session.get(AccountRow, name)
            if row is None or row.password != hashed:  # removed or made anew meanwhile
                return None
            step = _step_of(self.secrets.of(row), code, after=row.totp_step)
            if step is None:
                return None
            row.totp_step = step
            session.commit()
            return _account(row)


def enrolment(name: str, secret: str, *, site: str) -> str:
    """The address that an authenticator reads as a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=f"BUSGen node {site}")


def _matches(hashed: str, password: str) -> bool:
    try:
        return HASHER.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


def _step_of(secret: str, code: str, *, after: int) -> int | None:
    """The time step that a code belongs to, of the last, this and the next (RFC 6238, section 5.2), and later than the last one used."""
    now, codes = int(time.time()) // STEP_SECONDS, pyotp.TOTP(secret)
    given = code.strip().encode()
    fits = [step for step in (now - 1, now, now + 1) if secrets.compare_digest(codes.at(step * STEP_SECONDS).encode(), given)]
    return next((step for step in fits if step > after), None)


def _account(row: AccountRow) -> Account:
    return Account(name=row.name, role=Role(row.role))
