"""What a KV memory on disk refuses, and that it changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_kv import WRITES, answers, begin, config, equal, fill, frame, on_disk, prompt
from torch import Tensor

from vismem.errors import StoreError, UsageError
from vismem.kv_store import DurableKV
from vismem.memory.kv.compress import Compressed, Keep
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.shape import KVShape
from vismem.store import MemoryStore


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("NaN", {"kv": torch.full((2, 2, 2, 4, 4), torch.nan)}),
        ("infinity", {"kv": torch.full((2, 2, 2, 4, 4), torch.inf)}),
        ("beyond float16", {"kv": torch.full((2, 2, 2, 4, 4), 1e6)}),
        ("too many", {"kv": torch.zeros(2, 2, 2, 9, 4)}),
        ("another width", {"kv": torch.zeros(2, 2, 2, 4, 5)}),
        ("backwards", {"time": -1.0}),
        ("no embedding", {"embedding": None}),
    ],
)
def test_what_the_memory_refuses_is_not_logged(path: Path, what: str, change: Any) -> None:
    with begin(path) as memory:
        fill(memory, range(20))
        before, held = answers(memory), on_disk(path)
        with pytest.raises(ValueError):
            memory.write_kv(**{**frame(20), "coords": None, **change})
        assert equal(answers(memory), before) and on_disk(path) == held
        with pytest.raises(ValueError, match="before the first write"):
            memory.start(prompt())
        fill(memory, range(20, 30))
    with DurableKV.open(path) as memory:
        assert memory.memory.last_time == frame(29)["time"]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_budget_too_small_for_the_init_prompt_is_not_called_damage(
    path: Path, sealed: bool
) -> None:
    with begin(path) as memory:
        fill(memory, range(3))
        if sealed:
            memory.seal()
    needed = 4 * prompt().half().nbytes
    with pytest.raises(UsageError, match=f"give at least {needed}"):
        DurableKV.open(path, budget=needed - 1)
    DurableKV.open(path, budget=needed).close()


def test_a_memory_of_another_kind_is_not_called_damage(path: Path) -> None:
    MemoryStore.create(path, encoder={}, config={}).close()
    with pytest.raises(StoreError, match="another kind"):
        DurableKV.open(path)


def test_a_compression_that_could_not_be_known_again_is_refused(path: Path) -> None:
    class Nameless:
        def tokens(self, tokens: int) -> int:
            return Keep(0.5).tokens(tokens)

        def __call__(self, kv: Tensor, saliency: Tensor | None = None) -> Compressed:
            return Keep(0.5)(kv, saliency)

    class Named(Nameless):
        def __repr__(self) -> str:
            return "Named()"

    with pytest.raises(UsageError, match="Nameless .* give it a __repr__"):
        begin(path, config=config(compression=Nameless()))
    begin(path, config=config(compression=Named())).close()
    DurableKV.open(path, config(compression=Named())).close()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (config(shape=KVShape(2, 4, 2, 8)), ("head_dim 4", "head_dim 8")),
        (config(block=7), ("block 6", "block 7")),
        (config(precision="int4"), ("precision int8", "precision int4")),
        (config(dtype=torch.bfloat16), ("dtype float16", "dtype bfloat16")),
        (config(shape=KVShape(3, 4, 2, 4), window=99), ("layers 2, window 18", "layers 3")),
    ],
)
def test_another_geometry_is_refused_naming_both(path: Path, other: KVConfig, said: Any) -> None:
    begin(path).close()
    with pytest.raises(StoreError, match="or begin another memory") as error:
        DurableKV.open(path, other)
    assert all(part in str(error.value) for part in said)


def test_another_model_is_refused_naming_both(path: Path) -> None:
    begin(path).close()
    with pytest.raises(StoreError, match="tiny.*other.*begin another memory"):
        DurableKV.open(path, identity={"model": "other"})
    with pytest.raises(StoreError, match="already holds a memory"):
        begin(path)
    with DurableKV.open(path, config(), identity={"model": "tiny"}) as memory:
        assert memory.identity == {"model": "tiny"}
    with pytest.raises(StoreError, match="does not exist"):
        DurableKV.open(path / "nothing")


def test_a_segment_of_another_stream_is_refused(path: Path) -> None:
    other = path.with_name("other.kv")
    for each in (path, other):
        with begin(each) as memory:
            fill(memory, range(WRITES))
    for file in other.glob("seg_0-*"):
        shutil.copy(file, path)
    with pytest.raises(StoreError, match="of another stream.*salvage=True"):
        DurableKV.open(path)
    with DurableKV.open(path, salvage=True) as memory:
        assert "sha256" in memory.lost[0]


def test_a_log_of_another_stream_is_refused(path: Path) -> None:
    other = path.with_name("other.kv")
    for each in (path, other):
        with begin(each) as memory:
            fill(memory, range(5))
    shutil.copy(other / "tail_000000.log", path)
    with pytest.raises(StoreError, match="a record is of another stream"):
        DurableKV.open(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("stream", "the state is of another stream"), ("blocks", "1 blocks are missi")],
)
def test_a_state_that_is_not_of_these_segments_is_refused(path: Path, name: str, said: str) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
    with MemoryStore.open(path) as store:
        state = store.state()
        state[name] = torch.cat([state[name], state[name][-1:] + 1])
        store.commit(dict.fromkeys((segment.name for segment in store.segments()), None), state)
    with pytest.raises(StoreError, match=said):
        DurableKV.open(path)
