"""`Sessions`: who is here; how many may be; and the end of visits whose page is gone."""

from __future__ import annotations

import secrets
import threading
import time

from vismem.closeable import Closeable

from .session import Models, Session
from .settings import DemoSettings

__all__ = ["Sessions"]


class Sessions(Closeable):
    """All visits. One thread ends those that no page belongs to any more.

    Args:
        settings: Of the demo.
        models: What all visits share.
    """

    def __init__(self, settings: DemoSettings, models: Models) -> None:
        self.settings, self.models = settings, models
        self._here: list[Session] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="demo reaper", daemon=True)
        self._reaper.start()

    def __len__(self) -> int:
        return len(self._here)

    def open(self) -> Session | None:
        """Begin a visit; ``None`` if every seat is taken."""
        with self._lock:
            if len(self._here) >= self.settings.seats or self._stop.is_set():
                return None
            session = Session(secrets.token_urlsafe(32), self.settings, self.models)
            self._here.append(session)
            return session

    def of(self, token: str) -> Session | None:
        """The visit of a token; ``None`` if there is none. Takes as long for a near miss."""
        given = token.encode("utf-8", "replace")
        found = None
        for session in list(self._here):
            if secrets.compare_digest(session.token.encode(), given):
                found = session
        return found

    def end(self, session: Session) -> None:
        """End a visit and free all that it held."""
        with self._lock:
            if session in self._here:
                self._here.remove(session)
        session.close()

    def _reap(self) -> None:
        while not self._stop.wait(min(1.0, self.settings.patience / 4)):
            now = time.monotonic()
            for session in list(self._here):
                if not session.viewers and now - session.last_seen > self.settings.patience:
                    self.end(session)

    def close(self) -> None:
        """End all visits."""
        self._stop.set()
        self._reaper.join()
        for session in list(self._here):
            self.end(session)
