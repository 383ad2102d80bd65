"""A child process to be killed: what it was doing is what is tested."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Start a child that runs ``work(pipe)``; gives its pid and the pipe to read from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        work(writer)
        os._exit(0)
    except BaseException:
        os._exit(1)
