"""The memory of keys and values: the contract, blocks, tiers, as-of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from contract import MemoryContract, Observation, copied, recalled, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.kv.block import Block
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.index import ROWS, Table
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape

SHAPE = KVShape(layers=2, heads=4, kv_heads=2, head_dim=4)


def config(**more: Any) -> KVConfig:
    sizes: dict[str, Any] = {"precision": "model", "block": 6, "window": 18, "max_tokens": 8}
    return KVConfig(SHAPE, **{**sizes, **more})


def tokens(number: int, count: int = 4, seed: int = 0) -> Tensor:
    """Keys and values in halves, so that they are exact in float16."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    return torch.randn(count, SHAPE.width, generator=generator).half().float()


class TestKVMemory(MemoryContract):
    small, large, max_tokens = 30_000, 2_000_000, 8

    def make(self, budget: int) -> KVMemory:
        return KVMemory(config(embedding_dim=3), budget)

    def make_other(self, budget: int) -> KVMemory:
        return KVMemory(config(embedding_dim=3, block=5), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        return {
            "tokens": tokens(number, 4, seed),
            "time": number // 3 * 0.5,
            "embedding": tokens(number, 1, seed + 1)[0, :3],
            "companion": {"last": tokens(number, 1, seed)},
        }

    def query(self) -> Tensor:
        return tokens(77)[0, : SHAPE.width // 2]

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "embedding missing": {**good, "embedding": None},
            "embedding NaN": {**good, "embedding": torch.full((3,), torch.nan)},
            "coords of another size": {**good, "coords": torch.zeros(3, 3, dtype=torch.int64)},
            "coords too large": {**good, "coords": torch.full((4, 3), 2**15)},
            "coords without an abs": {**good, "coords": torch.full((4, 3), -(2**63))},
            "coords of floats": {**good, "coords": torch.zeros(4, 3)},
            "embedding beyond float16": {**good, "embedding": torch.full((3,), 1e6)},
            "companion without a name": {**good, "companion": {"": torch.ones(1)}},
            "companion with a comma": {**good, "companion": {"a,b": torch.ones(1)}},
        }


def filled(writes: int, *, budget: int = 2_000_000, count: int = 6, **more: Any) -> KVMemory:
    memory = KVMemory(config(**more), budget)
    for number in range(writes):
        memory.write(tokens(number, count), float(number))
    return memory


def cold_records(memory: KVMemory) -> dict[int, Tensor]:
    return {block.number: block.packed.clone() for block in memory.unsealed()}


def expected(numbers: list[int], layer: int, count: int = 6) -> tuple[Tensor, Tensor]:
    kv = torch.cat([tokens(n, count) for n in numbers]).reshape(-1, 2, 2, 2, 4)[:, layer]
    return kv[:, 0].transpose(0, 1).half(), kv[:, 1].transpose(0, 1).half()


@given(st.lists(st.integers(1, 8), min_size=1, max_size=25), st.integers(1, 9))
@settings(max_examples=40, derandomize=True)
def test_blocks_are_the_stream_cut_into_equal_parts(counts: list[int], block: int) -> None:
    memory = KVMemory(config(block=block), 2_000_000)
    sinks = tokens(99, 3).reshape(3, 2, 2, 2, 4).permute(1, 2, 3, 0, 4)
    memory.start(sinks)
    for number, count in enumerate(counts):
        memory.write(tokens(number, count), float(number))
    written = torch.cat([tokens(n, count) for n, count in enumerate(counts)]).half()
    sources = torch.tensor([n for n, count in enumerate(counts) for _ in range(count)])
    assert len(memory.blocks) == sum(counts) // block
    snapshot = memory.snapshot()
    assert snapshot.seen == 3 + sum(counts) and torch.equal(snapshot.sinks, sinks.half())
    for place, held in enumerate(memory.blocks):
        part = slice(place * block, (place + 1) * block)
        assert torch.equal(held.sources, sources[part])
        assert torch.equal(held.times, sources[part].double())
        keys, values = snapshot.gather(1, [place], snapshot.tick())
        flat = written[part].reshape(block, 2, 2, 2, 4)[:, 1]
        assert torch.equal(keys, flat[:, 0].transpose(0, 1))
        assert torch.equal(values, flat[:, 1].transpose(0, 1))
        mean = flat[:, 0].float().mean(0)
        assert torch.allclose(snapshot.representatives(1)[place].float(), mean, atol=1e-3)
    recall = memory.read()
    assert torch.equal(recall.tokens, written) and torch.equal(recall.sources, sources)


def test_the_window_keeps_the_newest_tokens_and_what_no_block_has() -> None:
    memory = filled(20, window=10, count=4)
    window = memory.snapshot().window
    assert [chunk.time for chunk in window] == [17.0, 18.0, 19.0]  # 8 would be too few
    assert window[-1].first == 76 and memory.snapshot().packed == 78


def test_a_window_takes_half_of_the_budget_at_most() -> None:
    memory = filled(60, budget=20_000, window=10_000)
    assert memory.held()["window"] <= 10_000 and len(memory.blocks) > 8


def test_many_pages_are_one_table() -> None:
    memory = filled(150)
    memory.drop(range(3, 70, 2))
    snapshot = memory.snapshot()
    kept = [block.number for block in snapshot.blocks]
    assert kept == [n for n in range(150) if not (3 <= n < 70 and n % 2)]
    means = torch.stack([tokens(n, 6).reshape(6, 2, 2, 2, 4)[:, 0, 0].mean(0) for n in kept])
    assert torch.allclose(snapshot.representatives(0).float(), means, atol=1e-3)
    memory.drop(range(64))
    assert memory.held()["index"] < 2 / 3 * filled(150).held()["index"]


def test_a_table_knows_its_bytes_without_a_look_at_every_page() -> None:
    table = Table((2, 3), torch.float32)
    for number in range(3 * ROWS):
        table.add(torch.full((2, 3), float(number)))
    assert table.nbytes == sum(page.nbytes for page in table.view([0])._pages.values())
    for row in range(ROWS, 2 * ROWS):
        table.drop(row)
    assert table.nbytes == 2 * 2 * ROWS * 3 * 4


def test_blocks_are_found_by_the_embedding_of_their_frames() -> None:
    memory = KVMemory(config(embedding_dim=2), 2_000_000)
    for number in range(6):  # a block is one and a half frames
        memory.write(tokens(number), number, embedding=torch.tensor([number // 2, 1.0]))
    found = memory.snapshot().embeddings()
    assert torch.allclose(found[:2].float(), torch.tensor([[0, 1], [2 / 3, 1]]), atol=1e-3)


# --------------------------------------------------------------------------- tiers


def test_sealed_records_leave_ram_before_any_block_is_lost() -> None:
    memory = filled(40)
    needed = memory.nbytes - 30 * memory.config.record_bytes
    memory.seal(cold_records(memory))
    report = memory.set_budget(needed)
    assert report.dropped == 0 and memory.nbytes <= needed and len(memory.blocks) == 40
    assert sum(block.record is not None for block in memory.blocks) == 10
    snapshot = memory.snapshot()
    keys, values = snapshot.gather(0, [2, 35, 7], snapshot.tick())
    assert torch.equal(keys, expected([2, 35, 7], 0)[0])
    assert torch.equal(values, expected([2, 35, 7], 0)[1])


def test_what_is_asked_for_again_comes_to_ram_and_the_least_used_leaves() -> None:
    memory = filled(20)
    memory.seal(cold_records(memory))
    memory.set_budget(memory.nbytes - 16 * memory.config.record_bytes)

    def in_ram() -> list[int]:
        return [block.number for block in memory.blocks if block.record is not None]

    assert in_ram() == [16, 17, 18, 19]
    snapshot = memory.snapshot()
    tick = snapshot.tick()
    snapshot.gather(0, [3, 17], tick)
    assert in_ram() == [16, 17, 18, 19]  # one layer's share alone does not pay for a copy
    snapshot.gather(1, [3], tick)
    assert in_ram() == [3, 17, 18, 19]
    snapshot.gather(0, [18], snapshot.tick())
    snapshot.gather(0, [3, 17, 5], snapshot.tick())
    snapshot.gather(1, [5], snapshot.tick())
    assert in_ram() == [3, 5, 17, 18] and memory.nbytes <= memory.budget.bytes


def test_a_record_that_nobody_else_keeps_is_given_up_with_its_block() -> None:
    memory = filled(20)
    sealed = {n: record for n, record in cold_records(memory).items() if n < 5}
    memory.seal(sealed)
    memory.set_budget(memory.nbytes - 7 * memory.config.record_bytes)
    # The five sealed ones leave RAM for nothing; two more are needed, and the oldest go first.
    assert [block.number for block in memory.blocks][0] > 0
    assert memory.nbytes <= memory.budget.bytes


def test_the_wrong_record_is_refused() -> None:
    memory = filled(3)
    with pytest.raises(ValueError, match="block 1 has"):
        memory.seal({1: torch.zeros(5, dtype=torch.uint8)})
    assert len(memory.unsealed()) == 3


def hot(memory: KVMemory, blocks: int) -> int:
    shape = memory.config.shape
    pair = 2 * shape.kv_heads * memory.config.stored * shape.head_dim * 2
    return shape.layers * pair * blocks


def test_the_hot_set_keeps_what_was_asked_for_last() -> None:
    sizes = filled(1)
    memory = KVMemory(config(), 2_000_000, hot=hot(sizes, 3))
    for number in range(10):
        memory.write(tokens(number, 6), float(number))
    snapshot, tiers = memory.snapshot(), memory._tiers
    for wanted, layer, then in (
        ([0, 1], 0, [0, 1]),
        ([2], 0, [0, 1, 2]),
        ([1, 7], 0, [1, 2, 7]),  # 0 was used longest ago
        ([3, 4, 5, 6], 0, [3, 4, 5]),  # no room for all that one question needs
        ([9], 1, [9]),  # each layer for itself
    ):
        keys, values = snapshot.gather(layer, wanted, snapshot.tick())
        assert torch.equal(keys, expected(wanted, layer)[0])
        assert torch.equal(values, expected(wanted, layer)[1])
        assert tiers.hot_blocks(layer) == then
        assert memory.held()["hot"] <= hot(sizes, 3)
    memory.drop([4])
    assert tiers.hot_blocks(0) == [3, 5]


def test_a_block_that_was_given_up_is_read_by_old_snapshots_and_leaves_no_trace() -> None:
    memory = KVMemory(config(), 2_000_000, hot=hot(filled(1), 4))
    for number in range(10):
        memory.write(tokens(number, 6), float(number))
    memory.seal(cold_records(memory))
    snapshot = memory.snapshot()
    memory.drop([2, 3])
    before = memory.held()
    for _ in range(3):
        keys, _ = snapshot.gather(0, [2, 3], snapshot.tick())
        assert torch.equal(keys, expected([2, 3], 0)[0])
    assert memory.held() == before
    assert memory.snapshot().representatives(0).shape[0] == 8
    assert snapshot.representatives(0).shape[0] == 10


def test_what_leaves_the_hot_set_while_it_is_read_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = KVMemory(config(), 2_000_000, hot=hot(filled(1), 2))
    for number in range(10):
        memory.write(tokens(number, 6), float(number))
    snapshot, tiers = memory.snapshot(), memory._tiers
    snapshot.gather(0, [0, 1], snapshot.tick())
    unpack = tiers._unpack

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(tiers, "_unpack", unpack)
        snapshot.gather(0, [5, 6], snapshot.tick())  # another thread's question
        return unpack(*given)

    monkeypatch.setattr(tiers, "_unpack", meanwhile)
    keys, _ = snapshot.gather(0, [0, 9], snapshot.tick())
    assert torch.equal(keys, expected([0, 9], 0)[0])
    assert tiers.hot_blocks(0) == [0, 9]


def test_a_question_of_no_tick_makes_nothing_older() -> None:
    memory = KVMemory(config(), 2_000_000, hot=hot(filled(1), 2))
    for number in range(10):
        memory.write(tokens(number, 6), float(number))
    snapshot, tiers = memory.snapshot(), memory._tiers
    snapshot.gather(0, [4], snapshot.tick())
    snapshot.gather(0, [5], snapshot.tick())
    snapshot.gather(0, [5], 0)
    snapshot.gather(0, [6], snapshot.tick())
    assert tiers.hot_blocks(0) == [5, 6]


def test_a_question_larger_than_ram_copies_no_record_in_vain() -> None:
    memory = filled(20)
    memory.seal(cold_records(memory))
    memory.set_budget(memory.nbytes - 16 * memory.config.record_bytes)
    snapshot, copied = memory.snapshot(), list[int]()
    promote = memory._tiers._promote

    def counted(copies: Any) -> None:
        copied.append(len(copies))
        promote(copies)

    memory._tiers._promote = counted  # type: ignore[method-assign]
    for _ in range(3):
        tick = snapshot.tick()
        for layer in (0, 1):
            keys, _ = snapshot.gather(layer, range(10), tick)
            assert torch.equal(keys, expected(list(range(10)), layer)[0])
    assert sum(copied) == 4  # what there is room for
    assert sum(block.record is not None for block in memory.blocks[:10]) == 4


def test_an_old_snapshot_and_a_memory_that_began_anew_do_not_mix() -> None:
    other = KVMemory(config(), 2_000_000)
    memory = KVMemory(config(), 2_000_000, hot=hot(filled(1), 4))
    for number in range(4):
        memory.write(tokens(number, 6), float(number))
        other.write(tokens(number + 4, 6), float(number))
    old = memory.snapshot()
    old.gather(0, [0], old.tick())
    memory.load_state_dict(other.state_dict())
    for _ in range(2):
        for view, number in ((old, 0), (memory.snapshot(), 4), (old, 0)):
            keys, _ = view.gather(0, [0], view.tick())
            assert torch.equal(keys, expected([number], 0)[0])
    assert memory.held()["ram"] == sum(block.packed.nbytes for block in memory.blocks)


@given(st.lists(st.tuples(st.integers(0, 1), st.sets(st.integers(0, 19), min_size=1))), st.data())
@settings(max_examples=30, derandomize=True)
def test_whatever_is_read_the_tiers_stay_within_their_bounds(asked: Any, data: Any) -> None:
    memory = KVMemory(config(), 2_000_000, hot=hot(filled(1), data.draw(st.integers(0, 5))))
    for number in range(20):
        memory.write(tokens(number, 6), float(number))
    sealed = data.draw(st.sets(st.integers(0, 19)))
    memory.seal({n: record for n, record in cold_records(memory).items() if n in sealed})
    memory.set_budget(memory.nbytes - data.draw(st.integers(0, len(sealed))) * 384)
    assert len(memory.blocks) == 20
    for layer, wanted in asked:
        snapshot = memory.snapshot()
        keys, values = snapshot.gather(layer, sorted(wanted), snapshot.tick())
        assert torch.equal(keys, expected(sorted(wanted), layer)[0])
        assert torch.equal(values, expected(sorted(wanted), layer)[1])
        assert memory.nbytes <= memory.budget.bytes
        ram = sum(b.record.nbytes for b in memory.blocks if b.record is not None)
        assert memory.held()["ram"] == ram
        assert memory.held()["hot"] <= memory._tiers._room * 2 * hot(memory, 1) // 2


# --------------------------------------------------------------------------- time, forgetting


def test_as_of_a_time_nothing_later_is_read() -> None:
    memory, then = filled(30, count=4), filled(12, count=4)
    past = memory.snapshot().before(11.0)
    assert [block.number for block in past.blocks] == [block.number for block in then.blocks]
    assert past.seen == 48  # all that twelve writes had
    assert torch.equal(past.representatives(1), then.snapshot().representatives(1))
    assert max(block.last for block in past.blocks) <= 11.0
    assert all(chunk.time <= 20.0 for chunk in memory.snapshot().before(20.0).window)
    assert memory.snapshot().before(27.0).window[-1].time == 27.0
    nothing = memory.snapshot().before(-1.0)
    assert not nothing.blocks and not nothing.window
    assert nothing.representatives(0).shape == (0, 2, 4) and len(nothing.read().tokens) == 0
    assert memory.read(before=11.0).times.max() <= 11.0


def test_what_is_forgotten_is_nowhere() -> None:
    memory = filled(30)
    memory.write(tokens(30, 6), 30.0, companion={"reference": tokens(0)})
    count = memory.forget(10.0, 12.5)
    assert count == 3 and not memory.companion
    assert not [b for b in memory.blocks if 10 <= b.last and b.first <= 12.5]
    memory.forget(29.0, 30.0)
    assert max(memory.read().times) == 28.0
    memory.write(tokens(31, 6), 31.0)
    restored = KVMemory(config(), 2_000_000)
    restored.load_state_dict(copied(memory.state_dict()))
    assert same(recalled(restored.read()), recalled(memory.read()))
    assert memory.forget(100.0, 200.0) == 0


def with_records(memory: KVMemory, blocks: Sequence[Block]) -> dict[str, Tensor]:
    records = torch.stack([block.packed for block in blocks])
    return memory.columns(blocks) | {"record": records}


def test_cold_blocks_come_back_cold_and_the_same() -> None:
    memory = filled(30, window=12)
    columns, state = with_records(memory, memory.blocks), copied(memory.working_state())
    restored = KVMemory(config(window=12), 2_000_000)
    restored.restore([(columns, True)], state)
    assert restored.held()["ram"] == 0 and restored.held()["cold"] == memory.held()["ram"]
    assert not restored.unsealed()
    for number in range(30, 40):
        for one in (memory, restored):
            one.write(tokens(number, 6), float(number))
    assert same(recalled(memory.read()), recalled(restored.read()))
    assert same(memory.working_state(), restored.working_state())


def test_blocks_that_were_given_up_do_not_come_back() -> None:
    memory = filled(30, window=12)
    everything = with_records(memory, memory.blocks)
    memory.drop([4, 28, 29])
    restored = KVMemory(config(window=12), 2_000_000)
    restored.restore([(everything, True)], memory.working_state())
    numbers = [block.number for block in restored.blocks]
    assert numbers == [block.number for block in memory.blocks] and 4 not in numbers
    for one in (memory, restored):
        one.write(tokens(30, 6), 30.0)
    assert restored.blocks[-1].row == memory.blocks[-1].row == 30
    assert restored.nbytes - restored.held()["ram"] == memory.nbytes - memory.held()["ram"]


def test_blocks_that_are_missing_are_named() -> None:
    memory = filled(8)
    columns = with_records(memory, memory.blocks[:5])
    other = filled(2)
    before = copied(other.state_dict())
    with pytest.raises(ValueError, match="3 blocks are missing, the first is 5"):
        other.restore([(columns, False)], memory.working_state())
    assert same(other.state_dict(), before)


def test_the_init_prompt_comes_first_and_fits() -> None:
    memory = filled(1)
    sinks = torch.zeros(2, 2, 2, 3, 4)
    with pytest.raises(ValueError, match="before the first write"):
        memory.start(sinks)
    with pytest.raises(ValueError, match="more than a quarter"):
        KVMemory(config(), 700).start(sinks)
    with pytest.raises(ValueError, match=r"\(2, 2, 2, N, 4\)"):
        KVMemory(config(), 10_000).start(sinks[:1])


@pytest.mark.parametrize(
    "sizes", [{"block": 0}, {"window": 0}, {"max_tokens": 0}, {"block": 2**15}]
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        config(**sizes)


def test_what_cannot_be_quantised_is_refused_before_it_is_written() -> None:
    memory = KVMemory(config(precision="int8", dtype=torch.float32), 100_000)
    memory.write(tokens(0, 6), 0.0)
    before = copied(memory.state_dict())
    for check in (memory.check_kv, memory.write_kv):
        with pytest.raises(ValueError, match="int8 cannot hold"):
            check(torch.full((2, 2, 2, 6, 4), 3e38), 1.0)
    assert same(memory.state_dict(), before)
