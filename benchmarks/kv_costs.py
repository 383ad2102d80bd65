"""Contestants and costs of `kv.py`: the published path, our published mode, and our default.

All share one language model of random weights behind `GivenFrames`, whose frames are embeddings
made before, and start from the same random keys and values of frames gone by.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from kv_published import ReKVAsPublished, Settings
from torch import Tensor

from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval
from vismem.memory.kv.shape import KVShape
from vismem.models import answer as answering
from vismem.models import kv_context
from vismem.models.families import FrameTokens
from vismem.models.families.llava_onevision import LlavaOneVision
from vismem.models.video_llm import VideoLLM, VideoStream

PUBLISHED, COMPAT = "published, as coded", "ours, published mode"
SAME, DEFAULT = "ours, published window", "ours, default"
TAIL = 8  # newest frames that our default reads beside the retrieved blocks
PARTS = ("encode", "retrieve", "gather", "prefill", "decode")


@dataclass(frozen=True)
class Sizes:
    """Geometry of the language model, the published numbers, and how much is timed."""

    layers: int = 24
    hidden: int = 896
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    inner: int = 4864
    vocabulary: int = 152_000
    frame: int = 196  # tokens
    window: int = 15_000
    default_window: int = 4096
    blocks: int = 64
    frames: int = 90  # before the first that is timed
    chunk: int = 1  # frames of a forward
    rounds: int = 2
    words: int = 3  # of an answer
    sinks: int = 14

    @property
    def shape(self) -> KVShape:
        """What a memory needs to know of it."""
        return KVShape(self.layers, self.heads, self.kv_heads, self.head_dim)


LARGE = Sizes(28, 3584, 28, 4, 128, 18_944, rounds=5, chunk=4, words=16)
QUICK = Sizes(2, 64, 4, 2, 16, 96, 500, 16, 96, 64, 4, 10, chunk=2, rounds=1, sinks=5)


class GivenFrames(LlavaOneVision):
    """A family whose frames are numbers of embeddings made before, ``(F, 1, 1, 1)``."""

    given: Tensor  # (frames, M, hidden)

    def embed_frames(self, frames: Any) -> FrameTokens:
        """Look embeddings up."""
        coords = torch.arange(self.given.shape[1], dtype=torch.int16)[:, None].expand(-1, 3)
        return FrameTokens(self.given[frames.flatten().to(self.given.device).long()], coords)


def build(sizes: Sizes, device: str, dtype: torch.dtype) -> GivenFrames:
    """The real classes with random weights; the vision part is as small as can be."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    text = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=28, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config=text, vision_config=vision, image_token_index=1, video_token_index=2
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        family = GivenFrames(LlavaOnevisionForConditionalGeneration(config))
    torch.set_default_dtype(before)
    draw = torch.Generator().manual_seed(0)
    many = 2 + sizes.chunk * (sizes.rounds + 1)
    family.given = torch.randn(many, sizes.frame, sizes.hidden, generator=draw).to(device, dtype)
    family.given *= 0.02  # as embeddings of words are drawn
    return family


class Contestant:
    """One stream with so many frames behind it, of random keys and values."""

    def __init__(
        self, family: GivenFrames, sizes: Sizes, init: Tensor, past: Sequence[Tensor], window: int,
        retrieval: Retrieval, published: bool,
    ) -> None:  # fmt: skip
        config = KVConfig(
            sizes.shape,
            family.dtype,
            "model" if published else "int8",
            block=sizes.frame,
            window=window,
        )
        self.memory = KVMemory(config, "200GB", device=family.device)
        self.memory.start(init)
        for number, kv in enumerate(past):
            self.memory.write_kv(kv, float(number))
        self.stream = VideoStream(
            VideoLLM(family), self.memory, retrieval=retrieval, published=published,
            timestamps=False, chunk=sizes.chunk,
        )  # fmt: skip

    def encode(self, numbers: Tensor) -> None:
        """Take up frames, in one forward."""
        begin = max(0.0, self.memory.last_time + 1)
        self.stream.write(numbers, [begin + n for n in range(len(numbers))])


def as_published(
    family: GivenFrames, sizes: Sizes, init: Tensor, past: Sequence[Tensor]
) -> ReKVAsPublished:
    """The published path in the state that it would have come to."""
    text = family.text_model
    head = family.model.get_output_embeddings()
    model = SimpleNamespace(model=text, lm_head=head, config=text.config)
    settings = Settings(sizes.window, sizes.frame, sizes.blocks, 1, sizes.sinks)
    rekv = ReKVAsPublished(model, settings)
    local = torch.cat([init, *past[-(sizes.window // sizes.frame + 1) :]], 3)
    for number, layer in enumerate(rekv.layers):
        layer.local = tuple(part[:, -sizes.window :] for part in local[number])
        layer.init = init[number, 0], init[number, 1]
        layer.rest = tuple(part[:, :0] for part in layer.init)
        layer.blocks = [(kv[number, 0].clone(), kv[number, 1].clone()) for kv in past]
        repeat = sizes.heads // sizes.kv_heads
        layer.reps = [
            keys.repeat_interleave(repeat, dim=0).mean(1).flatten() for keys, _ in layer.blocks
        ]
        layer.seen = sizes.sinks + sizes.frame * len(past)
    return rekv


Clock = Callable[[], float]


def published_question(
    rekv: ReKVAsPublished, question: Tensor, prompt: Tensor, words: int, clock: Clock
) -> tuple[list[int], list[list[int]], dict[str, float]]:
    """Ask the published path: words, rows, and seconds of each part."""
    gathering = [0.0]

    def timed(gather: Callable) -> Callable:
        def run(*parts: Any) -> Any:
            began = clock()
            joined = gather(*parts)
            gathering[0] += clock() - began
            return joined

        return run

    for layer in rekv.layers:
        layer.gather = timed(type(layer).gather.__get__(layer))
    began = clock()
    rekv.retrieve(question)
    spent = {"retrieve": clock() - began - gathering[0], "gather": gathering[0]}
    rows = [layer.chosen for layer in rekv.layers]
    began = clock()
    ids = [int(rekv.prefill(prompt)[-1].argmax())]
    spent["prefill"], began = clock() - began, clock()
    while len(ids) < words:
        ids.append(int(rekv.decode(ids[-1])[-1].argmax()))
    return ids, rows, spent | {"decode": (clock() - began) / (words - 1)}


@dataclass(frozen=True)
class Cost:
    """One contestant: seconds of each part, medians."""

    name: str
    window: int
    encode: float  # of a frame
    retrieve: float
    gather: float
    prefill: float
    decode: float  # of a word


def costs(sizes: Sizes, device: str, say: Callable[[str], None]) -> list[Cost]:
    """Everybody takes every frame and every question, in changing order."""
    dtype, clock = torch.float32, time.process_time
    if device == "cuda":
        dtype = torch.float16

        def clock() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

    family = build(sizes, device, dtype)
    say(f"model of {sizes.layers} layers is there")
    draw = torch.Generator().manual_seed(1)

    def random_kv(tokens: int) -> Tensor:
        shape = sizes.layers, 2, sizes.kv_heads, tokens, sizes.head_dim
        return torch.randn(shape, generator=draw).to(device, dtype)

    init, past = random_kv(sizes.sinks), [random_kv(sizes.frame) for _ in range(sizes.frames)]
    rekv = as_published(family, sizes, init, past)
    published = Retrieval.published(sizes.blocks)
    ours = Retrieval(sizes.blocks, tail=TAIL * sizes.frame)
    streams = {
        COMPAT: Contestant(family, sizes, init, past, sizes.window, published, True),
        SAME: Contestant(family, sizes, init, past, sizes.window, ours, False),
        DEFAULT: Contestant(family, sizes, init, past, sizes.default_window, ours, False),
    }
    del past
    say("windows are full")
    # The parts of our answers are timed by the same clock as everything else.
    for module in (answering, kv_context):
        module.clock = SimpleNamespace(perf_counter=clock)
    spent: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in PARTS} for name in (PUBLISHED, *streams)
    }
    for number in range(sizes.rounds + 1):  # the first warms up, and is checked
        numbers = torch.arange(sizes.chunk)[:, None, None, None] + number * sizes.chunk
        embeds = family.given[numbers.flatten().to(device)].flatten(0, 1)
        question, prompt = (
            torch.randint(sizes.vocabulary, (count,), generator=draw) for count in (16, 32)
        )
        said: dict[str, tuple[list[int], list[list[int]]]] = {}
        names = [PUBLISHED, *streams]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = clock()
            if name == PUBLISHED:
                rekv.encode(embeds)
            else:
                streams[name].encode(numbers)
            parts = {"encode": (clock() - began) / sizes.chunk}
            if name == PUBLISHED:
                ids, rows, more = published_question(
                    rekv, question.to(device), prompt.to(device), sizes.words, clock
                )
            else:
                result = streams[name].stream.ask_ids(
                    question.tolist(), prompt.tolist(), max_new_tokens=sizes.words,
                    stop_ids=frozenset(),
                )  # fmt: skip
                ids, rows, more = result.ids, result.rows, dict(result.seconds)
                more["decode"] /= sizes.words - 1
            said[name] = ids, rows
            for part, seconds in (parts | more).items():
                if number:
                    spent[name][part].append(seconds)
        agree(rekv, streams[COMPAT].memory, said, exact=dtype == torch.float32)
        say(f"round {number} of {sizes.rounds} done")
    windows = {DEFAULT: sizes.default_window}
    return [
        Cost(name, windows.get(name, sizes.window), *(statistics.median(of[p]) for p in PARTS))
        for name, of in spent.items()
    ]


def agree(
    rekv: ReKVAsPublished, memory: KVMemory, said: dict[str, tuple[Any, Any]], *, exact: bool
) -> None:
    """End if the published path and our published mode have come to different numbers."""
    newest = memory.snapshot().window[-1].kv
    local = torch.stack(
        [torch.stack(layer.local)[..., -newest.shape[3] :, :] for layer in rekv.layers]
    )
    off = ((newest - local).float().norm() / local.float().norm()).item()
    if off > (1e-4 if exact else 2e-2):
        raise SystemExit(f"both must make the same keys and values, but these are {off:.1e} apart")
    (ids, rows), (our_ids, our_rows) = said[PUBLISHED], said[COMPAT]
    if exact and rows != our_rows:
        raise SystemExit("both must choose the same blocks, but they do not")
    if exact and ids != our_ids:
        raise SystemExit(f"both must say the same, but one says {ids}, ours {our_ids}")


def cost_table(rows: Sequence[Cost], sizes: Sizes) -> str:
    """Seconds, and shares of what the published path takes."""
    base = rows[0]
    context = sizes.sinks + sizes.blocks * sizes.frame
    lines = [
        f"{sizes.layers} layers, frames of {sizes.frame} tokens, {sizes.chunk} a forward, "
        f"{context:,} tokens of context; seconds (share of published)",
        f"{'':<24}{'window':>8}" + "".join(f"{part:>16}" for part in PARTS),
    ]
    for row in rows:
        cells = (
            f"{getattr(row, part):>9.4f} ({getattr(row, part) / getattr(base, part):.2f})"
            for part in PARTS
        )
        lines.append(f"  {row.name:<22}{row.window:>8,}" + "".join(f"{c:>16}" for c in cells))
    return "\n".join(lines)
