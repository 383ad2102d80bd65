"""The decoder that reads a transient and a persistent memory in turn, and both at once."""

from __future__ import annotations

import cmath
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.models.alternating import (
    AlternatingConfig,
    AlternatingDecoder,
    GatedRead,
    PlacedAttention,
    Store,
)
from vismem.models.alternating import Places as At

DIM = 8
SMALL = {"token_dim": DIM, "width": 48, "heads": 2}
BOTH = pytest.mark.parametrize("union", [False, True])


def decoder(seed: int = 0, **changes: object) -> AlternatingDecoder:
    """One whose every number matters: what begins at zero is drawn as well."""
    net = AlternatingDecoder(AlternatingConfig(**{**SMALL, **changes}))
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if not name.endswith(("gate", "log_reach")):
                weight.add_(0.2 * torch.randn(weight.shape, generator=draws))
    return net.eval()


def store(rows: int, seed: int = 0, batch: int = 1, axes: int = 3) -> Store:
    draws = torch.Generator().manual_seed(seed)
    return Store(
        torch.randn(batch, rows, DIM, generator=draws),
        torch.rand(batch, rows, axes, generator=draws, dtype=torch.float64),
        torch.randn(batch, rows, generator=draws),
    )


def now(rows: int = 5, seed: int = 7, batch: int = 1, axes: int = 3) -> tuple[Tensor, Tensor]:
    return store(rows, seed, batch, axes)[:2]


def rows_of(one: Store, rows: Tensor | slice) -> Store:
    return Store(*(part[:, rows] for part in one))


def close(one: Tensor, other: Tensor, atol: float = 1e-5) -> bool:
    return bool(one.isfinite().all()) and torch.allclose(one, other, atol=atol)


def test_both_ways_have_the_same_weights_and_few() -> None:
    one, other = (
        AlternatingDecoder(AlternatingConfig(token_dim=80, union=union)) for union in (False, True)
    )
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (one, other)]
    assert shapes[0] == shapes[1]
    assert sum(weight.numel() for weight in one.parameters()) < 500_000
    other.load_state_dict(one.state_dict())


def attention(axes: int = 3, heads: int = 2) -> PlacedAttention:
    """As it begins, but for a sink of its own for each head."""
    config = AlternatingConfig(token_dim=DIM, width=24 * heads, heads=heads, axes=axes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = PlacedAttention(config).double()
    one.sink.data = torch.linspace(-1.0, 0.5, heads).double()
    return one


def drawn(*shape: int, seed: int = 5) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64)


def places(count: int, axes: int, seed: int) -> At:
    draws = torch.Generator().manual_seed(seed)
    at = 0.3 * torch.rand(1, count, axes, generator=draws, dtype=torch.float64)
    return At(at, torch.randn(1, count, generator=draws, dtype=torch.float64))


def turned(vector: Tensor, at: Tensor) -> list[complex]:
    """Pairs of channels as numbers in the plane, an axis after the other, each period's in turn."""
    half = len(vector) // 2
    periods = half // len(at)
    pairs = []
    for axis in range(len(at)):
        for n in range(periods):
            wave = 0.4 * 32 ** (n / (periods - 1))  # from 0.4 to 12.8
            turn = cmath.exp(2j * cmath.pi * float(at[axis]) / wave)
            c = axis * periods + n
            pairs.append(complex(vector[c], vector[c + half]) * turn)
    return pairs


@pytest.mark.parametrize("axes", [2, 3])
@torch.no_grad()
def test_attention_is_the_rule_written_out(axes: int) -> None:
    """Rotary angles of every axis, a decay of each head, the bias, and a sink that holds zero."""
    one, here, there = attention(axes), places(3, axes, 1), places(4, axes, 2)
    x, memory = drawn(1, 3, 48), drawn(1, 4, 48, seed=6)
    query, key, value = one.query(x)[0], *one.key_value(memory)[0].chunk(2, -1)
    read = torch.zeros(3, 48).double()
    for head, reach in enumerate((0.1, 0.4)):
        part = slice(24 * head, 24 * head + 24)
        for m in range(3):
            scores = [one.sink[head].item()]
            for n in range(4):
                pairs = zip(
                    turned(query[m, part], here.at[0, m]),
                    turned(key[n, part], there.at[0, n]),
                    strict=True,
                )
                product = sum((q * k.conjugate()).real for q, k in pairs) / 24**0.5
                far = (here.at[0, m] - there.at[0, n]).square().sum() / reach**2
                scores.append(float(product - far + there.bias[0, n]))
            weight = torch.tensor(scores).double().softmax(0)[1:]
            read[m, part] = weight @ value[:, part]
    assert torch.allclose(one(x, here, memory, there)[0], one.out(read), atol=1e-5)


@torch.no_grad()
def test_where_nothing_is_near_nothing_is_read() -> None:
    one, x = attention(), drawn(1, 3, 48)
    for rows, away in ((0, 0.0), (4, 50.0)):
        there = places(rows, 3, 2)
        there = there._replace(at=there.at + away)
        read = one(x, places(3, 3, 1), drawn(1, rows, 48, seed=6), there)
        assert torch.equal(read, one.out.bias.expand_as(read))


@torch.no_grad()
def test_what_is_read_begins_as_a_copy_of_what_is_there() -> None:
    one, memory = attention(), drawn(1, 1, 48)
    one.sink.fill_(-1e3)
    read = one(drawn(1, 3, 48, seed=6), places(3, 3, 1), memory, places(1, 3, 1))
    copy = memory + one.key_value.bias[48:] + one.out.bias
    assert torch.allclose(read, copy.expand_as(read), atol=1e-9)
    net = AlternatingDecoder(AlternatingConfig(**SMALL))
    x = drawn(5, DIM).float()
    assert torch.allclose((net.embed(x) - net.embed.bias) @ net.head[1].weight.T, x, atol=1e-5)
    assert not net.kind.any() and not net.blocks[0].attention.sink.any()
    assert all(float(block.read.gate) == 1 for block in net.blocks)


@BOTH
@settings(max_examples=15)
@given(shift=st.tuples(*[st.floats(-1e6, 1e6)] * 3), seed=st.integers(0, 99))
def test_only_differences_of_positions_count(
    union: bool, shift: tuple[float, ...], seed: int
) -> None:
    net, (tokens, at) = decoder(union=union), now(seed=seed)
    stores = store(4, seed + 1), store(6, seed + 2)
    by = torch.tensor(shift, dtype=torch.float64)
    moved = [Store(one.tokens, one.positions + by, one.bias) for one in stores]
    assert close(net(tokens, at + by, *moved), net(tokens, at, *stores))


@BOTH
def test_what_is_far_apart_does_not_touch(union: bool) -> None:
    """Also not by way of the origin, which is amid the queries: a pair counts by itself."""
    net, by = decoder(union=union), torch.tensor([2000.0, -500.0, 0.0]).double()
    near = [store(rows, rows) for rows in (5, 4, 6)]
    far = [one._replace(positions=one.positions + by) for one in (store(3, 9), *near[1:])]
    both = [
        Store(*(torch.cat(parts, 1) for parts in zip(*pair, strict=True)))
        for pair in zip(near, far, strict=True)
    ]
    together, alone = (net(now.tokens, now.positions, *kept) for now, *kept in (both, near))
    assert close(together[:, :5], alone, 5e-3)


@BOTH
@pytest.mark.parametrize("which", [0, 1, 2])
def test_which_side_and_how_far_are_told_apart(union: bool, which: int) -> None:
    net, (tokens, at) = decoder(union=union), now()
    stores = [store(4, 1), store(6, 2)]
    plain = net(tokens, at, *stores)
    for change in (torch.tensor([1.0, 1.0, -1.0]), torch.tensor(1.3)):  # a mirror, a stretch
        places = [at, stores[0].positions, stores[1].positions]
        places[which] = places[which] * change
        moved = [one._replace(positions=new) for one, new in zip(stores, places[1:], strict=True)]
        assert not close(net(tokens, places[0], *moved), plain, 1e-4)


def test_a_mirror_keeps_distances_and_yet_is_seen() -> None:
    net, (tokens, at) = decoder(), now()
    mirror = torch.tensor([1.0, 1.0, -1.0])
    stores = [store(4, 1), store(6, 2)]
    all_mirrored = [one._replace(positions=one.positions * mirror) for one in stores]
    assert not close(net(tokens, at * mirror, *all_mirrored), net(tokens, at, *stores), 1e-4)


@BOTH
@settings(max_examples=15)
@given(times=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_token_that_counts_for_several_is_as_several(union: bool, times: int, seed: int) -> None:
    net, (tokens, at) = decoder(union=union), now(seed=seed)
    transient, one = store(3, 1), store(4, seed + 2)
    many = Store(*(torch.cat([part] + [part[:, :1]] * (times - 1), 1) for part in one))
    one.bias[:, 0] += torch.tensor(float(times)).log()
    assert close(net(tokens, at, transient, one), net(tokens, at, transient, many))


@BOTH
def test_what_is_far_older_or_far_away_is_not_read(union: bool) -> None:
    net, (tokens, at) = decoder(union=union), now()
    empty, plain = store(0), store(4, 2)
    told = net(tokens, at, empty, plain)
    transient = store(3, 1)
    assert not close(net(tokens, at, transient, plain), told, 1e-3)
    old = transient._replace(bias=transient.bias - 80)
    assert close(net(tokens, at, old, plain), told)
    away = transient._replace(positions=transient.positions + 60)
    assert close(net(tokens, at, away, plain), told)


@BOTH
@pytest.mark.parametrize(("moving", "still"), [(0, 0), (0, 6), (4, 0), (1, 1)])
def test_empty_is_as_padding(union: bool, moving: int, still: int) -> None:
    net, (tokens, at) = decoder(union=union), now()
    stores = store(moving, 1), store(still, 2)
    told = net(tokens, at, *stores)
    gone = [
        one._replace(bias=torch.full_like(one.bias, -torch.inf)) for one in (store(3), store(2))
    ]
    padded = [
        Store(*(torch.cat(pair, 1) for pair in zip(one, none, strict=True)))
        for one, none in zip(stores, gone, strict=True)
    ]
    assert close(net(tokens, at, *padded), told)


@BOTH
def test_memories_of_a_batch_do_not_touch(union: bool) -> None:
    net = decoder(union=union)
    kept = [(3, 5), (0, 7), (4, 0), (2, 2)]
    memories, queries = [], []
    for number, (moving, still) in enumerate(kept):
        both = [store(moving, number), store(still, number + 50)]
        values, positions, bias = (torch.cat(pair, 1)[0] for pair in zip(*both, strict=True))
        dynamic = torch.arange(moving + still) < moving
        memories.append(
            SimpleNamespace(values=values, positions=positions, bias=bias, dynamic=dynamic)
        )
        queries.append(now(3 + number, number + 99))
    longest = 3 + len(kept) - 1
    padding = torch.arange(longest) >= torch.tensor([[len(q[0][0])] for q in queries])
    tokens, at = torch.zeros(4, longest, DIM), torch.full((4, longest, 3), 1e3).double()
    for number, (own, where) in enumerate(queries):
        tokens[number, : own.shape[1]], at[number, : own.shape[1]] = own[0], where[0]
    together = net(tokens, at, *Store.pair(memories), padding=padding)
    for number, (own, where) in enumerate(queries):
        alone = net(own, where, *Store.pair([memories[number]]))
        assert close(together[number, : own.shape[1]], alone[0])


def test_a_pair_is_split_by_what_moves() -> None:
    both = store(5)
    dynamic = torch.tensor([True, False, True, False, False])
    kv = SimpleNamespace(
        values=both.tokens[0], positions=both.positions[0], bias=both.bias[0], dynamic=dynamic
    )
    for one, rows in zip(Store.pair([kv]), (dynamic, ~dynamic), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, rows_of(both, rows), strict=True))


@pytest.mark.parametrize("block", range(4))
def test_blocks_read_in_turn_and_of_the_union_all(block: int) -> None:
    (tokens, at), stores = now(), [store(4, 1), store(6, 2)]
    for union in (False, True):
        net = decoder(union=union)
        for number, one in enumerate(net.blocks):
            torch.nn.init.constant_(one.read.gate, float(number == block))
        plain = net(tokens, at, *stores)
        heard = []
        for which in (0, 1):
            changed = list(stores)
            changed[which] = stores[which]._replace(tokens=stores[which].tokens + 1)
            heard.append(not close(net(tokens, at, *changed), plain, 1e-4))
        assert heard == ([True, True] if union else [block % 2 == 0, block % 2 == 1])


@BOTH
def test_in_the_union_a_store_is_told_by_its_kind(union: bool) -> None:
    net, (tokens, at) = decoder(union=union), now()
    one, other = store(4, 1), store(4, 2)
    assert not close(net(tokens, at, one, other), net(tokens, at, other, one), 1e-4)
    torch.nn.init.zeros_(net.kind)
    assert close(net(tokens, at, one, other), net(tokens, at, other, one)) == union


@BOTH
def test_grafted_memory_changes_nothing_and_can_learn(union: bool) -> None:
    net, (tokens, at) = decoder(union=union, grafted=True), now()
    stores = store(4, 1), store(6, 2)
    told = net(tokens, at, *stores)
    assert torch.equal(told, net(tokens, at, store(0), store(3, 5)))
    told.square().sum().backward()
    assert all(block.read.gate.grad != 0 for block in net.blocks)


def test_a_grafted_read_leaves_its_host_alone() -> None:
    read = GatedRead(AlternatingConfig(**SMALL, grafted=True))
    x, memory = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    here, there = (At(torch.rand(2, n, 3), torch.zeros(2, n)) for n in (5, 7))
    assert torch.equal(read(x, here, memory, there), x)
    torch.nn.init.ones_(read.gate)
    assert not close(read(x, here, memory, there), x, 1e-3)


@BOTH
def test_what_is_hidden_is_not_looked_at(union: bool) -> None:
    net, (tokens, at) = decoder(union=union), now()
    stores = store(4, 1), store(6, 2)
    hidden = torch.tensor([[False, True, False, True, False]])
    told = net(tokens, at, *stores, hidden=hidden)
    other = torch.where(hidden[..., None], tokens + 5, tokens)
    assert torch.equal(net(other, at, *stores, hidden=hidden), told)
    seen = tokens.clone()
    seen[0, 0] += 1
    changed = net(seen, at, *stores, hidden=hidden)
    assert not close(changed[0, 1], told[0, 1], 1e-4)  # the hidden hear of their neighbours
    assert not close(told[0, 1], told[0, 3], 1e-4)  # and of their own place


@BOTH
def test_order_is_no_matter(union: bool) -> None:
    net, (tokens, at) = decoder(union=union), now()
    stores = store(4, 1), store(6, 2)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = [rows_of(one, torch.randperm(one.tokens.shape[1])) for one in stores]
    told = net(tokens, at, *stores)
    assert close(net(tokens[:, order], at[:, order], *shuffled), told[:, order])


def test_its_weights_are_all_that_it_is() -> None:
    net, (tokens, at) = decoder(seed=3, axes=2), now(axes=2)
    stores = store(4, 1, axes=2), store(6, 2, axes=2)
    other = AlternatingDecoder(net.config)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(tokens, at, *stores), net(tokens, at, *stores))


def test_every_weight_is_trained() -> None:
    net, (tokens, at) = decoder(), now()
    hidden = torch.tensor([[True, False, False, True, False]])
    net(tokens, at, store(4, 1), store(6, 2), hidden=hidden).square().sum().backward()
    assert [n for n, w in net.named_parameters() if w.grad is None or not w.grad.any()] == []


@pytest.mark.parametrize("union", [False, True])
def test_it_learns_to_look_up_what_memory_holds(union: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AlternatingDecoder(AlternatingConfig(**SMALL, layers=2, union=union))
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)

    def error(wrong: bool = False) -> Tensor:
        held = [torch.randn(16, 6, DIM, generator=draws) for _ in range(2)]
        places = [torch.rand(16, 6, 3, generator=draws) * 3 for _ in range(2)]
        stores = [Store(*pair, torch.zeros(16, 6)) for pair in zip(held, places, strict=True)]
        if wrong:
            stores = [one._replace(tokens=one.tokens.roll(1, 0)) for one in stores]
        told = net(torch.zeros(16, 12, DIM), torch.cat(places, 1), *stores)
        return 1 - torch.cosine_similarity(told, torch.cat(held, 1), dim=-1).mean()

    for _ in range(150):
        optimizer.zero_grad()
        loss = error()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert error() < 0.25 and error(wrong=True) > 0.8


@pytest.mark.parametrize(
    ("tokens", "at", "memory"),
    [
        ((1, 5, DIM + 1), (1, 5, 3), store(3)),
        ((1, 5, DIM), (1, 5, 2), store(3)),
        ((1, 5, DIM), (1, 4, 3), store(3)),
        ((5, DIM), (5, 3), store(3)),
        ((2, 5, DIM), (2, 5, 3), store(3)),
        ((1, 5, DIM), (1, 5, 3), store(3)._replace(bias=torch.zeros(1, 1))),
        ((1, 5, DIM), (1, 5, 3), store(3)._replace(positions=torch.zeros(1, 1, 3))),
    ],
)
def test_what_does_not_fit_is_refused(tokens: tuple, at: tuple, memory: Store) -> None:
    for stores in ((memory, store(2)), (store(2), memory)):
        with pytest.raises(ValueError, match="not"):
            decoder()(torch.zeros(tokens), torch.zeros(at), *stores)


@pytest.mark.parametrize("changes", [{"width": 50}, {"axes": 0}, {"axes": 5}])
def test_a_head_must_divide_into_pairs(changes: dict) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        AlternatingConfig(**{**SMALL, **changes})
