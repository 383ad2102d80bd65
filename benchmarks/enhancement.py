"""What does enhancing a frame by memory cost: `python benchmarks/enhancement.py`.

Side by side in one run, in turns, on the same weights: GEO the way its code does it (the whole
tensor of attention, per-head averages of the raw keys, then a grouped convolution) and
`GroupedValueAttention`: at the pixel level with the cells of a map of 600x1000 pixels, at the
instance level with 300 proposals, 2,000 keys each; and both with a memory that keeps what was
projected of its rows, where a frame's cost has that of writing and projecting its 75 new rows in
it. Results must be equal, or this ends with an error. At the instance level also the default,
`GeneralizedEnhancement`, with and without what it knows of boxes.

Prints processor time of the process (medians; torch on one thread) and ratios. `--quick` shrinks
everything and says so; `--device cuda` times the GPU's own clock in place of the processor's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from vismem.memory.feature import FeatureConfig, FeatureMemory, Projections
from vismem.models.enhancement import GeneralizedEnhancement, GroupedValueAttention, Projected

CODED, OURS, CACHED = "published, as coded", "one attention", "one attention, keys kept"
SCORED, PLACED = "default, scores", "default, scores and boxes"
CLAIM = 4  # times that one attention is to be cheaper than the published code
CLOSE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """The published sizes, and how much is timed."""

    dim: int = 1024
    heads: int = 16
    cells: int = 38 * 63
    proposals: int = 300
    keys: int = 2000
    new: int = 75  # rows that a frame writes
    rounds: int = 7


QUICK = Sizes(dim=64, heads=4, cells=60, proposals=20, keys=50, new=8, rounds=3)


@dataclass(frozen=True)
class Row:
    """One contestant at one level."""

    level: str
    form: str
    ms: float  # median of one frame


class GeoAsCoded(nn.Module):
    """The published module, with the weights of ours."""

    def __init__(self, geo: GroupedValueAttention) -> None:
        super().__init__()
        self.query, self.key, self.heads = geo.query, geo.key, geo.heads
        self.value = nn.Conv2d(geo.dim * geo.heads, geo.dim, 1, groups=geo.heads)
        with torch.no_grad():
            self.value.weight.copy_(geo.value.weight[..., None, None])
            self.value.bias.copy_(geo.value.bias)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Enhance ``(Q, C)`` by ``(K, C)``."""
        q, k = (
            part.view(len(part), self.heads, -1).transpose(0, 1)
            for part in (self.query(x), self.key(keys))
        )
        weights = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
        weights = weights.softmax(-1)  # (H, Q, K)
        averages = weights.reshape(-1, len(keys)) @ keys  # (H * Q, C): of the keys, for each head
        averages = averages.view(self.heads, len(x), -1).transpose(0, 1).reshape(len(x), -1, 1, 1)
        return x + self.value(averages)[..., 0, 0]


def in_turns(calls: Sequence[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """Let each run in every round, in changing order; medians of milliseconds."""
    for call in calls:
        call()
    costs = []
    for number in range(rounds):
        spent = [0.0] * len(calls)
        for turn in range(len(calls)):
            which = (turn + number) % len(calls)
            spent[which] = milliseconds(calls[which], device)
        costs.append(spent)
    return [statistics.median(column) for column in zip(*costs, strict=True)]


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Processor time of a call, or the GPU's time for it."""
    if device == "cpu":
        began = time.process_time_ns()
        call()
        return (time.process_time_ns() - began) / 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def agree(one: Tensor, other: Tensor, what: str) -> None:
    """End if two forms give different features, or leave them as they were."""
    if one.shape != other.shape or not torch.allclose(one, other, rtol=CLOSE, atol=CLOSE):
        raise SystemExit(f"both forms must agree, but {what} differ")


def rows(sizes: Sizes, device: str) -> list[Row]:
    """All contestants at both levels."""
    draw = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        return torch.randn(count, sizes.dim, generator=draw).to(device)

    def near(count: int) -> Tensor:
        low, size = torch.rand(2, count, 2, generator=draw)
        return torch.cat([low, low + 0.1 * size + 0.01], 1).to(device)

    torch.manual_seed(0)  # the layers' own initialisation draws from it
    geo = GroupedValueAttention(sizes.dim, sizes.heads)
    nn.init.normal_(geo.value.weight, std=sizes.dim**-0.5)  # so that a difference would show
    geo.to(device)
    coded, ours = GeoAsCoded(geo).to(device), GeneralizedEnhancement(sizes.dim, sizes.heads)
    ours.to(device)
    config = FeatureConfig(sizes.dim, max_tokens=sizes.keys, evict="fifo")
    memory = FeatureMemory(config, sizes.keys * config.row_bytes)
    memory.write(features(sizes.keys), 0.0)
    keys = memory.snapshot().tokens.to(device, torch.float32)
    new, kept = features(sizes.new), Projections()

    def remembering(x: Tensor) -> Tensor:
        """A frame that writes, and reads what is kept of the rows before it and of its own."""
        memory.write(new, memory.last + 1)
        held = memory.snapshot()
        both = kept(held, projected, geo.version)
        return geo(x, Projected(*both.chunk(2, dim=1)), index=held.slots.to(device))

    def projected(rows: Tensor) -> Tensor:
        return torch.cat(geo.project(rows.to(device, torch.float32)), 1)

    scores, ages = torch.rand(sizes.keys, generator=draw), torch.rand(sizes.keys, generator=draw)
    more = {"key_boxes": near(sizes.keys), "key_scores": scores.to(device), "ages": ages.to(device)}
    plain = GeneralizedEnhancement(sizes.dim, sizes.heads, geometry_bias=False).to(device)
    table = []
    for level, count in (("pixels", sizes.cells), ("instances", sizes.proposals)):
        x, boxes = features(count), near(count)
        calls: dict[str, Callable[[], Tensor]] = {
            CODED: lambda x=x: coded(x, keys),
            OURS: lambda x=x: geo(x, keys),
            CACHED: lambda x=x: remembering(x),
        }
        agree(calls[OURS](), calls[CODED](), f"the {level} of {OURS!r}")
        enhanced, held = calls[CACHED](), memory.snapshot().tokens.to(device, torch.float32)
        agree(enhanced, coded(x, held), f"the {level} of {CACHED!r}")
        if level == "instances":
            calls[SCORED] = lambda x=x: plain(x, keys, key_scores=more["key_scores"])
            calls[PLACED] = lambda x=x, boxes=boxes: ours(x, keys, boxes=boxes, **more)
            agree(calls[PLACED](), x, "features before and after an untrained enhancement")
        costs = in_turns(list(calls.values()), sizes.rounds, device)
        table += [Row(level, form, ms) for form, ms in zip(calls, costs, strict=True)]
    return table


def claim(table: Sequence[Row]) -> str:
    """What the table says of the one claim that is made of it."""
    cost = {(row.level, row.form): row.ms for row in table}
    ratio = cost["pixels", CODED] / cost["pixels", OURS]
    verdict = "holds" if ratio >= CLAIM else "does not hold"
    return (
        f"at the pixel level one attention is {ratio:.1f} times cheaper than the published code; "
        f"that it is {CLAIM} times cheaper {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print one object in place of tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    with torch.no_grad():
        table = rows(sizes, options.device)
    if options.json:
        report = {"sizes": asdict(sizes), "rows": table, "claim": claim(table)}
        print(json.dumps(report, default=asdict, indent=1))
        return
    if options.quick:
        print("--quick: sizes are not the published ones, and the claim is not about these")
    for level in dict.fromkeys(row.level for row in table):
        mine = {row.form: row.ms for row in table if row.level == level}
        count = sizes.cells if level == "pixels" else sizes.proposals
        head = f"{level}, {count} x {sizes.keys} keys"
        print(f"{head:<32}{options.device + ' ms':>9}{'coded/it':>10}")
        for form, ms in mine.items():
            print(f"  {form:<30}{ms:>9.1f}{mine[CODED] / ms:>10.1f}")
    print(claim(table))


if __name__ == "__main__":
    main()
