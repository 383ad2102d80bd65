"""Does a memory of views stay as large and as fast as it is while frames keep coming?

Three streams, one after the other in one process, all with random weights: sizes and times do not
depend on them, masks do.

* host: `MemoryHost` in SAM 2's true widths (256, maps of 64, four layers) on a small grid, reading
  all views of a `SpatialMemory` under the novelty policy and writing every frame;
* tracker: `MaskTracker`, what ``vismem track`` runs, on a tiny SAM 2 video model;
* stock: the same model with its own session, which keeps every frame.

    OMP_NUM_THREADS=1 python benchmarks/spatial_stream.py
    OMP_NUM_THREADS=1 python benchmarks/spatial_stream.py --frames 300 --tracked 100 --stock 50

The resident size is Linux's. Features of the host are of twelve scenes that come back, with noise;
pictures of the trackers are noise of several scales, so that every frame is news.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem import Frame
from vismem.memory.spatial import SpatialConfig, SpatialMemory
from vismem.models.mask_tracker import MaskTracker, Prompt
from vismem.models.sam2_memory import HostConfig, MemoryHost

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_masks import tiny_sam2  # noqa: E402  # the tests' model, not to build another

SIZE = 96  # pixels of a side of the trackers' pictures
SCENES, STAY = 12, 50  # of the host's stream, and frames until the next


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def held_by(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries."""
    if isinstance(value, Tensor):
        return int(value.nbytes)
    return sum(map(held_by, value.values())) if isinstance(value, dict) else 0


def follow(name: str, count: int, marks: list[int], step: Callable[[int], int]) -> None:
    """Take steps, and print what is held at some of them.

    Args:
        name: Of the stream.
        count: How many steps.
        marks: After which to print.
        step: Takes the number of a frame and gives the bytes held afterwards.
    """
    window = min(1000, count // 2)
    took, before = np.zeros(count), 0
    for number in range(count):
        began = time.process_time()
        held = step(number)
        took[number] = time.process_time() - began
        if number + 1 in {*marks, count}:
            now = resident()
            grown = f"{(now - before) / 1e6:+8.1f}" if before else " " * 8
            print(
                f"| {name:8} | {number + 1:6} | {held:12,} | {now / 1e6:8.1f} | {grown} |",
                flush=True,
            )
            before = now
    first, last = 1e3 * took[:window].mean(), 1e3 * took[-window:].mean()
    print(f"{name}: {first:.1f} ms of a processor a frame, {last:.1f} at the end ({window} each)")


def host_stream(grid: int, views: int) -> Callable[[int], int]:
    """SAM 2's memory in its true widths around our bank."""
    torch.manual_seed(0)
    host = MemoryHost(HostConfig()).eval()
    config = SpatialConfig(
        token_dim=host.config.memory_dim,
        max_tokens=grid * grid,
        pointer_dim=host.config.dim,
        max_views=views,
        dtype="bfloat16",
    )
    memory = SpatialMemory("64MB", config)
    noise = torch.Generator().manual_seed(0)
    scenes = torch.randn(SCENES, host.config.dim, grid, grid, generator=noise)

    @torch.inference_mode()
    def step(number: int) -> int:
        scene = number // STAY * 5 % SCENES
        own = torch.randn(scenes[0].shape, generator=noise)
        features = (scenes[scene] + 0.1 * own)[None]
        held = memory.snapshot().views()
        x = host.condition(features.flatten(2).mT, [held], number / 24, grid=(grid, grid))
        # The decoder is not there: the mask is where the first channels of the result are high.
        logits = x.mT.reshape(1, -1, grid, grid)[:, :8].mean(1, keepdim=True)
        written = host.encode(features, F.interpolate(logits, scale_factor=16), pointer=x.mean(1))
        for write in written.writes():
            memory.write(time=number / 24, prompted=number == 0, **write)
        return memory.nbytes

    return step


def pictures() -> Iterator[np.ndarray]:
    """Noise of several scales, for ever."""
    noise = torch.Generator().manual_seed(0)
    while True:
        image = torch.zeros(1, 3, SIZE, SIZE)
        for cells in (2, 5, 16):
            coarse = torch.rand(1, 3, cells, cells, generator=noise)
            image += F.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
        yield (image[0] / 3 * 255).byte().permute(1, 2, 0).contiguous().numpy()


def tracker_stream() -> Callable[[int], int]:
    """Our tracker; the bytes are those of the banks and of what its session is given of them."""
    tracker, images = MaskTracker(*tiny_sam2()), pictures()

    def step(number: int) -> int:
        prompts = [Prompt(1, box=(20, 20, 70, 60))] if number == 0 else []
        tracker.step(Frame(next(images), number / 24, index=number), prompts)
        return tracker.nbytes

    return step


def stock_stream() -> Callable[[int], int]:
    """The model with its own session."""
    (model, processor), images = tiny_sam2(), pictures()
    session = processor.init_video_session()

    def step(number: int) -> int:
        if number == 0:
            processor.add_inputs_to_inference_session(
                session, 0, [1], input_boxes=[[[20, 20, 70, 60]]], original_size=(SIZE, SIZE)
            )
        pixels = processor(images=next(images), return_tensors="pt").pixel_values[0]
        model(inference_session=session, frame=pixels)
        return held_by(session.output_dict_per_obj) + held_by(session.processed_frames)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000, help="of the host's stream")
    parser.add_argument("--tracked", type=int, default=1_000, help="of our tracker's")
    parser.add_argument("--stock", type=int, default=500, help="of the stock session's")
    parser.add_argument("--grid", type=int, default=4, help="cells of a side of the host's maps")
    parser.add_argument("--views", type=int, default=8, help="that the host's bank holds")
    given = parser.parse_args()
    print("| stream   | frames |   bytes held | RSS, MB  | since MB |")
    print("|----------|-------:|-------------:|---------:|---------:|", flush=True)
    marks = [100, 500, 1_000, 2_000, 5_000, 10_000]
    follow("host", given.frames, marks, host_stream(given.grid, given.views))
    follow("tracker", given.tracked, marks, tracker_stream())
    follow("stock", given.stock, marks, stock_stream())


if __name__ == "__main__":
    main()
