"""The SQLite connection: opening, migrating, transactions, and SQLite's errors as ours.  Synchronous.

WAL with `synchronous=NORMAL`: a commit is a write to the page cache, tens of microseconds, and
survives the death of this process at any moment (kill -9).  After a *power* loss the file is still
consistent, but the last commits may be gone; `transaction(durable=True)` syncs at its end, and with it
everything committed before.  One connection, used from the thread that opened it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator

from insula.errors import CorruptData, DiskFull, Failure, InsulaError, Unavailable
from insula.store.migrations import STEPS

log = logging.getLogger(__name__)

_BUSY_MS = 5000
# fsync happens at checkpoints: fewer, larger ones (pages of 4 KiB) keep it away from create and start
_CHECKPOINT_PAGES = 4000
# kept free inside the file and its log: on a full disk a state can be recorded and an instance removed
_RESERVE_PAGES = 256
_SCARCE_BYTES = 32 << 20
_KEPT = ".kept"
_LOG_HEADER = 32
_MOST_KEPT_BYTES = 2 << 20


class Database:
    """Rows in and out.  Any SQLite failure leaves as an InsulaError and rolls the transaction back."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._depth = 0
        self._directory = os.path.dirname(path) or "."
        with self._errors():
            self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        connection = self._connection
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > len(STEPS):
            raise Failure(
                f"{self.path} has schema {found}, written by a newer insula; this one knows {len(STEPS)}",
                hint="install that version again, or start with another --data-root",
            )
        for number, step in enumerate(STEPS[found:], start=found + 1):
            with self.transaction(durable=True):
                for statement in step:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
        self._reserve()

    def _reserve(self) -> None:
        """Space on the disk that is this file's own already: pages written and given free again.

        SQLite uses them again before it makes a file longer, in the database and, from its beginning after
        each checkpoint, in the log.  A disk too full for that must not keep the engine from starting.
        """
        connection = self._connection
        try:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            enough = _RESERVE_PAGES // 2
            if free >= enough and os.path.getsize(f"{self.path}-wal") >= enough * page:
                return  # of an earlier connection
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            with self.transaction():
                connection.execute("CREATE TABLE reserve (space BLOB)")
                connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (_RESERVE_PAGES * page,))
                connection.execute("DROP TABLE reserve")
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except (sqlite3.Error, InsulaError, OSError) as error:
            log.warning("%s: no reserve for a full disk: %s", self.path, error)

    def _make_room(self) -> None:
        """Before a change, when the disk is nearly full: write to the log from its beginning again."""
        found = os.statvfs(self._directory)
        if found.f_bavail * found.f_frsize < _SCARCE_BYTES:
            with contextlib.suppress(sqlite3.Error):  # the change itself says it, if it then fails
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def close(self) -> None:
        with self._errors(), self._log_kept():
            self._connection.close()

    @contextlib.contextmanager
    def _log_kept(self) -> Iterator[None]:
        """SQLite removes its log and the log's index with the last connection, and the reserve with them: on
        a disk that is full the next daemon could change nothing, nor remove an instance.

        They stay, as after a crash in that moment, but with the log's header erased: what is in it is in the
        database, and must not get into a copy that somebody puts in that one's place.
        """
        names = (f"{self.path}-wal", f"{self.path}-shm")
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + _KEPT)
            with contextlib.suppress(OSError):
                os.link(name, name + _KEPT)
        yield
        for name in names:
            with contextlib.suppress(OSError):
                if not os.path.exists(name):  # or somebody else has it open
                    with open(name + _KEPT, "r+b") as file:
                        file.write(bytes(_LOG_HEADER))
                        file.truncate(min(os.fstat(file.fileno()).st_size, _MOST_KEPT_BYTES))
                    os.rename(name + _KEPT, name)
                else:
                    os.unlink(name + _KEPT)

    def execute(self, sql: str, arguments: Iterable[object] = ()) -> sqlite3.Cursor:
        if not self._depth:
            self._make_room()
        with self._errors():
            return self._connection.execute(sql, tuple(arguments))

    def rows(self, sql: str, arguments: Iterable[object] = ()) -> list[tuple[str, ...]]:
        with self._errors():
            return self._connection.execute(sql, tuple(arguments)).fetchall()

    def row(self, sql: str, arguments: Iterable[object] = ()) -> tuple[str, ...] | None:
        with self._errors():
            found: tuple[str, ...] | None = self._connection.execute(
                sql,
                tuple(arguments),
            ).fetchone()
            return found

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing.  May be nested: the outermost decides.  Nothing may be awaited inside."""
        if self._depth:
            yield  # part of the outer one: an exception leaves through it, too
            return
        if durable:
            self.execute("PRAGMA synchronous = FULL")
        try:
            self.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has rolled back by itself when the disk is full
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
        finally:
            if durable:
                self.execute("PRAGMA synchronous = NORMAL")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """IntegrityError passes: the caller knows what a double means."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> InsulaError:
        code = getattr(error, "sqlite_errorcode", 0)
        # IOERR_SHMSIZE is what a full disk looks like while the WAL's index grows
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
            return DiskFull(
                f"no space left on the disk while writing {self.path}",
                hint="free some space: insula system prune",
            )
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Unavailable(
                f"{self.path} is locked by another process", hint="is a second daemon using this data root?"
            )
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return CorruptData(
                f"{self.path} is damaged: {error}", hint="move it away, or restore it from a backup"
            )
        if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            return Unavailable(
                f"{self.path} cannot be opened for writing: {error}",
                hint="does its directory exist, and is it writable?",
            )
        return Failure(f"{self.path}: {error}")
