"""The event index: which label was seen when and where, in SQLite; everything can be rebuilt."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreError

__all__ = ["EVENTS", "Event", "EventIndex"]

#: Name of the file.
EVENTS = "events.sqlite"

_FORMAT = 1
_SCHEMA = f"""
CREATE TABLE segments (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE events (
    start REAL, "end" REAL, time REAL, label TEXT, score REAL,
    x0 REAL, y0 REAL, x1 REAL, y1 REAL, stream TEXT, segment TEXT
);
CREATE INDEX by_label ON events (label, start);
CREATE INDEX by_segment ON events (segment);
PRAGMA user_version = {_FORMAT};
"""


class Event(NamedTuple):
    """Something that was seen for a while.

    Args:
        start: When it was first seen, seconds.
        end: When it was last seen, seconds.
        time: When it was seen best, seconds.
        label: What it is.
        score: How sure, in ``[0, 1]``.
        x0: Left edge of its box at ``time``, as a fraction of the picture; likewise ``y0`` top,
            ``x1`` right, ``y1`` bottom.
        y0: See ``x0``.
        x1: See ``x0``.
        y1: See ``x0``.
        stream: The stream that showed it.
        segment: The segment that holds it; the index fills it in.
    """

    start: float
    end: float
    time: float
    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float
    stream: str
    segment: str = ""


class EventIndex:
    """Finds events by label and time.

    It holds nothing of its own. A database that is damaged, of another version or cannot be
    written is thrown away, and :attr:`covered` then tells what has to be put in again.

    Args:
        directory: The memory.
        read_only: Look, and change nothing; a database that cannot be read counts as empty.

    Example:
        >>> import tempfile
        >>> index = EventIndex(Path(tempfile.mkdtemp()))
        >>> index.replace("s1", [Event(1.0, 2.0, 1.5, "dog", 0.9, 0, 0, 1, 1, "camera")])
        >>> [(event.label, event.segment) for event in index.query("dog", start=1.8)]
        [('dog', 's1')]
        >>> index.close()
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.path = directory / EVENTS
        self._read_only = read_only
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        try:
            self._database = self._connect()
        except sqlite3.Error:
            self._throw_away()

    def _connect(self) -> sqlite3.Connection | None:
        if self.path.is_symlink():
            raise sqlite3.OperationalError("it is a link")
        if not self._read_only:
            return self._checked(sqlite3.connect(self.path, check_same_thread=False))
        if not self.path.exists():
            return None
        uri = self.path.absolute().as_uri()
        try:
            return self._checked(self._reading(f"{uri}?mode=ro"))
        except sqlite3.OperationalError:
            # A read-only medium has no room for the shared index of a WAL, and no writer either.
            if os.access(self.path.parent, os.W_OK):
                raise
            return self._checked(self._reading(f"{uri}?mode=ro&immutable=1"))

    @staticmethod
    def _reading(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    def _checked(self, database: sqlite3.Connection) -> sqlite3.Connection:
        try:
            if not self._read_only:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                # What is forgotten is overwritten, not only unlinked.
                database.execute("PRAGMA secure_delete = ON")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0 and not self._read_only:
                database.executescript(_SCHEMA)
            elif version != _FORMAT:
                raise sqlite3.DatabaseError(f"version {version}")
            database.execute("SELECT count(*) FROM segments").fetchone()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _throw_away(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if not self._read_only:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Give the database, in one transaction; throw it away if it fails."""
        with self._lock:
            try:
                if self._database is None:
                    self._database = self._connect()
                if self._database is None:
                    raise sqlite3.OperationalError("there is none")
                with self._database:
                    yield self._database
            except sqlite3.Error as error:
                self._throw_away()
                fix = (
                    "open the memory for writing and commit to build it"
                    if self._read_only
                    else "it was thrown away; the next commit builds it again"
                )
                raise StoreError(f"{self.path} cannot be used ({error}): {fix}") from error

    @property
    def covered(self) -> set[str]:
        """Names of the segments whose events are in; empty if there is no usable database."""
        if self._read_only and self._database is None:
            return set()
        with self._using() as database:
            return {name for (name,) in database.execute("SELECT name FROM segments")}

    def replace(self, segment: str, events: Iterable[Event]) -> None:
        """Put in the events of a segment, in place of what was known of it.

        Raises:
            StoreError: If it cannot be written; the database was thrown away.
        """
        rows = [event._replace(segment=segment) for event in events]
        with self._using() as database:
            database.execute("DELETE FROM events WHERE segment = ?", (segment,))
            database.executemany(f"INSERT INTO events VALUES ({','.join('?' * 11)})", rows)
            database.execute("INSERT OR REPLACE INTO segments VALUES (?)", (segment,))

    def drop(self, segments: Iterable[str]) -> None:
        """Forget segments, so that no byte of their events is left in any file.

        Raises:
            StoreError: If it cannot be written; the database, and so the events, were thrown away.
        """
        names = [(name,) for name in segments]
        if not names:
            return
        with self._using() as database:
            database.executemany("DELETE FROM events WHERE segment = ?", names)
            database.executemany("DELETE FROM segments WHERE name = ?", names)
        with self._using() as database:
            # The log of the database still has the pages as they were.
            (busy, _, _) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("a reader holds old pages")

    def rebuild(self, segments: Iterable[tuple[str, Iterable[Event]]]) -> None:
        """Begin anew with these segments and their events.

        Raises:
            StoreError: If it cannot be written.
        """
        with self._lock:
            self._throw_away()
        for name, events in segments:
            self.replace(name, events)

    def query(
        self,
        label: str | None = None,
        *,
        start: float = float("-inf"),
        end: float = float("inf"),
        limit: int = 100,
    ) -> list[Event]:
        """Events that overlap a span of time, earliest first.

        Args:
            label: What it must be, or ``None`` for anything.
            start: Seconds.
            end: Seconds.
            limit: At most this many.

        Raises:
            StoreError: If the database cannot be read.
        """
        where = 'start <= ? AND "end" >= ?' + (" AND label = ?" if label is not None else "")
        values = (end, start) + ((label,) if label is not None else ()) + (limit,)
        with self._using() as database:
            rows = database.execute(
                f"SELECT * FROM events WHERE {where} ORDER BY start LIMIT ?", values
            ).fetchall()
        return [Event(*row) for row in rows]

    def damage(self) -> str | None:
        """What is wrong with the database, after reading all of it; ``None`` if nothing is."""
        if not self.path.exists():
            return None
        try:
            with self._using() as database:
                (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        except StoreError as error:
            return str(error)
        return None if found == "ok" else f"{self.path} is damaged ({found})"

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
