"""Needles in a stream of keys and values: what is found, and read, once blocks are compressed.

No weights can be had here that know what is in a picture, so the needle is planted: for one frame
an object covers a few patches, a question's queries align with the object's keys, and its values
tell something that its keys do not, which the answer has to name. All goes the way of a real
stream: embeddings of patches, dropped where they show nothing new; keys with a bias, and values, by
random projections; `KVMemory` in the precision and with the compression in question; blocks chosen
by mean keys; attention over what the memory gives back. `kv.py` prints the table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.memory.kv.compress import Compression, Keep, Merge
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.quantize import Precision
from vismem.memory.kv.retrieval import Retrieval, choose, layer_scores
from vismem.memory.kv.shape import KVShape
from vismem.memory.token_drop import TokenDrop

SIDE, HIDDEN = 14, 256  # patches of a side, width of an embedding
SHOWN = HIDDEN // 2  # of it, what keys are made of; the rest, what a token tells, makes values
SHAPE = KVShape(layers=4, heads=8, kv_heads=2, head_dim=64)
SCENE, MOVING, COVERED = 20, 0.12, 24  # frames of a scene, share of patches in motion, needle's
AGES = 3  # bins


@dataclass(frozen=True)
class Plan:
    """How much is planted and asked."""

    frames: int = 240
    needles: int = 24
    blocks: int = 12
    seeds: int = 3


@dataclass(frozen=True)
class Policy:
    """One way to keep blocks, and to choose among them."""

    name: str
    precision: Precision = "model"
    drop: bool = False
    compression: Compression | None = None
    choice: str = "centred"


POLICIES = (
    Policy("fp16"),
    Policy("fp16, published choice", choice="published"),
    Policy("int8", "int8"),
    Policy("int4", "int4"),
    Policy("drop, fp16", drop=True),
    Policy("drop, int8", "int8", drop=True),
    Policy("drop, int4", "int4", drop=True),
    Policy("keep half, int4", "int4", compression=Keep(0.5)),
    Policy("merge to half, int4", "int4", compression=Merge(0.5)),
    Policy("random blocks", choice="random"),
    Policy("newest blocks", choice="newest"),
)


@dataclass(frozen=True)
class Stream:
    """Frames with needles, and the language model that never was."""

    frames: Tensor  # (T, M, hidden)
    at: Tensor  # (J,) frame of each needle
    covered: Tensor  # (J, COVERED) its patches
    objects: Tensor  # (J, hidden)
    project: Tensor  # (L, 2, G, D, hidden / 2) to keys and to values
    bias: Tensor  # (L, G, 1, D) of keys
    questions: Tensor  # (J, L, H, D)

    def kv(self, tokens: Tensor) -> Tensor:
        """Keys and values of tokens ``(N, hidden)``: ``(L, 2, G, N, D)``."""
        halves = tokens.unflatten(1, (2, SHOWN))
        kv = torch.einsum("nch,lcgdh->lcgnd", halves, self.project)
        kv[:, 0] += self.bias
        return kv


def plant(plan: Plan, seed: int) -> Stream:
    """Scenes, something that moves in them, and needles in frames of any age."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    patches, count = SIDE**2, -(-plan.frames // SCENE)
    scenes = 0.5 * noise(count, 1, HIDDEN) + noise(count, patches, HIDDEN)
    frames = scenes.repeat_interleave(SCENE, dim=0)[: plan.frames].clone()
    moving = torch.rand(plan.frames, patches, generator=draw) < MOVING
    frames[moving] = noise(int(moving.sum()), HIDDEN)
    frames += 0.3 * noise(*frames.shape)
    objects = noise(plan.needles, HIDDEN)
    at = torch.randperm(plan.frames, generator=draw)[: plan.needles].sort().values
    order = torch.rand(plan.needles, patches, generator=draw).argsort(dim=1)
    covered = order[:, :COVERED]
    frames[at[:, None], covered] = objects[:, None] + 0.3 * noise(plan.needles, COVERED, HIDDEN)
    layers, heads, groups, width = SHAPE.layers, SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim
    project = noise(layers, 2, groups, width, SHOWN) / SHOWN**0.5
    bias = 3 * noise(layers, groups, 1, width)
    keys = torch.einsum("jh,lgdh->jlgd", objects[:, :SHOWN], project[:, 0])
    questions = keys.repeat_interleave(heads // groups, dim=2)
    questions = questions + 0.5 * noise(*questions.shape)
    return Stream(frames, at, covered, objects, project, bias, questions)


def remember(stream: Stream, policy: Policy) -> tuple[KVMemory, float]:
    """Write all frames; the memory, and the share of tokens that were dropped before."""
    config = KVConfig(
        SHAPE,
        torch.float16,
        policy.precision,
        block=SIDE**2,
        window=SIDE**2,
        compression=policy.compression,
    )
    memory, drop, kept = KVMemory(config, "4GB"), TokenDrop(), 0
    grid = torch.stack(torch.meshgrid(*(torch.arange(SIDE),) * 2, indexing="ij"), dim=-1)
    coords = torch.nn.functional.pad(grid.flatten(0, 1), (1, 0))
    for time, frame in enumerate(stream.frames):
        new = drop(frame) if policy.drop else torch.ones(len(frame), dtype=torch.bool)
        new[0] |= not new.any()
        kept += int(new.sum())
        memory.write_kv(stream.kv(frame[new]), float(time), coords=coords[new])
    return memory, 1 - kept / stream.frames[..., 0].numel()


def rows_for(policy: Policy, scores: Tensor, blocks: int, draw: torch.Generator) -> list[Tensor]:
    """The rows of each layer, by scores ``(L, N)`` or by a rule that does not look."""
    count = scores.shape[1]
    if policy.choice == "newest":
        return [torch.arange(max(0, count - blocks), count)] * len(scores)
    if policy.choice == "random":
        return [
            torch.randperm(count, generator=draw)[:blocks].sort().values for _ in range(len(scores))
        ]
    published = policy.choice == "published"
    return choose(scores, Retrieval.published(blocks) if published else Retrieval(blocks))


def score(stream: Stream, memory: KVMemory, policy: Policy, plan: Plan, seed: int) -> Tensor:
    """Of every needle whether it was found, as a share of layers, and whether read, ``(J, 2)``."""
    view, draw = memory.snapshot(), torch.Generator().manual_seed(seed)
    reps = torch.stack([view.representatives(layer) for layer in range(SHAPE.layers)])
    held = torch.stack([block.sources for block in view.blocks])  # (N, M)
    patch = torch.stack([block.coords[:, 1] * SIDE + block.coords[:, 2] for block in view.blocks])
    values = torch.einsum("jh,lgdh->jlgd", stream.objects[:, SHOWN:], stream.project[:, 1])
    rule = "dot" if policy.choice == "published" else "centred"
    results = []
    for needle, question in enumerate(stream.questions):
        mine = (held == stream.at[needle]) & torch.isin(patch, stream.covered[needle])
        most = int(mine.sum(1).argmax())
        scores = layer_scores(SHAPE.fold(question), reps, rule)
        chosen, tick = rows_for(policy, scores, plan.blocks, draw), view.tick()
        seen = []
        for layer, rows in enumerate(chosen):
            keys, read = (part.float() for part in view.gather(layer, rows, tick))
            query = question[layer].unflatten(0, (SHAPE.kv_heads, -1))
            weights = (query @ keys.mT / SHAPE.head_dim**0.5).softmax(-1)
            seen.append((weights @ read).mean(1))
        like = torch.nn.functional.cosine_similarity(
            torch.stack(seen).flatten(), values.flatten(1), dim=-1
        )
        found = sum(most in rows for rows in chosen) / len(chosen)
        results.append([found if mine.any() else 0.0, float(like.argmax() == needle)])
    return torch.tensor(results)


@dataclass(frozen=True)
class Found:
    """What one policy gave, over all seeds."""

    policy: str
    kilobytes: float  # of a frame, records alone
    dropped: float
    ages: list[float]  # recall, newest third first
    recall: float
    interval: float  # half of the 95 % interval of recall, over seeds
    read: float
    loss: float  # of recall against fp16, in the mean over seeds
    read_loss: float


def needles(plan: Plan, policies: tuple[Policy, ...], say: Callable[[str], None]) -> list[Found]:
    """All policies over the same streams."""
    made: dict[str, list[Tensor]] = {policy.name: [] for policy in policies}
    sizes: dict[str, tuple[float, float]] = {}
    ages: list[Tensor] = []
    for seed in range(plan.seeds):
        stream = plant(plan, seed)
        ages.append((plan.frames - 1 - stream.at) * AGES // plan.frames)
        for policy in policies:
            memory, dropped = remember(stream, policy)
            made[policy.name].append(score(stream, memory, policy, plan, seed))
            held = sum(block.packed.nbytes for block in memory.blocks)
            sizes[policy.name] = held / plan.frames / 1e3, dropped
        say(f"seed {seed} done")
    age, base = torch.cat(ages), torch.cat(made[policies[0].name]).mean(0)
    rows = []
    for name, parts in made.items():
        flat, mean = torch.cat(parts), torch.cat(parts).mean(0)
        spread = (
            statistics.stdev(float(part[:, 0].mean()) for part in parts) if plan.seeds > 1 else 0
        )
        interval = 4.303 * spread / plan.seeds**0.5 if plan.seeds == 3 else float("nan")
        by_age = [float(flat[age == bin, 0].mean()) for bin in range(AGES)]
        recall, read = mean.tolist()
        lost, read_lost = (base - mean).tolist()
        rows.append(Found(name, *sizes[name], by_age, recall, interval, read, lost, read_lost))
    return rows


def table(rows: list[Found], plan: Plan) -> str:
    """Recall by age; reading; and what it costs."""
    lines = [
        f"{plan.needles} needles x {plan.seeds} seeds, {plan.frames} frames, {plan.blocks} blocks "
        f"a layer of {SHAPE}",
        f"{'':<24}{'kB/frame':>9}{'dropped':>9}{'newest':>9}{'middle':>8}{'oldest':>8}"
        f"{'recall':>9}{'+-95%':>7}{'read':>7}{'loss':>7}{'of read':>8}",
    ]
    for row in rows:
        bins = "".join(f"{share:>8.3f}" for share in row.ages)
        lines.append(
            f"  {row.policy:<22}{row.kilobytes:>9.1f}{row.dropped:>9.2f} {bins}{row.recall:>9.3f}"
            f"{row.interval:>7.3f}{row.read:>7.3f}{row.loss:>7.3f}{row.read_loss:>8.3f}"
        )
    return "\n".join(lines)
