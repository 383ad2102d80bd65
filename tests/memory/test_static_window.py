"""What stands in the world: rows of the nearest, and a window where looks change with the view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vismem.memory.static_dynamic.config import StaticDynamicConfig
from vismem.memory.static_dynamic.memory import StaticDynamicMemory
from vismem.memory.static_dynamic.motion_cue import View
from vismem.memory.static_dynamic.static_store import StaticStore

DIM = 16
BUDGET = 60_000
GRID = torch.cartesian_prod(torch.arange(10) * 0.15, torch.arange(10) * 0.15, torch.zeros(1) + 2.0)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def store(positions: Tensor, voxel: float = 0.08) -> StaticStore:
    made = StaticStore(StaticDynamicConfig(DIM, voxel=voxel))
    count = len(positions)
    made.held = made.config.columns(count) | {
        "position": positions,
        "feature": noise(9, count, DIM),
        "mass": torch.ones(count),
        "count": torch.ones(count, dtype=torch.int32),
    }
    return made


def wall(number: int, change: float, apart: float) -> dict[str, Any]:
    """A wall whose looks all change together from write to write, and each by its own noise."""
    look = noise(0, 1, DIM) + change * noise(number + 1, 1, DIM)
    look = look + apart * noise(1000 + number, len(GRID), DIM)
    return {"tokens": look, "time": 0.1 * number, "positions": GRID, "motion": torch.zeros(100)}


def watched(change: float, apart: float, writes: int = 40, **rules: Any) -> StaticDynamicMemory:
    memory = StaticDynamicMemory(BUDGET, StaticDynamicConfig(DIM, **{"voxel": 0.4} | rules))
    for number in range(writes):
        memory.write(**wall(number, change, apart))
        assert memory.nbytes <= BUDGET
        assert int(memory.read().weights.sum()) == 100 * (number + 1)
    return memory


@pytest.mark.parametrize("voxel", [0.01, 0.08, 0.5, 3.0])
@pytest.mark.parametrize("shift", [0.0, -5.0, 5000.0])
def test_the_nearest_row_is_the_nearest(voxel: float, shift: float) -> None:
    rows, asked = 2 * noise(1, 300, 3).double(), 2 * noise(2, 200, 3).double()
    held = store((rows + shift).float(), voxel)
    asked = (asked + shift).float()
    position = held.held["position"]
    for places, other in ((asked, False), (position, True)):
        away = (places[:, None] - position).norm(dim=2)
        if other:
            away.fill_diagonal_(torch.inf)
        least, best = away.min(1)
        row, near = held.nearest(places, other=other)
        within = least <= voxel
        assert torch.equal(row >= 0, within) and torch.equal(row[within], best[within])
        assert torch.equal(near[within], least[within])
    assert held.nearest(torch.zeros(0, 3))[0].shape == (0,)
    assert store(torch.zeros(0, 3)).nearest(asked)[0].unique().tolist() == [-1]


def test_the_nearest_at_the_end_of_the_world() -> None:
    edge = 0.08 * (2**20 - 1)
    ends = torch.cartesian_prod(*[torch.tensor([-edge, edge])] * 3)
    row, _ = store(ends).nearest(ends)
    assert row.tolist() == list(range(8))


def test_the_closest_pair_becomes_one_and_no_room_is_left_over() -> None:
    held = store(torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [0.0, 0.02, 0], [0.3, 0, 0]]))
    assert held.shrink(3) == 0
    assert sorted(held.held["position"][:, 1].tolist()) == pytest.approx([0, 0, 0.01])
    assert held.held["mass"].sort().values.tolist() == [1, 1, 2] and held.grown == 0
    two = store(torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [1.0, 0, 0], [1.02, 0, 0]]))
    two.shrink(3)
    assert sorted(two.held["position"][:, 0].tolist()) == pytest.approx([0, 0.05, 1.01])
    for most in (250, 101, 7, 1):
        many = store(3 * noise(3, 300, 3))
        assert many.shrink(most) == 0 and len(many) == most
    # On a lattice all are equally near.
    lattice = store(0.05 * torch.cartesian_prod(*[torch.arange(6.0)] * 3))
    assert lattice.shrink(40) == 0 and len(lattice) == 40


def test_a_token_joins_the_nearest_row_though_a_grid_would_part_them() -> None:
    memory = StaticDynamicMemory(BUDGET, StaticDynamicConfig(DIM))
    for number, x in enumerate((0.079, 0.081, 0.16, 0.30)):
        memory.write(noise(number, 1, DIM), 0.1 * number, positions=torch.tensor([[x, 0.0, 0.0]]))
    assert memory.read().weights.tolist() == [3, 1]


@pytest.mark.parametrize(("change", "apart"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3)])
def test_the_correlation_is_the_share_of_the_change(change: float, apart: float) -> None:
    # Over minutes, as writes are what it is averaged over.
    memory = StaticDynamicMemory(BUDGET, StaticDynamicConfig(DIM, voxel=0.4))
    found = []
    for number in range(400):
        memory.write(**wall(number, change, apart))
        found.append(memory._window.correlation)
    expected = change**2 / (change**2 + apart**2)
    assert float(np.mean(found[100:])) == pytest.approx(expected, abs=0.05)


def test_the_window_is_empty_where_looks_differ_by_noise_alone() -> None:
    memory = watched(0.0, 1.0)
    assert abs(memory._window.correlation) < 0.02 and len(memory._window) <= 10
    told = memory.fuse(positions=GRID)
    assert float((told - noise(0, 1, DIM)).square().mean()) < 0.25  # of 1, that of a look
    still = watched(0.0, 0.0)
    assert not len(still._window)


def test_the_last_look_is_told_where_looks_change() -> None:
    memory = watched(1.0, 0.3)
    last = wall(39, 1.0, 0.0)["tokens"]
    told = memory.fuse(positions=GRID)
    assert float((told - last).square().mean()) < 0.1  # of 1, that of the change
    assert 50 <= len(memory._window) <= 100
    # What was replaced is in the means, and told where the window does not see.
    means = memory._static.held
    assert int(means["count"].sum()) == 4000 - len(memory._window)
    away = memory.fuse(positions=GRID + torch.tensor([0.0, 0.0, 9.0]))
    assert float((away - noise(0, 1, DIM)).square().mean()) < 0.25


def test_a_new_look_takes_the_place_of_those_near_it_and_the_oldest_go_first() -> None:
    memory = watched(1.0, 0.3, voxel=0.1)
    window = memory._window
    config = memory.config
    window.held = config.columns(0)

    def looks(x: list[float], time: float) -> dict[str, Tensor]:
        place = torch.tensor([[one, 0.0, 0.0] for one in x])
        return config.columns(len(x)) | {
            "position": place, "time": torch.full((len(x),), time, dtype=torch.float64)
        }  # fmt: skip

    assert not len(window.renew(looks([0.0, 1.0, 2.0], 1.0), 4)["time"])
    gone = window.renew(looks([1.12], 2.0), 4)
    assert gone["position"][:, 0].tolist() == [1.0]
    assert not len(window.renew(looks([0.13], 3.0), 4)["time"])
    gone = window.renew(looks([5.0, 6.0], 4.0), 4)
    assert gone["position"][:, 0].tolist() == [0.0, 2.0]
    assert window.held["time"].tolist() == [2.0, 3.0, 4.0, 4.0]
    assert len(window.renew(looks([], 5.0), 1)["time"]) == 3


def test_the_window_has_room_for_two_writes_and_never_for_all() -> None:
    window = watched(1.0, 0.3)._window
    assert window.room(10_000, 100) == 200 and window.room(100, 100) == 60
    assert window.room(0, 100) == window.room(100, 0) == 0


def test_means_and_window_share_a_budget_that_is_full() -> None:
    """Along a corridor of walls, each looked at for a while: more cells than there is room for."""
    budget = 14_000
    memory = StaticDynamicMemory(budget, StaticDynamicConfig(DIM, voxel=0.4))
    rows, looks = [], []
    for number in range(120):
        given = wall(number, 1.0, 0.3)
        given["positions"] = GRID + torch.tensor([1.5 * (number // 8), 0.0, 0.0])
        memory.write(**given)
        assert memory.nbytes <= budget
        rows.append(len(memory._static) + len(memory._window))
        looks.append(len(memory._window))
    room = (budget - budget // 5) // memory.config.row_bytes
    assert min(rows[60:]) > 0.75 * room and min(looks[60:]) > 10
    assert int(memory.read().weights.sum()) == 12_000


def test_a_look_that_is_seen_through_is_gone_at_once() -> None:
    memory = watched(1.0, 0.3)
    assert len(memory._window) > 20
    matrix = np.array([[20.0, 0, 40], [0, 20.0, 40], [0, 0, 1]])
    elsewhere = {"positions": torch.full((1, 3), 30.0), "motion": torch.zeros(1)}
    for depth, gone in ((1.0, 0), (5.0, len(memory._window))):
        view = View(np.full((80, 80), depth), matrix, np.eye(4))
        again = watched(1.0, 0.3)
        assert again.write(noise(5, 1, DIM), 4.0, view=view, **elsewhere).dropped == gone
        assert int(again.read().weights.sum()) == 4001 - gone


def test_a_window_is_saved_and_read_as_it_was_and_in_any_order_of_tokens() -> None:
    whole, before = watched(1.0, 0.3, 60), watched(1.0, 0.3, 31)
    after = StaticDynamicMemory(BUDGET, before.config)
    after.load_state_dict({name: c.clone() for name, c in before.state_dict().items()})
    snapshot = before.snapshot()
    told = snapshot.fuse(positions=GRID)
    for number in range(31, 60):
        given = wall(number, 1.0, 0.3)
        turn = torch.randperm(100, generator=torch.Generator().manual_seed(number))
        mixed = {k: v[turn] if isinstance(v, Tensor) else v for k, v in given.items()}
        after.write(**mixed)
        before.write(**given)
    assert len(whole._window) > 20
    states = [memory.state_dict() for memory in (whole, before, after)]
    for name, column in states[0].items():
        assert torch.equal(column, states[1][name]) and torch.equal(column, states[2][name]), name
    assert torch.equal(told, snapshot.fuse(positions=GRID))
    with pytest.raises(ValueError, match=r"window\.time"):
        after.load_state_dict(states[0] | {"window.time": torch.zeros(3)})
    kv = whole.kv(6.0)
    assert len(kv.keys) == len(whole._static) + len(whole._window) and not kv.dynamic.any()
    assert not kv.bias[len(whole._static) :].any()


@pytest.mark.parametrize("axes", [2, 0])
def test_without_a_world_there_is_no_window(axes: int) -> None:
    memory = StaticDynamicMemory(BUDGET, StaticDynamicConfig(DIM, axes=axes, noise=0.3))
    for number in range(20):
        given = wall(number, 1.0, 0.3)
        del given["positions"]
        if axes:
            given["positions"] = GRID[:, :2]
        memory.write(**given)
    assert not len(memory._window)
