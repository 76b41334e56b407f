"""The hub's tables: SQLAlchemy on SQLite (WAL). No column holds anything of a patient."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sqlalchemy import JSON, Connection, DateTime, Dialect, Engine, ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

BUSY_SECONDS = 30  # a writer waits this long for another process before it fails
WRITING = {"busgen_write": True}  # execution option of a transaction that will write

CampaignState = Literal["open", "scoring", "done", "cancelled"]
ReleaseState = Literal["admitted", "rejected", "retired"]
Json = dict[str, object]


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store as UTC without zone."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read as UTC with zone."""
        return None if value is None else value.replace(tzinfo=UTC)


def now() -> datetime:
    """This moment in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of the hub's tables."""

    type_annotation_map = {datetime: UtcTime, Json: JSON, list[float]: JSON}  # noqa: RUF012  (SQLAlchemy's own name and type)


class SiteRow(Base):
    """One hospital, its keys, and when its node was last heard of."""

    __tablename__ = "sites"

    name: Mapped[str] = mapped_column(primary_key=True)
    node_key: Mapped[str]  # Ed25519 public key that signs releases, hex
    officer_key: Mapped[str]  # the privacy officer's, hex
    flower_key: Mapped[str]  # EC P-384 SSH public key of the SuperNode
    node_id: Mapped[str | None] = mapped_column(unique=True, default=None)  # Flower's node id, once known
    last_seen: Mapped[datetime | None] = mapped_column(default=None)
    health: Mapped[Json] = mapped_column(default=dict)  # wire.HelloReply without the site
    created: Mapped[datetime] = mapped_column(default=now)


class CampaignRow(Base):
    """One campaign; ``offer`` is wire.Campaign as JSON."""

    __tablename__ = "campaigns"

    campaign_id: Mapped[str] = mapped_column(primary_key=True)
    offer: Mapped[Json]
    state: Mapped[str] = mapped_column(default="open")
    created: Mapped[datetime] = mapped_column(default=now)


class JobRow(Base):
    """What one node last said of one campaign."""

    __tablename__ = "jobs"

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.campaign_id"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    state: Mapped[str]
    code: Mapped[str] = mapped_column(default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    foundation_have: Mapped[int] = mapped_column(default=0)
    release_id: Mapped[str] = mapped_column(default="")
    release_bytes: Mapped[int] = mapped_column(default=0)
    release_sha256: Mapped[str] = mapped_column(default="")
    updated: Mapped[datetime] = mapped_column(default=now)


class ReleaseRow(Base):
    """One release that arrived. A rejected one has a ``code`` and no folder; a retired one is in no later pool."""

    __tablename__ = "releases"

    release_id: Mapped[str] = mapped_column(primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.campaign_id"))
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"))
    state: Mapped[str]
    code: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    epsilon: Mapped[float | None] = mapped_column(default=None)
    delta: Mapped[float | None] = mapped_column(default=None)
    gate: Mapped[str] = mapped_column(default="")
    images: Mapped[int] = mapped_column(default=0)
    folder: Mapped[str] = mapped_column(default="")  # relative to the data folder
    created: Mapped[datetime] = mapped_column(default=now)


class ReauditRow(Base):
    """What the hub found in a release without patients; ``found`` is busgen_privacy.reaudit_findings.Reaudit as JSON, None until there is one."""

    __tablename__ = "reaudits"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"), primary_key=True)
    found: Mapped[Json | None] = mapped_column(default=None)
    code: Mapped[str] = mapped_column(default="")  # of the last failure; empty after a success
    attempts: Mapped[int] = mapped_column(default=0)  # since the last success
    updated: Mapped[datetime] = mapped_column(default=now)


class WithdrawalRow(Base):
    """A site's notice that its release of a campaign holds a patient who withdrew consent since. It is never taken back."""

    __tablename__ = "withdrawals"

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.campaign_id"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    created: Mapped[datetime] = mapped_column(default=now)


class ModelRow(Base):
    """One downstream model of a campaign, and what it was trained on."""

    __tablename__ = "models"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.campaign_id"))
    name: Mapped[str]
    trained_on: Mapped[str]
    weights: Mapped[str]  # file, relative to the data folder
    sha256: Mapped[str]
    edges: Mapped[list[float]]  # inner edges of the score bins
    created: Mapped[datetime] = mapped_column(default=now)


class ScoreRow(Base):
    """Noised counts of one model at one site (wire.BinnedCounts as JSON), or the code of a refusal."""

    __tablename__ = "scores"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.model_id"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    counts: Mapped[Json | None] = mapped_column(default=None)
    code: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime] = mapped_column(default=now)


class ResultRow(Base):
    """One line of the result table: a model's AUC at one site, or at "pool" for all."""

    __tablename__ = "results"

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.campaign_id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    auc: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    details: Mapped[Json] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(default=now)


class JournalRow(Base):
    """One event: a constant name, ids and counts."""

    __tablename__ = "journal"

    entry: Mapped[int] = mapped_column(primary_key=True)
    event: Mapped[str]
    fields: Mapped[Json] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(default=now)


def open_store(data: Path) -> Engine:
    """Open (and where needed create) ``hub.sqlite`` with all tables.

    Several processes may hold it open. A writing transaction takes the lock at its start (BEGIN IMMEDIATE): one that
    began as a reader could not wait for it, SQLite refuses that at once. Source: sqlite.org/lang_transaction.html, 2.2.
    """
    data.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{data / 'hub.sqlite'}", connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _pragmas(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # the begin below is ours, not the driver's
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("busgen_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    with engine.execution_options(**WRITING).begin() as connection:
        Base.metadata.create_all(connection)
    return engine
