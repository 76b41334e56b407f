"""The node's store: SQLAlchemy on SQLite (WAL) in the data folder."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase

from busgen_core.errors import UnavailableError


class Base(DeclarativeBase):
    """Base of the node's tables."""


MOST_SKIPPED = 10**9  # lines of a list to leave out first; SQLite counts to 2**63 - 1
STORE_FILE = "node.sqlite"  # beside it, while it is open, its log and index: -wal, -shm


def open_store(data: Path) -> Engine:
    """Open (and where needed create) ``node.sqlite`` with all tables.

    Every commit reaches the disk before it returns (synchronous=FULL). Transactions take the write lock at their start
    (BEGIN IMMEDIATE), since one that began as a reader could not wait for it: SQLite refuses that at once
    (sqlite.org/lang_transaction.html, 2.2). They are short, and wait up to 30 s for each other.

    The folder is closed to other users (mode 0700), whatever the umask; see ``is_open_to_others``.

    Raises:
        UnavailableError: the file is no database, is damaged, or stays locked; or the folder cannot be made.
    """
    import busgen_client.cohort
    import busgen_client.console.rows
    import busgen_client.jobs
    import busgen_client.quarantine_rows  # noqa: F401  (the tables register themselves)

    with store_errors():
        data.mkdir(parents=True, exist_ok=True)
        close_to_others(data)
    engine = create_engine(f"sqlite:///{data / STORE_FILE}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _pragmas(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # the begin below is ours, not the driver's
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten with zeros

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        Base.metadata.create_all(engine)
        _add_columns(engine)
    except DatabaseError as error:
        raise UnavailableError(
            f"node.sqlite cannot be used ({type(error).__name__}); restore it from a backup, the ledger is a file of its own"
        ) from None
    return engine


def close_to_others(data: Path) -> None:
    """Let nobody but the owner into the data folder. Where that is not ours to say (another owner, a file system without modes), it stays as
    it is, and ``busgen-node doctor`` says so."""
    if is_open_to_others(data):
        with suppress(OSError):
            data.chmod(0o700)


def is_open_to_others(data: Path) -> bool:
    """Whether another user of this machine may read, write or enter the data folder."""
    return bool(data.stat().st_mode & 0o077)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn failures of the database and the disk into our own error; their texts may hold values and are dropped.

    Raises:
        UnavailableError: the store or the data folder cannot be used.
    """
    try:
        yield
    except DatabaseError as error:
        raise UnavailableError(f"the node's store cannot be used ({type(error).__name__}); check or restore {STORE_FILE}") from None
    except OSError as error:
        raise UnavailableError(f"the node's data folder cannot be used ({error.strerror or type(error).__name__})") from None


def compact(engine: Engine) -> None:
    """Write the store anew without what was deleted, its log too; where another process is at it for long, the next call does so."""
    connection = engine.raw_connection()
    try:
        with suppress(sqlite3.OperationalError):
            for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.cursor().execute(statement)
    finally:
        connection.close()


def _add_columns(engine: Engine) -> None:
    """Add columns that a store of an earlier version lacks, and their indexes; they may be empty, so no row changes."""
    with engine.begin() as connection:
        found = inspect(connection)
        for table in Base.metadata.sorted_tables:
            there = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in there and column.nullable:
                    kind = column.type.compile(engine.dialect)
                    connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN "{column.name}" {kind}')
            for index in table.indexes:
                index.create(connection, checkfirst=True)
