"""What does keeping a memory up to date cost: `python benchmarks/update_cost.py`.

Side by side in one run, frame by frame in turns: the published Flash-VStream memories done the way
their code does it (`as_coded.py`), the same rules as tensor operations (`vismem.memory.published`),
and the default banks. In each round both forms of a published rule draw the same numbers and must
arrive at the same memory, or this ends with an error. The default banks have a budget: the bytes,
in float16, of what the published ones give to a language model. The published ones hold float32
here, and all frames ever seen, but for the vectorised STAR, which holds those it can look up.

Prints processor time of the process for one update (medians; torch on one thread), ratios, and
bytes held, at the published sizes; then time and bytes of the default banks after a thousand, ten
thousand and a hundred thousand frames of fewer and narrower tokens. Frames are random features in
scenes that change every few frames; no encoder is timed. `--quick` shrinks everything and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from as_coded import FlashAsCoded, StarAsCoded
from torch import Tensor

from vismem.memory.base import Memory
from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.published.clustering import NTMWeights
from vismem.memory.published.flash import PublishedFlash, PublishedFlashConfig
from vismem.memory.published.positions import pool_rows
from vismem.memory.published.star import PublishedStar, PublishedStarConfig
from vismem.memory.star import StarConfig, StarMemory

CODED, VECTORISED, DEFAULT = "published, as coded", "published, vectorised", "default"
SCENE = 5  # frames
FLAT_TOKENS, FLAT_DIM, FLAT_BUDGET = 16, 64, "200kB"
CLAIM = 30  # times that the default bank of 2025 is to be cheaper than the published code


@dataclass(frozen=True)
class Sizes:
    """The published sizes, and how much is timed."""

    flash_side: int = 32  # 448 pixels in patches of 14
    flash_dim: int = 1280
    flash_slots: int = 60
    flash_detail: int = 30
    flash_history: int = 120  # patches or frames before the first that is timed
    flash_rounds: int = 5
    star_side: int = 8
    star_dim: int = 1024
    star_slots: int = 25
    star_history: int = 120
    star_rounds: int = 25
    default_history: int = 240  # frames, so that the default banks merge with every one
    flat_marks: tuple[int, ...] = (1_000, 10_000, 100_000)


QUICK = Sizes(
    flash_side=8,
    flash_dim=64,
    flash_history=80,
    flash_rounds=3,
    star_dim=64,
    star_history=40,
    default_history=160,
    star_rounds=5,
    flat_marks=(500, 1_000, 2_000),
)


def frame(number: int, tokens: int, dim: int) -> Tensor:
    """Features of a frame, ``(tokens, dim)``: those of its scene, and noise of its own."""
    scene, own = (torch.Generator().manual_seed(seed) for seed in (number // SCENE, ~number))
    features = torch.randn(tokens, dim, generator=scene)
    return features.add_(torch.randn(tokens, dim, generator=own), alpha=0.3)


@dataclass(frozen=True)
class Row:
    """One contestant of one system."""

    system: str
    rule: str
    cpu_ms: float  # median of one update
    nbytes: int
    holds: str


@dataclass(frozen=True)
class Flat:
    """A bank after so many frames."""

    bank: str
    frames: int
    cpu_ms: float  # median of one update
    nbytes: int


Update = Callable[[int], object]  # takes the number of a frame


def in_turns(updates: Sequence[Update], rounds: range, check: Callable[[], None]) -> list[float]:
    """Let each take every frame, in changing order; medians of processor milliseconds."""
    costs = []
    for number in rounds:
        spent = [0.0] * len(updates)
        for turn in range(len(updates)):
            which = (turn + number) % len(updates)
            began = time.process_time_ns()
            updates[which](number)
            spent[which] = (time.process_time_ns() - began) / 1e6
        check()
        costs.append(spent)
    return [statistics.median(column) for column in zip(*costs, strict=True)]


def flash_rows(sizes: Sizes) -> list[Row]:
    """The three updates of 2025 at one size; ours has the bytes of what the published one gives."""
    side, dim, count = sizes.flash_side, sizes.flash_dim, sizes.flash_slots
    tokens, few, first = side**2, side**2 // 4, sizes.default_history
    budget = 2 * dim * (count * few + sizes.flash_detail * tokens)  # in float16
    ours = FlashMemory(FlashConfig(dim, tokens, synopsis=(side // 2, side // 2)), budget)
    for number in range(first):
        ours.write(frame(number, tokens, dim), float(number))
    config = PublishedFlashConfig(dim, count, sizes.flash_detail)
    published = PublishedFlash(config, budget=2**40)
    history = range(first - sizes.flash_history, first)
    published.write_many(
        torch.stack([frame(number, tokens, dim) for number in history]), map(float, history)
    )
    coded = FlashAsCoded(published)
    rounds = range(first, first + sizes.flash_rounds)
    high = {number: frame(number, tokens, dim) for number in rounds}
    low = {number: pool_rows(high[number][None], (side, side))[0] for number in rounds}

    def check() -> None:
        now = published.snapshot()
        agree(coded.slots, now.synopsis, "slots")
        agree(coded.weights, now.weights, "weights")
        agree(coded.timestamps, now.timestamps, "timestamps")
        # A slot of two frames is as far from both: compare how far, not which.
        heaviest = torch.sort(now.weights, descending=True, stable=True).indices
        of = now.synopsis[heaviest[: len(now.detail)]]
        one, other = (coded.low[p] - of for p in (coded.positions, now.detail_positions))
        agree(one.flatten(1).norm(dim=1), other.flatten(1).norm(dim=1), "details")

    costs = in_turns(
        [
            lambda n: coded.write(high[n], low[n]),
            lambda n: published.write(high[n], float(n), low=low[n]),
            lambda n: ours.write(high[n], float(n)),
        ],
        rounds,
        check,
    )
    given = len(published.snapshot().rows()) // 4
    holds = (
        f"{len(coded.high)} patches, gives {given} LLM tokens",
        f"{len(published)} patches, gives {given} LLM tokens",
        holds_slots(ours),
    )
    held = (coded.nbytes, published.nbytes, ours.nbytes)
    return [
        Row("Flash Memory, 2025", *row)
        for row in zip((CODED, VECTORISED, DEFAULT), costs, held, holds, strict=True)
    ]


def star_rows(sizes: Sizes) -> list[Row]:
    """The three updates of 2024; ours has the bytes of what the published one gives."""
    side, dim, count, first = sizes.star_side, sizes.star_dim, sizes.star_slots, sizes.star_history
    ntm = NTMWeights.random(dim)
    config = PublishedStarConfig(dim, side, side, long_slots=count, abstract_slots=count)
    coded, published = StarAsCoded(count, ntm), PublishedStar(config, ntm)
    for number in range(first):
        coded.write(frame(number, side**2, dim))
        published.write(frame(number, side**2, dim), float(number))
    given = len(coded.rows())
    ours = StarMemory(StarConfig(dim, side**2, synopsis=(4, 4)), 2 * dim * given)
    for number in range(first - sizes.default_history, first):
        ours.write(frame(number, side**2, dim), float(number - first))
    rounds = range(first, first + sizes.star_rounds)
    frames = {number: frame(number, side**2, dim) for number in rounds}
    costs = in_turns(
        [
            lambda n: coded.write(frames[n]),
            lambda n: published.write(frames[n], float(n)),
            lambda n: ours.write(frames[n], float(n)),
        ],
        rounds,
        lambda: agree(coded.rows(), published.snapshot().star.tokens(), "tokens"),
    )
    holds = (
        f"{len(coded.history)} frames, gives {given} tokens",
        f"{count} frames, gives {given} tokens",
        holds_slots(ours) + f", {len(ours.abstract)} abstract",
    )
    held = (coded.nbytes, published.nbytes, ours.nbytes)
    return [
        Row("STAR, 2024", *row)
        for row in zip((CODED, VECTORISED, DEFAULT), costs, held, holds, strict=True)
    ]


def holds_slots(bank: FlashMemory) -> str:
    levels = [slot.level for slot in bank.snapshot().slots()]
    past, recent = len(levels) - levels.count("recent"), levels.count("recent")
    return f"{past} slots ({levels.count('detail')} sharp), {recent} newest frames"


def agree(one: Tensor, other: Tensor, what: str) -> None:
    """End if both forms of a rule have come to different memories."""
    if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
        raise SystemExit(f"both forms of the published rule must agree, but their {what} differ")


def flat_banks() -> dict[str, Memory]:
    """The default banks at a size at which a hundred thousand frames take a minute."""
    return {
        "FlashMemory": FlashMemory(FlashConfig(FLAT_DIM, FLAT_TOKENS), FLAT_BUDGET),
        "StarMemory": StarMemory(StarConfig(FLAT_DIM, FLAT_TOKENS), FLAT_BUDGET),
    }


def flat_rows(bank: str, memory: Memory, sizes: Sizes) -> list[Flat]:
    """Time and bytes of a bank at each mark, of the last frames before it."""
    rows, spent = [], []
    for number in range(sizes.flat_marks[-1]):
        tokens = frame(number, FLAT_TOKENS, FLAT_DIM)
        began = time.process_time_ns()
        memory.write(tokens, float(number))
        spent.append((time.process_time_ns() - began) / 1e6)
        if number + 1 in sizes.flat_marks:
            last = spent[-sizes.flat_marks[0] // 2 :]
            rows.append(Flat(bank, number + 1, statistics.median(last), memory.nbytes))
            spent.clear()
    return rows


def table(rows: Sequence[Row]) -> str:
    """The contestants side by side, each against the other two."""
    lines = []
    for system in dict.fromkeys(row.system for row in rows):
        mine = {row.rule: row for row in rows if row.system == system}
        lines.append(
            f"{system:<24}{'CPU ms':>9}{'coded/it':>10}{'vector./it':>11}{'MB held':>9}  holds"
        )
        for row in mine.values():
            ratios = [mine[rule].cpu_ms / row.cpu_ms for rule in (CODED, VECTORISED)]
            lines.append(
                f"  {row.rule:<22}{row.cpu_ms:>9.2f}{ratios[0]:>10.1f}{ratios[1]:>11.1f}"
                f"{row.nbytes / 1e6:>9.1f}  {row.holds}"
            )
    return "\n".join(lines)


def claim(rows: Sequence[Row]) -> str:
    """What the table says of the one claim that is made of it."""
    cost = {row.rule: row.cpu_ms for row in rows if "2025" in row.system}
    ratio = cost[CODED] / cost[DEFAULT]
    verdict = "holds" if ratio >= CLAIM else "does not hold"
    return (
        f"the default update is {ratio:.0f} times cheaper than the code of 2025 and "
        f"{cost[VECTORISED] / cost[DEFAULT]:.0f} times cheaper than its rule vectorised; "
        f"that it is {CLAIM} times cheaper than the code {verdict}"
    )


def flat_table(flats: Sequence[Flat]) -> str:
    """Time and bytes by number of frames, and the last against the first."""
    marks = list(dict.fromkeys(flat.frames for flat in flats))
    head = "".join(f"{f'{mark:,}':>18}" for mark in marks)
    lines = [f"{'after frames':<24}{head}     last/first"]
    for bank in dict.fromkeys(flat.bank for flat in flats):
        mine = [flat for flat in flats if flat.bank == bank]
        cells = "".join(f"{f.cpu_ms:>8.3f} ms{f.nbytes / 1e3:>4.0f} kB" for f in mine)
        ratio = mine[-1].cpu_ms / mine[0].cpu_ms
        lines.append(f"  {bank:<22}{cells}{ratio:>15.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--json", action="store_true", help="print one object in place of tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    with torch.no_grad():
        rows = flash_rows(sizes) + star_rows(sizes)
        flats = [
            flat for name, bank in flat_banks().items() for flat in flat_rows(name, bank, sizes)
        ]
    if options.json:
        report = {"sizes": asdict(sizes), "rows": rows, "flat": flats, "claim": claim(rows)}
        print(json.dumps(report, default=asdict, indent=1))
        return
    if options.quick:
        print("--quick: sizes are not the published ones, and the claim is not about these")
    print(table(rows))
    print(claim(rows))
    print(f"\nframes of {FLAT_TOKENS} tokens of width {FLAT_DIM}, budget {FLAT_BUDGET}")
    print(flat_table(flats))


if __name__ == "__main__":
    main()
