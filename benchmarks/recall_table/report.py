"""The table of RecallTable from counts, and what it says: failures are named."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from episodes import DELAYS
from policies import ALL_FRAMES, GRU, OURS, POLICIES
from tasks import FAMILIES

__all__ = ["SAW", "SHOWN", "Cell", "Key", "merge", "report", "verdicts", "wilson"]

SHOWN = 32  # frames of delay in the first columns
SAW = ("find_hidden", "put_back")  # three seeds and the gantry at least
MARGIN = 0.03  # above chance that no floor may be


@dataclass
class Cell:
    """Counts of one policy at one delay; those of several seeds add up.

    Args:
        n: Questions.
        right: Answered right.
        foreign: Right with the memory of another episode.
        zero: Right with blanked pictures.
        placed: Questions that have a place.
        near: Of those, answered within 5 cm.
        changed: Questions whose answer was another before.
        stale: Of those, answered with what was true before.
        gone: Questions about what is gone; `said_gone`, `both`: answered so, and rightly.
        cue: Banks that hold a cue frame.
        acts: Times the gantry acted; `refused`, `done` of those.
    """

    n: int = 0
    right: int = 0
    foreign: int = 0
    zero: int = 0
    placed: int = 0
    near: int = 0
    changed: int = 0
    stale: int = 0
    gone: int = 0
    said_gone: int = 0
    both: int = 0
    cue: int = 0
    acts: int = 0
    refused: int = 0
    done: int = 0
    nbytes: int = 0
    writes: list[float] = field(default_factory=list)
    read_ms: list[float] = field(default_factory=list)
    by_seed: list[float] = field(default_factory=list)

    def add(self, other: Cell) -> None:
        """Take another seed's counts in."""
        for name, value in vars(other).items():
            held = getattr(self, name)
            setattr(self, name, max(held, value) if name == "nbytes" else held + value)


Key = tuple[str, str, int]  # family, policy, delay


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not n:
        return 0.0, 1.0
    z, p = 1.96, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def merge(results: Sequence[dict]) -> tuple[dict[Key, Cell], dict[str, dict[str, float]]]:
    """Add the counts of seeds up; floors are those of the worst seed."""
    cells: dict[Key, Cell] = defaultdict(Cell)
    worst: dict[str, dict[str, float]] = {}
    for result in results:
        for key, cell in result["cells"].items():
            family, policy, delay = key.split("|")
            cells[family, policy, int(delay)].add(Cell(**cell))
        held = worst.setdefault(result["family"], dict(result["floors"]))
        held.update({k: max(v, held[k]) for k, v in result["floors"].items()})
    return dict(cells), worst


def _share(part: int, whole: int, digits: int = 3) -> str:
    return f"{part / whole:.{digits}f}" if whole else "-"


def report(results: Sequence[dict]) -> str:
    """The table, as text."""
    cells, worst = merge(results)
    names = list(dict.fromkeys(result["family"] for result in results))
    lines: list[str] = []
    for name in names:
        seeds = [r["seed"] for r in results if r["family"] == name]
        delays = sorted({delay for family, _, delay in cells if family == name})
        family, low = FAMILIES[name], worst[name]
        twins = sum(r["twins"] for r in results if r["family"] == name)
        lines += [
            "",
            f"{name}: {family.asks}; {family.views} views, {len(seeds)} seed(s), n by delay "
            + ", ".join(f"{d}: {cells[name, OURS, d].n}" for d in delays),
            "  floors: " + ", ".join(f"{k} {v:.3f}" for k, v in low.items())
            + f"; oracle map 1.000; {twins} covered frames of twins agree",
            f"  {'policy':<13}{'success':>8} {'95 % interval':>15}{'seeds':>12}"
            f"{'foreign':>9}{'zero':>7}"
            + "".join(f"{'D=' + str(d):>7}" for d in delays)
            + f"{'5 cm':>7}{'stale':>7}{'cue':>6}{'kB':>7}{'writes/s':>10}{'read ms':>9}",
        ]  # fmt: skip
        for policy in (*POLICIES, GRU, ALL_FRAMES):
            cell = cells[name, policy, SHOWN]
            lo, hi = wilson(cell.right, cell.n)
            spread = f"{min(cell.by_seed):.2f}-{max(cell.by_seed):.2f}" if cell.by_seed else "-"
            banked = policy not in (GRU, ALL_FRAMES)
            lines.append(
                f"  {policy:<13}{_share(cell.right, cell.n):>8} {f'[{lo:.3f}, {hi:.3f}]':>15}"
                f"{spread:>12}{_share(cell.foreign, cell.n):>9}"
                f"{_share(cell.zero, cell.n) if policy != GRU else '-':>7}"
                + "".join(
                    f"{_share(cells[name, policy, d].right, cells[name, policy, d].n, 2):>7}"
                    for d in delays
                )
                + f"{_share(cell.near, cell.placed, 2):>7}{_share(cell.stale, cell.changed, 2):>7}"
                + f"{_share(cell.cue, cell.n, 2) if policy != GRU else '-':>6}"
                + (
                    f"{cell.nbytes / 1000:>7.1f}{np.mean(cell.writes):>10.0f}"
                    if banked
                    else f"{'-':>7}{'-':>10}"
                )
                + (f"{np.mean(cell.read_ms):>9.2f}" if cell.read_ms else f"{'-':>9}")
            )
        if hasattr(family, "gone"):
            lines.append("  refusals, precision / recall: " + "; ".join(
                f"{policy} {_share(c.both, c.said_gone, 2)} / {_share(c.both, c.gone, 2)}"
                for policy in (*POLICIES, GRU, ALL_FRAMES)
                for c in [cells[name, policy, SHOWN]]
            ))  # fmt: skip
        for policy in ("FIFO", OURS):
            c = cells[name, policy, SHOWN]
            if c.acts:
                lo, hi = wilson(c.done, c.acts)
                lines.append(
                    f"  gantry on {policy}: done {_share(c.done, c.acts)} [{lo:.3f}, {hi:.3f}] of "
                    f"{c.acts}, refused {_share(c.refused, c.acts)}"
                )
    return "\n".join(lines + ["", *verdicts(results)])


def verdicts(results: Sequence[dict]) -> list[str]:
    """What the table says, failures first."""
    cells, worst = merge(results)
    lines: list[str] = []
    for name, low in worst.items():
        chance = low["chance"]
        late = [d for f, p, d in cells if f == name and p == OURS and d >= SHOWN]
        beaten = {k: v for k, v in low.items() if k != "chance" and v > chance + MARGIN}
        for policy in ("last frame", "FIFO"):
            total = Cell()
            for delay in late:
                total.add(cells[name, policy, delay])
            lo, _ = wilson(total.right, total.n)
            share = total.right / max(total.n, 1)
            if share > chance + MARGIN and lo > chance:
                beaten[policy] = share
        for floor, value in beaten.items():
            lines.append(
                f"REJECTED: {name} is answered {value:.3f} without memory, by {floor}; "
                f"chance is {chance:.3f}"
            )
        ours = cells[name, OURS, SHOWN]
        if (lo := wilson(ours.foreign, ours.n)[0]) > chance + MARGIN:
            lines.append(f"SUSPECT: {name} is answered at least {lo:.3f} from another's memory")
        for delay in sorted({d for f, p, d in cells if f == name and p == OURS}):
            mine = cells[name, OURS, delay]
            better = [
                f"{p} {c.right / c.n:.2f}" for p in (*POLICIES, GRU)
                if p != OURS and (c := cells[name, p, delay]).n
                and wilson(c.right, c.n)[0] > wilson(mine.right, mine.n)[1]
            ]  # fmt: skip
            if better:
                lines.append(
                    f"LOSES: {name} at delay {delay}: {OURS} {mine.right / mine.n:.2f}, "
                    f"but {', '.join(better)}"
                )
        if ours.gone and ours.both < 0.9 * ours.gone:
            lines.append(
                f"FAILS: {name}: {OURS} says of {_share(ours.both, ours.gone, 2)} of what is gone "
                "that it is"
            )
        if ours.right / ours.n < 0.9:
            lines.append(
                f"FAILS: {name}: {OURS} is right in {ours.right / ours.n:.2f} of all; the cue is "
                f"held in {ours.cue / ours.n:.2f}, and with all frames the reader reaches "
                f"{(top := cells[name, ALL_FRAMES, SHOWN]).right / top.n:.2f}"
            )
    for name in SAW:
        if name not in worst:
            continue
        for delay in (d for d in DELAYS if d <= 128 and (name, OURS, d) in cells):
            mine, fifo = cells[name, OURS, delay], cells[name, "FIFO", delay]
            over = fifo.right / fifo.n - worst[name]["chance"]
            ok = "yes" if mine.right / mine.n >= 0.95 else "NO"
            lines.append(
                f"claim: {name} at delay {delay} at least .95: {ok} ({mine.right / mine.n:.3f}); "
                f"FIFO {over:+.3f} from chance"
            )
    return lines
