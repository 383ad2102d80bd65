from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.spatial import SpatialConfig, SpatialMemory, View
from vismem.memory.views import Policy, place_of, signature_of

PLENTY = 10**9


def camera(x: float = 0.0, y: float = 0.0, heading: float = 0.0) -> Tensor:
    """A camera one metre up that looks along a heading in degrees, level."""
    turn = math.radians(heading)
    ahead = [math.cos(turn), math.sin(turn), 0.0]
    right = [ahead[1], -ahead[0], 0.0]
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], ahead], dtype=torch.float64).T
    pose[:3, 3] = torch.tensor([x, y, 1.0])
    return pose


class SpatialContract(MemoryContract):
    small = 6_000
    large = PLENTY
    max_tokens = 4
    axes = 3
    policy: ClassVar[Policy]

    def config(self, **changes: Any) -> SpatialConfig:
        sizes: dict[str, Any] = dict(token_dim=6, max_tokens=4, pointer_dim=3, policy=self.policy)
        return SpatialConfig(**sizes | changes)

    def make(self, budget: int) -> SpatialMemory:
        return SpatialMemory(budget, self.config())

    def make_other(self, budget: int) -> SpatialMemory:
        return SpatialMemory(budget, self.config(place=0.25))

    def observation(self, number: int, seed: int = 0) -> Observation:
        noise = torch.Generator().manual_seed(1000 * seed + number)
        scene = torch.eye(6)[(number // 5 + seed) % 6]
        given: Observation = {
            "tokens": scene + 0.2 * torch.randn(2, 6, generator=noise),
            "time": 100.0 + number * 0.4,
            "prompted": number % 43 == 7,
            "objects": [number // 30 % 11, number % 3],
        }
        if number % 3:
            given["pose"] = camera(0.2 * (number // 4 % 9), heading=20.0 * (number % 4))
            given["intrinsics"] = torch.eye(3) * (1 + number)
        if number % 2:
            given["positions"] = torch.randn(2, 3, generator=noise).double()
            given["positions"][number // 2 % 2] = torch.nan
            given["pointer"] = torch.randn(3, generator=noise)
        return given

    def query(self) -> Tensor:
        return torch.linspace(-1, 1, 24)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "pose: NaN": good | {"pose": torch.eye(4) * torch.nan},
            "pose: three rows": good | {"pose": torch.eye(4)[:3]},
            "pose: mirrored": good | {"pose": torch.diag(torch.tensor([1.0, 1, -1, 1]))},
            "pose: of another scale": good | {"pose": torch.eye(4) * 2},
            "intrinsics: infinity": good | {"intrinsics": torch.full((3, 3), torch.inf)},
            "intrinsics: four rows": good | {"intrinsics": torch.eye(4)},
            "positions: infinity": good | {"positions": torch.full((2, 3), torch.inf)},
            "positions: in the picture": good | {"positions": torch.zeros(2, 2)},
            "positions: too few": good | {"positions": torch.zeros(1, 3)},
            "grid: another number": good | {"grid": (2, 2)},
            "grid: negative": good | {"grid": (-1, -2)},
            "pointer: too wide": good | {"pointer": torch.zeros(4)},
            "pointer: NaN": good | {"pointer": torch.full((3,), torch.nan)},
            "pointer: beyond float32": good
            | {"pointer": torch.full((3,), 1e300, dtype=torch.float64)},
            "signature: where it is made of tokens": good | {"signature": torch.zeros(24)},
        }


class TestNovelty(SpatialContract):
    policy = "novelty"


class TestPlace(SpatialContract):
    policy = "place"


class TestFifo(SpatialContract):
    policy = "fifo"


class TestFirstLast(SpatialContract):
    policy = "first_last"


class TestStride(SpatialContract):
    policy = "stride"


class TestReservoir(SpatialContract):
    policy = "reservoir"

    def test_another_seed_draws_another_sample(self) -> None:
        kept = []
        for seed in range(2):
            memory = SpatialMemory(self.small, self.config(seed=seed))
            kept.append(sources(self.write(memory, range(200))))  # type: ignore[arg-type]
        assert kept[0] != kept[1]


class TestLast(SpatialContract):
    policy = "last"
    cannot: ClassVar[Mapping[str, str]] = dict.fromkeys(
        [
            "test_the_small_budget_is_really_small",
            "test_weights_sum_to_the_writes_where_all_fit",
            "test_fifty_thousand_writes_keep_bytes_and_cost_flat",
        ],
        "it holds one view, whatever the budget",
    )


# --------------------------------------------------------------------------- building streams


def bank(policy: Policy = "novelty", views: int | None = None, **sizes: Any) -> SpatialMemory:
    """Views are told apart by one number, which the signature holds."""
    config = dict(token_dim=1, max_tokens=4, signature_dim=1, policy=policy, max_views=views)
    return SpatialMemory(PLENTY, SpatialConfig(**config | {"novelty": 0.125} | sizes))


def write(memory: SpatialMemory, look: float, time: float, **context: Any) -> Any:
    signature = torch.tensor([look])
    return memory.write(torch.ones(1, 1), time, signature=signature, **context)


def sources(memory: SpatialMemory) -> list[int]:
    return [view.source for view in memory.snapshot().views()]


def only_witnesses(views: list[View]) -> set[int]:
    """By counting, view by view: who alone shows a place or an object."""
    shown = Counter(o for view in views for o in view.objects)
    shown.update(Counter(view.place for view in views if view.place))
    return {
        view.source
        for view in views
        if shown[view.place] == 1 or any(shown[o] == 1 for o in view.objects)
    }


# --------------------------------------------------------------------------- the rules


def test_a_view_that_is_no_news_is_noted_on_the_nearest() -> None:
    memory = bank()
    for time, look in enumerate([0.0, 1.0, 0.9375, 0.125, 0.13]):
        write(memory, look, float(time))
    held = [(v.source, v.time, v.seen, v.weight) for v in memory.snapshot().views()]
    # 0.125 is up to the threshold, and no news; 0.13 is beyond it.
    assert held == [(0, 0.0, 3.0, 2), (1, 1.0, 2.0, 2), (4, 4.0, 4.0, 1)]


def test_what_a_report_tells() -> None:
    memory = bank(views=2)
    told = [write(memory, look, float(t)) for t, look in enumerate([0.0, 1.0, 1.05, 5.0, 5.0])]
    assert [(r.boundary, r.merged, r.dropped) for r in told] == [
        (True, 0, 0),
        (True, 0, 0),
        (False, 1, 0),
        (True, 0, 1),
        (False, 1, 0),
    ]
    assert memory.set_budget(0).dropped == 2 and memory.nbytes == 0


def test_prompts_new_places_and_new_objects_are_news_though_alike() -> None:
    memory = bank()
    assert write(memory, 0.0, 0.0, pose=camera()).boundary
    assert not write(memory, 0.0, 1.0, pose=camera()).boundary
    assert write(memory, 0.0, 2.0, pose=camera(), prompted=True).boundary
    assert write(memory, 0.0, 3.0, pose=camera(x=0.7)).boundary
    assert write(memory, 0.0, 4.0, pose=camera(heading=90)).boundary
    assert not write(memory, 0.0, 5.0, pose=camera(heading=85)).boundary
    assert write(memory, 0.0, 6.0, objects=[3]).boundary
    assert not write(memory, 0.0, 7.0, objects=[3]).boundary
    assert write(memory, 0.0, 8.0, objects=[3, 4]).boundary


def test_a_place_that_looks_like_another_is_seen_again_itself() -> None:
    memory = bank()
    for time, (look, x) in enumerate([(0.0, 0.0), (0.1, 1.0), (0.0, 0.0), (0.0, 1.0), (0.0, 1.0)]):
        write(memory, look, float(time), pose=camera(x=x))
    assert [(v.seen, v.weight) for v in memory.snapshot().views()] == [(2.0, 2), (4.0, 3)]


def test_the_older_of_the_closest_pair_goes() -> None:
    memory = bank(views=3)
    for time, look in enumerate([0.0, 5.0, 9.0, 5.5]):
        write(memory, look, float(time))
    assert sources(memory) == [0, 2, 3]


def test_pairs_within_a_place_go_first() -> None:
    memory = bank(views=3, novelty=0.0)
    for time, (look, x) in enumerate([(0.0, 0.0), (0.1, 2.0), (7.0, 2.0), (9.0, 0.0)]):
        write(memory, look, float(time), pose=camera(x=x))
    assert sources(memory) == [0, 2, 3]  # 7 apart in one place, though 0.1 apart across


def test_the_other_of_the_closest_pair_goes_where_the_older_is_protected() -> None:
    for context in ({"prompted": True}, {"objects": [1]}):
        memory = bank(views=3)
        write(memory, 0.0, 0.0, **context)
        for time, look in enumerate([5.0, 9.0, 0.5], 1):
            write(memory, look, float(time))
        assert sources(memory) == [0, 1, 2]


def test_witnesses_go_before_prompted_views_where_all_are_protected() -> None:
    memory = bank(views=2)
    write(memory, 0.0, 0.0, prompted=True)
    write(memory, 4.0, 1.0, objects=[1])
    write(memory, 1.0, 2.0, prompted=True)
    assert sources(memory) == [0, 2]
    write(memory, 8.0, 3.0, prompted=True)  # the budget wins
    assert sources(memory) == [2, 3]


def test_every_place_keeps_its_share() -> None:
    memory = bank("place", views=6)
    looks = iter(range(1000))
    for step in range(60):  # a long stay, two short ones
        x = {20: 2.0, 21: 2.0, 40: 4.0, 41: 4.0}.get(step, 0.0)
        write(memory, float(next(looks)), float(step), pose=camera(x=x))
    where = Counter(view.place for view in memory.snapshot().views())
    assert sorted(where.values()) == [2, 2, 2]


def test_news_is_news_of_its_place_under_the_place_policy() -> None:
    memory = bank("place")
    for time, (look, x) in enumerate([(0.0, 0.0), (1.0, 2.0), (1.0, 0.0), (1.0, 0.0)]):
        write(memory, look, float(time), pose=camera(x=x))
    assert sources(memory) == [0, 1, 2]


PUBLISHED: dict[Policy, list[int]] = {
    "fifo": [2, 17, 18, 19],
    "first_last": [0, 2, 18, 19],
    "stride": [0, 2, 8, 16],
    "last": [19],
}


@pytest.mark.parametrize("policy", PUBLISHED)
def test_what_published_windows_hold(policy: Policy) -> None:
    memory = bank(policy, views=4)
    for number in range(20):
        write(memory, 0.0, float(number), prompted=number == 2)
    assert sources(memory) == PUBLISHED[policy]


def test_a_stride_doubles_and_stays_even() -> None:
    memory = bank("stride", views=8)
    for number in range(129):
        write(memory, 0.0, float(number))
    assert sources(memory) == [0, 32, 48, 64, 80, 96, 112, 128]
    for number in range(129, 225):
        write(memory, 0.0, float(number))
    assert sources(memory) == list(range(0, 225, 32))


def test_a_reservoir_is_a_uniform_sample() -> None:
    counts: Counter[int] = Counter()
    for seed in range(200):
        memory = bank("reservoir", views=4, seed=seed)
        for number in range(40):
            write(memory, 0.0, float(number))
        counts.update(source // 10 for source in sources(memory))
    assert all(160 < counts[quarter] < 240 for quarter in range(4))  # 200 each; 3.3 deviations


steps = st.tuples(
    st.integers(0, 30),  # look
    st.sampled_from([None, 0.0, 1.0, 2.0, 3.0]),  # place
    st.lists(st.integers(0, 4), max_size=2),  # objects
    st.integers(0, 9),  # prompted at 0
)


@settings(max_examples=150, derandomize=True)
@given(
    st.lists(steps, min_size=8, max_size=60),
    st.integers(1, 6),
    st.sampled_from(["novelty", "place"]),
)
def test_no_only_witness_goes_while_another_could(
    stream: list[Any], most: int, policy: Policy
) -> None:
    memory = bank(policy, views=most, novelty=1.5)
    for time, (look, x, objects, lot) in enumerate(stream):
        before = list(memory.snapshot().views())
        context: dict[str, Any] = {"objects": objects, "prompted": lot == 0}
        if x is not None:
            context["pose"] = camera(x=x)
        report = write(memory, float(look), float(time), **context)
        after = {view.source for view in memory.snapshot().views()}
        assert len(after) <= most and report.dropped == len(before) + (1 - report.merged) - len(
            after
        )
        if not report.dropped or len(before) < most:
            continue
        spare = bank(policy)
        write(spare, float(look), float(time), **context)
        (new,) = spare.snapshot().views()
        # The new view as it was when there was one too many; its number is the write's.
        held = [*before, View(**{n: getattr(new, n) for n in View.__slots__} | {"source": time})]
        alone = only_witnesses(held)
        (gone,) = {view.source for view in held} - after
        free = {v.source for v in held if v.source not in alone and not v.prompted}
        unprompted = {v.source for v in held if not v.prompted}
        assert gone in (free or unprompted or {view.source for view in held})


@settings(max_examples=100, derandomize=True)
@given(st.lists(steps, min_size=8, max_size=60), st.integers(2, 6))
def test_the_incremental_bank_is_the_plain_rule(stream: list[Any], most: int) -> None:
    """Against all pairs, looked at anew for every write."""
    memory = bank(views=most, novelty=1.5)
    held: list[dict[str, Any]] = []
    for time, (look, x, _, lot) in enumerate(stream):
        pose = None if x is None else camera(x=x)
        write(memory, float(look), float(time), pose=pose, prompted=lot == 0)
        known = x is None or any(v["x"] == x for v in held)
        if lot and known and any(abs(v["look"] - look) <= 1.5 for v in held):
            continue
        held.append({"look": look, "x": x, "number": time, "prompted": lot == 0})
        if len(held) > most:
            alone = {
                v["number"]
                for v in held
                if v["x"] is not None and sum(w["x"] == v["x"] for w in held) == 1
            }

            def worth(v: dict[str, Any], alone: set[int] = alone) -> tuple[Any, ...]:
                protected = 2 * v["prompted"] + (v["number"] in alone)
                pairs = [(w["x"] != v["x"], abs(w["look"] - v["look"])) for w in held if w is not v]
                return protected, min(pairs), v["number"]

            held.remove(min(held, key=worth))
        assert sources(memory) == [v["number"] for v in held]


# --------------------------------------------------------------------------- reading


def test_a_view_is_given_back_as_it_was_written() -> None:
    memory = SpatialMemory(
        PLENTY, SpatialConfig(token_dim=2, max_tokens=6, pointer_dim=2, dtype="bfloat16")
    )
    tokens, points = torch.arange(12.0).reshape(6, 2), torch.arange(18.0).reshape(6, 3)
    memory.write(
        tokens,
        3.5,
        grid=(2, 3),
        pose=camera(1.2, heading=90),
        intrinsics=torch.eye(3) * 2,
        positions=points,
        pointer=torch.tensor([1.5, -2.0]),
        prompted=True,
        objects=[4, 2, 4],
    )
    memory.write(tokens[:4] * -1, 4.0)
    first, second = memory.snapshot().views()
    assert first.tokens.dtype == torch.bfloat16 and torch.equal(first.tokens.float(), tokens)
    assert (first.time, first.source, first.grid, first.prompted) == (3.5, 0, (2, 3), True)
    assert first.positions is not None and torch.equal(first.positions, points)
    assert first.pose is not None and torch.equal(first.pose, camera(1.2, heading=90))
    assert first.intrinsics is not None and torch.equal(first.intrinsics, torch.eye(3).double() * 2)
    assert first.pointer is not None and first.pointer.tolist() == [1.5, -2.0]
    assert first.place == (2, 0, 2, 2) and first.objects == (2, 4)
    assert torch.equal(first.signature, signature_of(tokens, (2, 3), 2))
    assert (second.grid, second.pose, second.place, second.pointer) == ((1, 4), None, None, None)
    assert second.positions is None and second.objects == () and not second.prompted


@pytest.mark.parametrize("dtype, size", [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_bytes_are_those_of_all_that_is_held(dtype: Any, size: int) -> None:
    config = SpatialConfig(token_dim=3, max_tokens=5, dtype=dtype)
    memory = SpatialMemory(PLENTY, config)
    memory.write(torch.ones(5, 3), 0.0, positions=torch.ones(5, 3), objects=[1, 2])
    memory.write(torch.zeros(4, 3), 1.0)
    assert memory.nbytes == 2 * (config.row.itemsize + 12 * 4) + 9 * 3 * size + 5 * 3 * 4 + 2 * 8
    again = SpatialMemory(PLENTY, config)
    again.load_state_dict(copied(memory.state_dict()))
    assert again.snapshot().views()[0].tokens.dtype == getattr(torch, dtype)
    wide = [{n: v.double() for n, v in m.state_dict().items()} for m in (again, memory)]
    assert same(*wide)  # numpy has no bfloat16


def test_a_state_over_the_budget_is_refused() -> None:
    memory = bank()
    for number in range(9):
        write(memory, float(number), float(number))
    tight = bank()
    tight.set_budget(memory.nbytes - 1)
    with pytest.raises(ValueError, match="over the budget"):
        tight.load_state_dict(memory.state_dict())


def test_a_view_larger_than_the_budget_costs_no_other() -> None:
    memory = SpatialMemory(2_000, SpatialConfig(token_dim=8, max_tokens=200))
    memory.write(torch.ones(1, 8), 0.0, prompted=True)
    report = memory.write(-torch.ones(200, 8), 1.0, prompted=True)
    assert (report.boundary, report.dropped) == (False, 1) and sources(memory) == [0]


def located() -> SpatialMemory:
    """Tokens 1, 2 and 3 metres before three cameras in a row that look along x."""
    memory = bank(novelty=0.0)
    for number in range(3):
        points = torch.tensor([[1.0 + d, float(number), 1.0] for d in range(3)])
        points[2] = torch.nan if number == 2 else points[2]
        write_many = torch.tensor([[10.0 * number + d] for d in range(3)])
        memory.write(
            write_many, float(number), signature=torch.tensor([float(number)]), positions=points,
            pose=camera(y=float(number)),
        )  # fmt: skip
    memory.write(torch.full((2, 1), 99.0), 3.0, signature=torch.tensor([3.0]))
    return memory


def values(memory: SpatialMemory, query: Tensor | None = None, **context: Any) -> list[float]:
    return memory.read(query, **context).tokens[:, 0].tolist()


def test_a_read_finds_what_is_near() -> None:
    memory = located()
    assert values(memory, near=((2.0, 0.0, 1.0), 1.0)) == [0, 1, 2, 11]
    assert values(memory, near=((2.0, 0.0, 1.0), 0.99)) == [1]
    assert values(memory, near=((50.0, 0.0, 1.0), 3.0)) == []
    recall = memory.read(near=((3.0, 2.0, 1.0), 1.1))
    assert recall.tokens[:, 0].tolist() == [12, 21] and recall.times.tolist() == [1.0, 2.0]
    assert recall.positions is not None
    assert recall.positions.tolist() == [[3, 1, 1], [2, 2, 1]]


def test_a_read_finds_what_a_camera_would_see() -> None:
    memory = located()
    # 90 degrees wide: at a distance of d it sees d to either side.
    narrow = np.array([[10.0, 0, 9.5], [0, 10, 9.5], [0, 0, 1]]), (20, 20)
    assert values(memory, sees=(camera(x=0.5), *narrow)) == [0, 1, 2, 11, 12]
    assert values(memory, sees=(camera(x=1.5), *narrow)) == [1, 2, 12]
    assert values(memory, sees=(camera(x=0.5, heading=180), *narrow)) == []
    assert values(memory, sees=(camera(x=0.5), narrow[0], (9, 20))) == [11, 12]
    with pytest.raises(ValueError, match="rigid"):
        memory.read(sees=(torch.zeros(4, 4), *narrow))


def test_a_read_takes_the_views_that_fit_best() -> None:
    memory = located()
    recall = memory.read(torch.tensor([1.2]), views=2)
    assert recall.sources.tolist() == [1, 1, 1, 2, 2, 2]
    assert recall.scores.tolist() == pytest.approx([-0.2] * 3 + [-0.8] * 3)
    assert values(memory, views=1) == [99, 99]
    # The best view of those of which something is near, not of all.
    assert values(memory, torch.tensor([0.0]), views=1, near=((1, 2, 1), 0.1)) == [20]
    assert values(memory, torch.tensor([1.2]), tokens=5) == [10, 11, 12]
    assert memory.read(views=1).positions is None
    everything = memory.read().positions
    assert everything is not None and everything[8:].isnan().all()
    with pytest.raises(ValueError, match="query"):
        memory.read(torch.zeros(2))


# --------------------------------------------------------------------------- places and signatures


def test_places_are_cells_and_sectors() -> None:
    def sector(heading: float) -> int:
        return place_of(camera(heading=heading).numpy(), 0.5)[3]

    assert [sector(45.0 * turn) for turn in range(8)] == list(range(8))
    assert {sector(d) for d in np.arange(-22.0, 22.5)} == {0} and sector(-23) == 7
    assert place_of(camera(-0.1, 0.9).numpy(), 0.5)[:3] == (-1, 1, 2)
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    up = np.eye(4)
    assert (place_of(down, 1.0)[3], place_of(up, 1.0)[3]) == (9, 8)


def test_a_signature_of_tokens_has_no_scale_and_knows_where() -> None:
    tokens = torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    one = signature_of(tokens, (4, 4), 2)
    assert one.shape == (12,) and float(one.square().mean()) == pytest.approx(1.0)
    torch.testing.assert_close(signature_of(7 * tokens, (4, 4), 2), one)
    swapped = tokens.reshape(2, 8, 3).flip(0).reshape(16, 3)
    assert (signature_of(swapped, (4, 4), 2) - one).abs().mean() > 0.05
    assert signature_of(tokens, (1, 16), 4).shape == (48,)
    assert not signature_of(torch.zeros(1, 3), (1, 1), 1).any()


def test_light_that_drifts_is_no_news_where_the_signature_is_divided_by_its_mean() -> None:
    scene = torch.rand(64, generator=torch.Generator().manual_seed(0))
    counts = []
    for divide in (False, True):
        memory = bank(signature_dim=64, novelty=0.012)
        for step in range(100):
            look = scene * (1.0 + 0.01 * step)
            look = look / look.mean() if divide else look
            memory.write(torch.ones(1, 1), float(step), signature=look)
        counts.append(len(memory))
    assert counts[0] > 10 and counts[1] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "best"},
        {"dtype": "float64"},
        {"token_dim": 0},
        {"max_tokens": 0},
        {"pointer_dim": -1},
        {"novelty": -0.1},
        {"novelty": math.nan},
        {"place": 0.0},
        {"place": math.inf},
        {"max_views": -1},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SpatialConfig(**{"token_dim": 4, "max_tokens": 4} | wrong)


def test_a_signature_is_asked_for_where_the_config_has_one() -> None:
    with pytest.raises(ValueError, match="needs a signature"):
        bank().write(torch.ones(1, 1), 0.0)
    with pytest.raises(ValueError, match="signature"):
        bank().write(torch.ones(1, 1), 0.0, signature=torch.tensor([torch.nan]))


def test_a_snapshot_does_not_see_what_is_seen_again() -> None:
    memory = bank()
    write(memory, 0.0, 0.0)
    before = memory.snapshot()
    write(memory, 0.0, 5.0)
    assert [(view.seen, view.weight) for view in before.views()] == [(0.0, 1)]
    assert [(view.seen, view.weight) for view in memory.snapshot().views()] == [(5.0, 2)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tokens_are_copied_whatever_they_are_stored_as(dtype: Any) -> None:
    memory = SpatialMemory(PLENTY, SpatialConfig(token_dim=2, max_tokens=3, dtype=dtype))
    tokens = torch.ones(3, 2, dtype=getattr(torch, dtype))
    points = torch.ones(3, 3)
    memory.write(tokens, 0.0, positions=points)
    tokens.zero_(), points.zero_()
    (view,) = memory.snapshot().views()
    assert view.tokens.all() and view.positions is not None and view.positions.all()
