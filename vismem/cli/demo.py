"""``vismem demo``: a page in the browser that watches, remembers and answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from vismem.errors import UsageError, require

__all__ = ["Demo"]


@dataclass
class Demo:
    """Open a page that watches a clip, a webcam or a camera, remembers it and answers."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs --auth."""
    port: int = 7860
    """Port to listen on."""
    auth: str | None = None
    """USER:PASSWORD that everybody must give."""
    allow_host: tuple[str, ...] = ()
    """Cameras in a private network that visitors may open."""
    source: Path | None = None
    """Clip that plays first; the gallery clip by default."""
    seats: int = 4
    """Visitors at once, each with a memory of their own."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.apps.demo import DemoSettings

        user, colon, password = (self.auth or "").partition(":")
        if self.auth is not None and not colon:
            raise UsageError("--auth takes a user and a password: --auth me:secret")
        settings = DemoSettings(
            host=self.host,
            port=self.port,
            auth=(user, password) if self.auth is not None else None,
            allow_hosts=self.allow_host,
            source=self.source,
            seats=self.seats,
        )
        if self.source is not None and not self.source.exists():
            raise UsageError(f"there is no {self.source}; give a clip, or leave out --source")
        for module in ("gradio", "fastapi", "uvicorn", "websockets"):
            require(module, extra="demo")
        from vismem.apps.demo.server import serve

        host = f"[{self.host}]" if ":" in self.host else self.host
        print(f"vismem demo: http://{host}:{self.port}  (Ctrl-C ends it)", file=sys.stderr)
        serve(settings)
        return 0
