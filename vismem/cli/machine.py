"""What the machine can do, and how fast: ``vismem info | bench``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from vismem.cli.run import presets

__all__ = ["Bench", "Info"]


@dataclass
class Info:
    """Show versions, what the machine can do, encoders and presets."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.bench import machine

        for name, value in (machine() | {"presets": ", ".join(presets())}).items():
            print(f"{name:<14} {value}")
        return 0


@dataclass
class Bench:
    """Measure what decoding, encoding and the whole pipeline cost on a clip."""

    source: Positional[str | None] = None
    """Any source; the gallery clip by default."""
    frames: int = 200
    """How many frames to measure."""
    fps: float | None = None
    """Frames a second to look at; all by default."""
    threads: int = 1
    """Threads a picture is encoded with."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the convolutions; the processor's fastest by default."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from importlib.resources import as_file, files

        from vismem.bench import measure

        with as_file(files("vismem.data") / "gallery.mp4") as gallery:
            source = self.source or str(gallery)
            lines = measure(
                source, fps=self.fps, frames=self.frames, threads=self.threads, dtype=self.dtype
            )
            for line in lines:
                print(line)
        return 0
