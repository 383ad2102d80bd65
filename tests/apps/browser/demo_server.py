"""A `vismem demo` in a process of its own, seen from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 90.0  # seconds: a machine may be slow, a test that fails may not be right
# The real command, which writes the stacks of its threads when it gets SIGUSR1.
START = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR1, all_threads=True)
from vismem.cli import main
sys.exit(main(sys.argv[1:]))
"""


def until(ready: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Wait until something is so, and give it."""
    end = time.monotonic() + seconds
    while not (value := ready()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return value


class Server:
    """The server, with a temporary folder of its own, so that what a visit leaves there is seen.

    Args:
        folder: For that, and for what it prints.
        *options: Of `vismem demo`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "temporary"
        self.folder.mkdir()
        self._log = folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-c", START, "demo", "--port", str(self.port), *options]
        environment = os.environ | {"TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        until(self._answers, "the server answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"the server ended:\n{self.log}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self._log.read_text("utf-8", "replace")

    @property
    def visits(self) -> list[Path]:
        """The folders of the visits that are going on."""
        return sorted(self.folder.glob("vismem-demo-*"))

    def players(self) -> int:
        """How many threads play a source now."""
        seen = len(self.log)
        os.kill(self._process.pid, signal.SIGUSR1)
        # The main thread, whose stack begins in START, is written last.
        dump = until(lambda: '"<string>", line' in self.log[seen:] and self.log[seen:], "stacks")
        return len(re.findall(r"player\.py\", line \d+ in _run$", dump, re.MULTILINE))

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
