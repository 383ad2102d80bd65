"""What vismem costs on this machine, and what the machine can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

__all__ = ["machine", "measure"]


def machine() -> dict[str, Any]:
    """Versions and abilities of this machine, as ``vismem info`` prints them."""
    import torch

    from vismem import __version__
    from vismem.encoders.lite0 import fast_dtype

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    tiles = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    has_gpu = torch.cuda.is_available()
    packages = ("av", "decord", "opencv-python-headless", "faiss-cpu", "transformers", "rerun-sdk")
    return {
        "vismem": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"AMX {'yes' if tiles else 'no'}, AVX512-BF16 {'yes' if bf16 else 'no'}",
        "encoder type": str(fast_dtype()).removeprefix("torch."),
        "gpu": torch.cuda.get_device_name() if has_gpu else "none",
        **{package: version(package) for package in packages},
    }


def measure(
    source: str,
    *,
    fps: float | None = None,
    frames: int = 200,
    threads: int = 1,
    dtype: str | None = None,
) -> Iterator[str]:
    """Measure decoding, encoding and the whole pipeline on a source, a line each.

    Args:
        source: Anything that `open_stream` takes and that can be opened twice.
        fps: Frames a second to look at; all by default.
        frames: How many frames to measure.
        threads: Threads a picture is encoded with.
        dtype: ``"float32"`` or ``"bfloat16"``; the processor's fastest by default.

    Yields:
        Lines of a table: processor time and wall time of a frame, frames a second.

    Raises:
        SourceError: If the source cannot be read.
    """
    import torch

    from vismem.encoders.embedded import EmbeddedEncoder
    from vismem.pipeline import VisualMemory
    from vismem.streams import open_stream

    torch.set_num_threads(threads)
    facts = machine()
    encoder = EmbeddedEncoder(dtype=getattr(torch, dtype) if dtype else None)
    kind = str(encoder.dtype).removeprefix("torch.")
    yield f"{source}; {facts['machine']}, {kind}, {threads} thread(s) a picture"
    with open_stream(source, fps=fps) as stream:
        size = stream.size
        cpu, wall = time.process_time(), time.perf_counter()
        images = [frame.image for frame in islice(stream, frames)]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = len(images)
    yield f"{count} frames of {size[0]}x{size[1]}" if size else f"{count} frames"
    yield f"{'':<22}{'CPU ms/frame':>14}{'wall ms/frame':>15}"
    yield f"{'decode':<22}{1e3 * cpu / count:>14.1f}{1e3 * wall / count:>15.1f}"
    encoder.encode(images[:1])
    cpus, walls = [], []
    for image in images:
        cpu, wall = time.process_time(), time.perf_counter()
        encoder.encode([image])
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    yield (
        f"{'encode (median)':<22}{1e3 * statistics.median(cpus):>14.1f}"
        f"{1e3 * statistics.median(walls):>15.1f}"
    )
    cpu, wall = time.process_time(), time.perf_counter()
    with VisualMemory(encoder=encoder) as memory, open_stream(source, fps=fps) as stream:
        for frame in islice(stream, frames):
            memory.write(frame)
        memory.flush()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    yield f"{'end to end':<22}{1e3 * cpu / count:>14.1f}{1e3 * wall / count:>15.1f}"
    yield f"{count / wall:.1f} frames a second end to end"
