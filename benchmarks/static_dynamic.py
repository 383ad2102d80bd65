"""Is a memory that is split into static and dynamic better than one store of as many rows?

A camera goes round a room in which things move (`moving_room/`). Each frame gives a row a patch of
16 pixels: a feature, a place, and by a detector how surely it moves. A third of the patches is
hidden: never written, but asked for by place. Columns, as 1 - cosine to the true feature, so that 0
is perfect and 1 is nothing: the hidden patches of this frame that stand still, those that move,
after the others were written; and the hidden patches of the frame 15 s ago that lie on what never
moves. Then the largest deviation of the three over seeds, the rows that were held (all memories may
hold as many), and by how many times the worst of the three is worse than the best in the table.

Who moves is told to all memories alike: by the detector that needs no weights, by the truth, or by
a mask of recall .6 and precision .8. Features are synthetic codes that ride with their thing, or a
convolutional network's of the rendered pictures.

Run: ``python benchmarks/static_dynamic.py``, about 50 minutes on one core; ``--quick`` is a check
of one seed and size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from moving_room.codes import PATCH, patch_samples, patch_tokens
from moving_room.policies import BASELINES, OURS, Ours, Policy
from moving_room.scene import MovingRoom
from torch import Tensor

from vismem.encoders.lite0 import load_lite0
from vismem.memory.static_dynamic.memory import View
from vismem.memory.tsdf.motion import MotionDetector

FIRST, BACK, EVERY = 30, 150, 5  # frames: scored from, asked for later, between two of those
CALIBRATION = 99  # seed of a room that is never asked about
RECALL, PRECISION = 0.6, 0.8  # of the bad mask
LASTING = 0.05  # metres from what never moves, and at least to what may
MASKS = ("detector", "truth", "bad mask")
COLUMNS = ("static", "dynamic", "revisit")
CORE = {
    "first in, first out",
    "cubes, least recent go",
    "cubes that grow",
    "cubes that grow, query mask",
    "naive dual",
    "dual with a window",
    "ours in one layer",
    "ours",
    "ours, hard gate",
}
NOISY = 0.32  # length of the noise of codes, which is .05 for each number; else it is .05 in all


@dataclass(frozen=True)
class Moment:
    """The rows of a frame.

    Args:
        time: Seconds.
        features: Of each kind, ``(N, D)``.
        positions: ``(N, 3)`` metres.
        moving: ``(N,)`` bool, the truth.
        hidden: ``(N,)`` bool.
        lasting: ``(N,)`` bool, on what never moves.
        motion: By each mask, ``(N,)`` in 0 to 1.
        view: The depth picture and its camera.
    """

    time: float
    features: dict[str, Tensor]
    positions: Tensor
    moving: Tensor
    hidden: Tensor
    lasting: Tensor
    motion: dict[str, Tensor]
    view: View


@dataclass(frozen=True)
class Scores:
    """Mean errors, and the rows held on average while they were taken."""

    static: float
    dynamic: float
    revisit: float
    used: float


class Network:
    """EfficientNet-Lite0's map of stride 16, a row a patch, scaled by the rows of another room."""

    def __init__(self) -> None:
        self.model = load_lite0()
        self.mean, self.spread = torch.zeros(1), torch.ones(1)
        room = MovingRoom(CALIBRATION)
        rows = torch.cat([self(room.frame(n).frame.image) for n in range(0, room.frames, 15)])
        self.mean, self.spread = rows.mean(0), rows.std(0)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Tensor:
        """Rows ``(P, 112)`` of a picture whose sides are multiples of 16 pixels."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float().sub(127).div(128)
        rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
        padded = F.pad(pixels, (0, -image.shape[1] % 32, 0, -image.shape[0] % 32), mode="replicate")
        found = self.model(padded)[0][0, :, :rows, :columns].flatten(1).T
        return (found - self.mean) / self.spread


def bad_mask(moving: Tensor, draws: torch.Generator) -> Tensor:
    """A mask of recall `RECALL` and precision `PRECISION`, drawn for each row alone."""
    chance = torch.full(moving.shape, RECALL)
    still = int((~moving).sum())
    wrong = RECALL * int(moving.sum()) * (1 / PRECISION - 1)
    chance[~moving] = min(1.0, wrong / max(1, still))
    return (torch.rand(moving.shape, generator=draws) < chance).float()


def watch(seed: int, frames: int, network: Network | None) -> list[Moment]:
    """What a room's camera gives, and what the detector says of it."""
    room, detector = MovingRoom(seed), MotionDetector()
    draws = torch.Generator().manual_seed(seed)
    moments = []
    for number in range(min(frames, room.frames)):
        shot = room.frame(number)
        frame, tokens = shot.frame, patch_tokens(shot, seed=seed)
        points, kept = tokens.positions.astype(np.float64), torch.from_numpy(tokens.patch)
        lasting = room.static_distance(points) < LASTING
        lasting &= room.mover_distance(points, frame.timestamp) > LASTING
        moving = torch.from_numpy(tokens.moving)
        _, soft = detector.step(
            frame.depth, frame.intrinsics, frame.pose, frame.timestamp, frame.image
        )
        found = torch.from_numpy(patch_samples(soft)).float().mean(1)[kept]
        noisy = patch_tokens(shot, seed=seed, noise=NOISY)
        features = {
            "codes": torch.from_numpy(noisy.features),
            "clean codes": torch.from_numpy(tokens.features),
        }
        if network is not None:
            features["network"] = network(frame.image)[kept]
        moments.append(
            Moment(
                frame.timestamp,
                features,
                torch.from_numpy(tokens.positions),
                moving,
                torch.from_numpy(tokens.hidden),
                torch.from_numpy(lasting),
                dict(zip(MASKS, (found, moving.float(), bad_mask(moving, draws)), strict=True)),
                View(frame.depth, frame.intrinsics, frame.pose),
            )
        )
    return moments


def errors(answer: Tensor, truth: Tensor) -> Tensor:
    """1 - cosine of each row; 1 where nothing was answered."""
    return 1 - F.cosine_similarity(answer, truth, dim=1)


def measure(
    policy: Policy,
    moments: Sequence[Moment],
    kind: str,
    mask: str,
    written: Sequence[Moment] | None = None,
) -> Scores:
    """Write each moment, then ask; with ``written``, another stream is what the memory sees."""
    found: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    used = []
    for number, (now, given) in enumerate(zip(moments, written or moments, strict=True)):
        seen = ~given.hidden
        policy.write(
            given.features[kind][seen],
            given.positions[seen],
            given.time,
            given.motion[mask][seen],
            given.view,
        )
        asked = now.hidden
        wrong = errors(
            policy.answer(now.positions[asked], now.time, now.motion[mask][asked]),
            now.features[kind][asked],
        )
        if number >= FIRST:
            used.append(len(policy))
            found["static"].append(wrong[~now.moving[asked]])
            found["dynamic"].append(wrong[now.moving[asked]])
        if number >= BACK and number % EVERY == 0:
            then = moments[number - BACK]
            asked = then.hidden & then.lasting
            answer = policy.answer(then.positions[asked], now.time, then.motion[mask][asked])
            found["revisit"].append(errors(answer, then.features[kind][asked]))
    errors_of = (float(torch.cat(each).mean()) for each in found.values())
    return Scores(*errors_of, statistics.fmean(used))


def means(found: Sequence[Scores]) -> list[float]:
    """Static, dynamic and revisit over seeds."""
    return [statistics.fmean(getattr(s, name) for s in found) for name in COLUMNS]


def cell(found: Sequence[Scores], best: Sequence[float]) -> str:
    """Means, their largest deviation over seeds, rows used, and how far the worst is from best."""
    own = means(found)
    spread = max(statistics.pstdev(getattr(s, name) for s in found) for name in COLUMNS)
    used = statistics.fmean(s.used for s in found)
    worst = max(value / least for value, least in zip(own, best, strict=True))
    values = "/".join(f"{value:.3f}".lstrip("0") for value in own)
    return f"{values} ±{spread:.3f} {used:.0f} x{worst:.1f}"


def compare(
    streams: Sequence[Sequence[Moment]], kind: str, mask: str, sizes: Sequence[int], names: set[str]
) -> None:
    """Print the table of one kind of features and one mask."""
    width = streams[0][0].features[kind].shape[1]
    table: dict[str, list[list[Scores]]] = {}
    for name, make in (BASELINES | OURS).items():
        if name not in names:
            continue
        table[name] = [
            [measure(make(size, width), stream, kind, mask) for stream in streams] for size in sizes
        ]
        print(f"{kind}, {mask}: {name} is done", file=sys.stderr)
    if len(streams) > 1:
        table["ours, of another room"] = [
            [
                measure(Ours(size, width), stream, kind, mask, streams[n - 1])
                for n, stream in enumerate(streams)
            ]
            for size in sizes
        ]
    best = [
        [min(column) for column in zip(*(means(row[n]) for row in table.values()), strict=True)]
        for n in range(len(sizes))
    ]
    print(f"\n| {kind}, {mask} |" + "".join(f" {size} rows |" for size in sizes))
    print("|---|" + "---|" * len(sizes))
    for name, row in table.items():
        cells = (cell(found, least) for found, least in zip(row, best, strict=True))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one size, fewer frames")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = {*BASELINES, *OURS}
    if options.quick:
        compare([watch(0, 200, None)], "codes", "detector", [512], every)
        return
    network = Network()
    streams = [watch(seed, 300, network) for seed in range(options.seeds)]
    for kind in ("codes", "network"):
        for mask in ("detector", "truth"):
            compare(streams, kind, mask, [256, 512, 1024, 2048], every)
    for kind, mask in (("codes", "bad mask"), ("clean codes", "detector")):
        compare(streams, kind, mask, [512, 1024], CORE)


if __name__ == "__main__":
    main()
