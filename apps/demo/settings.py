"""What whoever starts the demo decides: where it listens, who may come in, and the limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from vismem.errors import UsageError

__all__ = ["BUDGETS", "DemoSettings"]

BUDGETS = ("100kB", "250kB", "1MB", "4MB", "16MB", "64MB")  # what a visitor may choose from


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        auth: User and password that everybody must give.
        allow_hosts: Hosts of cameras that visitors may open although they are in a private network.
        source: Clip that plays when the page opens; the gallery clip by default.
        budget: Bytes that a visitor's memory begins with, one of `BUDGETS`.
        seats: Visitors at once.
        upload_bytes: Largest file that a visitor may upload.
        clip_seconds: Longest clip that a visitor may upload, in seconds.
        play_seconds: How long a source plays until somebody must press play again, in seconds.
        pixels: Largest picture that is decoded, width times height.
        patience: How long a visit lives without its page, in seconds.
        watch_fps: Most frames a second of the live picture.
        memory_fps: Frames a second that the memory gets.

    Raises:
        UsageError: If others could reach the page without a password, or a number is out of range.

    Example:
        >>> DemoSettings().local, DemoSettings(host="0.0.0.0", auth=("me", "secret")).local
        (True, False)
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[str, str] | None = None
    allow_hosts: tuple[str, ...] = ()
    source: Path | None = None
    budget: str = "250kB"
    seats: int = 4
    upload_bytes: int = 200_000_000
    clip_seconds: float = 1800.0
    play_seconds: float = 900.0
    pixels: int = 4096 * 2304
    patience: float = 15.0
    watch_fps: float = 15.0
    memory_fps: float = 2.0

    def __post_init__(self) -> None:
        if not self.local and self.auth is None:
            raise UsageError(
                f"on {self.host} others could watch; add --auth USER:PASSWORD, "
                "or leave out --host to stay on this machine"
            )
        if self.auth is not None and not all(self.auth):
            raise UsageError("--auth takes a user and a password: --auth me:secret")
        if not 0 <= self.port < 65536:
            raise UsageError(f"a port is 0 to 65535, not {self.port}")
        if self.budget not in BUDGETS:
            raise UsageError(f"a budget is one of {', '.join(BUDGETS)}, not {self.budget}")
        if self.seats < 1:
            raise UsageError(f"there is room for 1 visitor or more, not {self.seats}")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the page."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
