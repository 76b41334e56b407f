"""Table of the people who may use the console."""

from sqlalchemy.orm import Mapped, mapped_column

from busgen_client.database import Base


class AccountRow(Base):
    """One person's account.

    Attributes:
        name: What the journal calls the person.
        role: "steward" (decides on the quarantine) or "officer" (sees it all; signs releases).
        password: argon2id hash with its parameters.
        totp: Secret of the one-time codes, base 32, where the site seals nothing; else empty, see ``code_secrets``.
        totp_step: Last 30-second step whose code was used; a code is good once.
    """

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    password: Mapped[str]
    totp: Mapped[str]
    totp_step: Mapped[int] = mapped_column(default=0)
