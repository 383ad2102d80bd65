"""Does a decoder that reads what moves and what stays in turn beat one that reads both at once?

    python benchmarks/alternating.py            # three seeds, about half an hour on one core
    python benchmarks/alternating.py --quick    # one seed, fewer rooms and steps

A camera goes round a room in which things move (`moving_room`); a memory of both kinds takes the
patches that it sees, by the true mask of what moves. 35 % of a frame's patches are hidden, and the
decoder is to say what is there, from where they are, the patches that are seen, and the memory
before that frame. Each room has codes of its own, so nothing of a test room can be in the weights.

Error is 1 - cosine, of hidden patches of what stands and of what moves, in rooms never trained on.
The nets have equal weights in number, are given equal tokens, and are trained alike; one of them
without any memory. While they learn, each of the two stores is left out one time in seven, so that
"transient only" and "persistent only" are the same nets with the other store empty. "Another
room's" is the memory of another room at that time. "fuse" is what the memory says by itself, with
no net; "seen beside" what the nearest patches of the frame say. ± is from seed to seed of the
weights, training order and hidden patches.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from moving_room.codes import patch_tokens
from moving_room.scene import MovingRoom
from torch import Tensor

from vismem.memory.static_dynamic.memory import KV, StaticDynamicConfig, StaticDynamicMemory, View
from vismem.models.alternating import AlternatingConfig, AlternatingDecoder, Store

__all__ = ["main"]


@dataclass(frozen=True)
class Effort:
    """How much is run."""

    train: int  # rooms
    test: int
    seeds: int
    steps: int
    seconds: float = 30.0  # of each room
    batch: int = 4
    every: int = 8  # frames between two that are learned from
    asked: int = 20  # frames between two that are asked about in the test
    first: int = 25  # of them


QUICK, FULL = Effort(2, 2, 1, 40), Effort(8, 4, 3, 150)
DIM = 80  # of a token
BUDGET = "360kB"  # about 1000 tokens of both stores
RATE = 2e-3  # of learning, at its height
NOISE = 0.316  # of a code whose length is 1: 0.05 on each of its numbers
HIDDEN = 0.35  # of the patches of a frame
TEST_ROOM = 0  # the first; training rooms begin at TRAIN_ROOM
TRAIN_ROOM = 100
DROPOUT = 1 / 7  # of each store, while training
BLIND = 0.3  # of the frames trained on: nothing at all is seen


def nearest(at: Tensor, tokens: Tensor, positions: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """The mean of the 8 nearest tokens by ``exp(-(d / width)^2)``, and how far the first is."""
    if not len(tokens):
        return torch.zeros(len(at), DIM), torch.full((len(at),), torch.inf)
    found = torch.cdist(at, positions).topk(min(8, len(tokens)), largest=False)
    weight = (-(found.values / width).square()).softmax(-1)
    return torch.einsum("mk,mkd->md", weight, tokens[found.indices]), found.values[:, 0]


@dataclass(frozen=True)
class Moment:
    """A frame to be asked about, and what is remembered before it is seen.

    Args:
        tokens: Its patches, ``(N, D)``.
        positions: ``(N, 3)`` metres.
        moving: ``(N,)`` bool.
        memory: Of the frames before.
        fused: ``(N, D)``, what the memory itself says is at these places.
    """

    tokens: Tensor
    positions: Tensor
    moving: Tensor
    memory: KV
    fused: Tensor


@dataclass(frozen=True)
class Batch:
    """Moments side by side, padded; ``hidden`` and ``moving`` are false in the padding."""

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    hidden: Tensor
    moving: Tensor
    transient: Store
    persistent: Store


def gather(
    moments: Sequence[Moment], memories: Sequence[KV], hidden: float, draws: torch.Generator
) -> Batch:
    """Put moments side by side, each with a memory, and hide a share of their patches."""

    def padded(parts: Sequence[Tensor], value: float = 0.0) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(parts), True, value)

    padding = padded([torch.zeros(len(moment.tokens)) for moment in moments], 1.0).bool()
    covered = torch.rand(padding.shape, generator=draws) < hidden
    return Batch(
        padded([moment.tokens for moment in moments]),
        padded([moment.positions for moment in moments]),
        padding,
        covered & ~padding,
        padded([moment.moving for moment in moments]) & covered,
        *Store.pair(memories),
    )


def some(moment: Moment, draws: torch.Generator) -> Moment:
    """As many of its patches as are hidden otherwise: each hidden one asks by itself."""
    rows = torch.randperm(len(moment.tokens), generator=draws)
    rows = rows[: round(HIDDEN * len(rows))]
    return replace(
        moment,
        tokens=moment.tokens[rows],
        positions=moment.positions[rows],
        moving=moment.moving[rows],
    )


def without(store: Store) -> Store:
    """The store with nothing in it."""
    return Store(*(part[:, :0] for part in store))


def drawn_store(store: Store, draws: torch.Generator) -> Store:
    """The store, left out for some of the batch."""
    out = torch.rand(len(store.bias), 1, generator=draws) < DROPOUT
    return store._replace(bias=store.bias.masked_fill(out, -torch.inf))


def turned(batch: Batch, draws: torch.Generator) -> Batch:
    """The same world seen from elsewhere, in another code: a turn of places, one of features."""
    angle = 2 * torch.pi * torch.rand((), generator=draws)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.eye(3)
    turn[:2, :2] = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    dim = batch.tokens.shape[-1]
    code = torch.linalg.qr(torch.randn(dim, dim, generator=draws))[0]

    def store(one: Store) -> Store:
        return Store(one.tokens @ code, one.positions @ turn, one.bias)

    return replace(
        batch,
        tokens=batch.tokens @ code,
        positions=batch.positions @ turn,
        transient=store(batch.transient),
        persistent=store(batch.persistent),
    )


def errors(told: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """1 - cosine of the hidden patches of what stands, and of what moves."""
    error = 1 - torch.cosine_similarity(told, batch.tokens, dim=-1)
    return error[batch.hidden & ~batch.moving], error[batch.moving]


def tell(net: AlternatingDecoder, batch: Batch) -> Tensor:
    """What the net says is at all places of a batch."""
    return net(
        batch.tokens,
        batch.positions,
        batch.transient,
        batch.persistent,
        hidden=batch.hidden,
        padding=batch.padding,
    )


def train(
    moments: Sequence[Moment], effort: Effort, seed: int, *, union: bool, memory: bool = True
) -> AlternatingDecoder:
    """A net that has learned to say what is hidden."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = AlternatingDecoder(AlternatingConfig(token_dim=DIM, union=union))
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, effort.steps, pct_start=0.1)
    for _ in range(effort.steps):
        picked = torch.randint(len(moments), (effort.batch,), generator=draws).tolist()
        chosen = [moments[number] for number in picked]
        blind = bool(torch.rand((), generator=draws) < BLIND)
        asked = [some(moment, draws) for moment in chosen] if blind else chosen
        memories = [moment.memory for moment in chosen]
        batch = turned(gather(asked, memories, 1.0 if blind else HIDDEN, draws), draws)
        stores = (batch.transient, batch.persistent)
        keep = (drawn_store(one, draws) if memory else without(one) for one in stores)
        batch = replace(batch, **dict(zip(("transient", "persistent"), keep, strict=True)))
        still, moving = errors(tell(net, batch), batch)
        loss = still.mean() + (moving.mean() if len(moving) else 0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


def remember(number: int, effort: Effort, every: int) -> list[Moment]:
    """Walk through a room with a memory; stop now and then to be asked."""
    room = MovingRoom(number, seconds=effort.seconds)
    memory, moments = StaticDynamicMemory(BUDGET, StaticDynamicConfig(token_dim=DIM)), []
    for n in range(room.frames):
        shot = room.frame(n)
        frame = patch_tokens(shot, seed=number, hidden=HIDDEN, noise=NOISE)
        tokens, positions = torch.from_numpy(frame.features), torch.from_numpy(frame.positions)
        moving = torch.from_numpy(frame.moving)
        if n >= effort.first and n % every == 0:
            fused = memory.fuse(positions=positions, time=frame.time)
            moments.append(Moment(tokens, positions, moving, memory.kv(frame.time), fused))
        seen = torch.from_numpy(~frame.hidden)
        view = View(shot.frame.depth, shot.frame.intrinsics, shot.frame.pose)
        memory.write(
            tokens[seen],
            frame.time,
            positions=positions[seen],
            motion=moving[seen].float(),
            view=view,
        )
    return moments


def beside(batch: Batch) -> Tensor:
    """What the seen patches of each frame have near each place."""
    told = torch.zeros_like(batch.tokens)
    for row, seen in enumerate(~(batch.hidden | batch.padding)):
        told[row] = nearest(
            batch.positions[row], batch.tokens[row, seen], batch.positions[row, seen], 0.1
        )[0]
    return told


Teller = Callable[[Batch, Sequence[Moment]], Tensor]


def evaluate(
    tell_of: Teller, rooms: Sequence[list[Moment]], *, share: float, seed: int, foreign: bool
) -> tuple[float, float]:
    """Mean error of what stands and of what moves, over all rooms; see the module."""
    draws = torch.Generator().manual_seed(seed)
    still, moving = [], []
    for number, moments in enumerate(rooms):
        sources = rooms[(number + 1) % len(rooms)] if foreign else moments
        for start in range(0, len(moments), 8):
            asked = moments[start : start + 8]
            memories = [source.memory for source in sources[start : start + 8]]
            batch = gather(asked, memories, share, draws)
            with torch.no_grad():
                one, other = errors(tell_of(batch, asked), batch)
            still.append(one)
            moving.append(other)
    return float(torch.cat(still).mean()), float(torch.cat(moving).mean())


def tellers(nets: dict[str, AlternatingDecoder]) -> dict[str, tuple[Teller, bool]]:
    """Each row of the table: who tells, and whether from another room's memory."""

    def reader(net: AlternatingDecoder, *left_out: str) -> Teller:
        def told(batch: Batch, moments: Sequence[Moment]) -> Tensor:
            empty = {name: without(getattr(batch, name)) for name in left_out}
            return tell(net, replace(batch, **empty))

        return told

    rows: dict[str, tuple[Teller, bool]] = {}
    for name in ("alternating", "union"):
        rows[name] = reader(nets[name]), False
        rows[f"{name}, transient only"] = reader(nets[name], "persistent"), False
        rows[f"{name}, persistent only"] = reader(nets[name], "transient"), False
        rows[f"{name}, another room's"] = reader(nets[name]), True
    rows["no memory, trained so"] = reader(nets["alone"], "transient", "persistent"), False

    def fuse(batch: Batch, moments: Sequence[Moment]) -> Tensor:
        fused = [moment.fused for moment in moments]
        return torch.nn.utils.rnn.pad_sequence(fused, batch_first=True)

    rows["fuse, no net"] = fuse, False
    rows["seen beside, no net"] = (lambda batch, moments: beside(batch)), False
    return rows


def cost(net: AlternatingDecoder, moments: Sequence[Moment]) -> float:
    """Median CPU milliseconds to tell a frame."""
    draws, taken = torch.Generator().manual_seed(0), []
    for moment in moments[:30]:
        batch = gather([moment], [moment.memory], HIDDEN, draws)
        begin = time.thread_time()
        with torch.no_grad():
            tell(net, batch)
        taken.append(1e3 * (time.thread_time() - begin))
    return float(np.median(taken))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check that it runs, not a result")
    effort = QUICK if parser.parse_args(arguments).quick else FULL
    torch.set_num_threads(1)
    trained_on = [
        moment
        for number in range(effort.train)
        for moment in remember(TRAIN_ROOM + number, effort, effort.every)
    ]
    rooms = [remember(TEST_ROOM + n, effort, effort.asked) for n in range(effort.test)]
    shares = (HIDDEN, 1.0)
    scores: dict[str, list[list[float]]] = {}  # row -> seed -> four errors
    for seed in range(effort.seeds):
        nets = {
            "alternating": train(trained_on, effort, seed, union=False),
            "union": train(trained_on, effort, seed, union=True),
            "alone": train(trained_on, effort, seed, union=False, memory=False),
        }
        for name, (told, foreign) in tellers(nets).items():
            found = [
                evaluate(told, rooms, share=share, seed=seed, foreign=foreign) for share in shares
            ]
            scores.setdefault(name, []).append([error for pair in found for error in pair])
        print(
            f"seed {seed}",
            {k: np.round(v[-1], 3).tolist() for k, v in scores.items()},
            file=sys.stderr,
            flush=True,
        )
    scores["alternating - union"] = (
        np.array(scores["alternating"]) - np.array(scores["union"])
    ).tolist()
    weights = sum(weight.numel() for weight in nets["union"].parameters())
    times = {name: cost(nets[name], rooms[0]) for name in ("alternating", "union")}
    print(
        f"{effort.train} rooms to learn from, {effort.test} others, {effort.seeds} seeds, "
        f"{weights:,} weights, {effort.steps} steps of {effort.batch} frames, {BUDGET} of memory; "
        f"CPU ms a frame: alternating {times['alternating']:.1f}, union "
        f"{times['union']:.1f}\n"
    )
    print("| read | stands, 35 % hidden | moves | stands, all hidden | moves |")
    print("|---|---|---|---|---|")
    for name, values in scores.items():
        table = np.array(values)
        cells = zip(table.mean(0), table.std(0), strict=True)
        print(f"| {name} | " + " | ".join(f"{m:.3f} ±{s:.3f}" for m, s in cells) + " |")


if __name__ == "__main__":
    main()
