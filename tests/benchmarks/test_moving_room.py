"""The room is what it says, and what is measured of a memory in it is so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving_room.codes import patch_tokens
from moving_room.policies import (
    BASELINES,
    OURS,
    Coarsening,
    Dual,
    Fifo,
    InfiniteVGGTRule,
    LeastRecent,
    Point3RRule,
    Reservoir,
    Spann3RRule,
    ThisFrame,
    WindowedDual,
)
from moving_room.rows import REACH, Held, look, merge
from moving_room.scene import MovingRoom

from vismem.geometry import transform, unproject

POLICIES = pytest.mark.parametrize("name", [*BASELINES, *OURS])
STILL, MOVES = torch.zeros(1), torch.ones(1)


def rows(*places: float, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and positions of rows along the first axis; a feature tells its row."""
    x = torch.tensor(places)
    features = torch.stack([x, torch.ones_like(x), *[torch.zeros_like(x)] * (width - 2)], 1)
    return features, torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1)


def write(policy, *places: float, time: float = 0.0, motion: float = 0.0) -> None:
    features, positions = rows(*places)
    policy.write(features, positions, time, torch.full((len(places),), motion), None)


def places(held: Held) -> list[float]:
    return [round(x, 4) for x in held.positions[:, 0].tolist()]


def random_stream(seed: int, frames: int = 12):
    draws = torch.Generator().manual_seed(seed)
    for number in range(frames):
        count = int(torch.randint(1, 31, (), generator=draws))
        features = torch.randn(count, 6, generator=draws)
        positions = 4 * torch.rand(count, 3, generator=draws) - 2
        yield features, positions, 0.1 * number, torch.rand(count, generator=draws)


# ------------------------------------------------------------------ the room


def test_surfaces_lie_where_the_room_says() -> None:
    room = MovingRoom(3, size=(64, 48), sensor_noise=False)
    for number in (0, 150):
        shot = room.frame(number)
        points = transform(unproject(shot.true_depth, room.intrinsics), shot.true_pose)
        points, instance = points.reshape(-1, 3), shot.instance.ravel()
        movers = instance > 9
        assert 0 < movers.sum() < len(movers)
        time = shot.frame.timestamp
        assert room.static_distance(points[~movers]).max() < 1e-4
        assert room.mover_distance(points[movers], time).max() < 1e-4
        own = np.concatenate([shot.local.reshape(-1, 3), np.ones((len(points), 1))], 1)
        for n in np.unique(instance):
            placed = own[instance == n] @ room.pose_of(n, time).T
            assert np.abs(placed[:, :3] - points[instance == n]).max() < 1e-4
            assert (shot.moving.ravel()[instance == n] == room.is_moving(n, time)).all()


def test_a_frame_is_the_same_each_time_and_of_its_seed() -> None:
    one, again, other = (MovingRoom(s, size=(64, 48)).frame(7).frame for s in (1, 1, 2))
    assert np.array_equal(one.depth, again.depth) and np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image, other.image)


def test_codes_ride_with_what_they_are_of() -> None:
    room = MovingRoom(0)
    then, now = (patch_tokens(room.frame(n), noise=0.0) for n in (40, 41))
    away = torch.cdist(torch.from_numpy(then.positions), torch.from_numpy(now.positions))
    near = away.min(1)
    alike = torch.cosine_similarity(
        torch.from_numpy(then.features), torch.from_numpy(now.features)[near.indices], dim=1
    )
    still = torch.from_numpy(~then.moving) & (near.values < 0.02)
    assert still.sum() > 50 and alike[still].median() > 0.98
    shares = [patch_tokens(room.frame(n)).hidden.mean() for n in range(8)]
    assert np.mean(shares) == pytest.approx(0.35, abs=0.03)
    assert 0.05 < then.moving.mean() < 0.4


# ------------------------------------------------------------------ rows


@given(st.integers(0, 99), st.sampled_from([0.2, 0.9]), st.booleans())
def test_merged_rows_are_the_means_of_their_cubes(seed: int, side: float, classes: bool) -> None:
    draws = torch.Generator().manual_seed(seed)
    features, positions, time, motion = next(iter(random_stream(seed)))
    counts = torch.randint(1, 5, (len(features),), generator=draws).float()
    times = torch.rand(len(features), generator=draws)
    found = merge(Held(features, positions, times, motion, counts), side, by_class=classes)
    cubes: dict[tuple, list[int]] = {}
    for n, cell in enumerate((positions / side).floor().tolist()):
        cubes.setdefault((*cell, bool(motion[n] > 0.5) and classes), []).append(n)
    assert len(found) == len(cubes) and float(found.counts.sum()) == float(counts.sum())
    for members in cubes.values():
        weight = counts[members] / counts[members].sum()
        mean = weight @ positions[members]
        n = int((found.positions - mean).norm(dim=1).argmin())
        assert torch.allclose(found.positions[n], mean, atol=1e-5)
        assert torch.allclose(found.features[n], weight @ features[members], atol=1e-5)
        assert float(found.motion[n]) == pytest.approx(float(weight @ motion[members]), abs=1e-5)
        assert float(found.times[n]) == float(times[members].max())


def test_a_look_weighs_the_eight_nearest_by_their_distance() -> None:
    features, positions = rows(*[0.02 * n for n in range(12)])
    held = Held.seen(features, positions, 0.0, torch.zeros(12))
    answer, away, attention = look(held, positions[:1])
    weight = torch.exp(-((positions[:8, 0] / REACH) ** 2))
    assert torch.allclose(answer[0], weight @ features[:8] / weight.sum(), atol=1e-6)
    assert float(away) == 0.0 and float(attention.sum()) == pytest.approx(1.0)
    assert float(attention[8:].sum()) == 0.0
    bias = torch.where(torch.arange(12) == 11, 1e3, 0.0)  # what is favoured is looked at alone
    assert torch.allclose(look(held, positions[:1], bias=bias)[0], features[11:])
    assert torch.allclose(Held.of(held.table()).features, features)


# ------------------------------------------------------------------ policies


@POLICIES
@pytest.mark.parametrize("budget", [31, 64])
def test_no_policy_holds_more_than_its_budget(name: str, budget: int) -> None:
    make = (BASELINES | OURS)[name]
    one, two = make(budget, 6), make(budget, 6)
    for features, positions, time, motion in random_stream(budget):
        answers = []
        for policy in (one, two):
            policy.write(features, positions, time, motion, None)
            assert 0 < len(policy) <= budget
            answers.append(policy.answer(positions, time, motion))
        assert answers[0].shape == features.shape and bool(answers[0].isfinite().all())
        assert torch.equal(*answers)


@POLICIES
def test_every_policy_knows_what_it_has_just_seen(name: str) -> None:
    policy = (BASELINES | OURS)[name](40, 4)
    write(policy, 0.0, 0.5, 1.0, 1.5)
    features, positions = rows(0.0, 1.5)
    answer = policy.answer(positions, 0.0, torch.zeros(2))
    assert torch.allclose(answer, features, atol=0.05)


def test_first_in_goes_first() -> None:
    policy = Fifo(4, 4)
    write(policy, 1.0, 2.0, 3.0)
    write(policy, 4.0, 5.0, 6.0)
    assert places(policy.held) == [3.0, 4.0, 5.0, 6.0]
    alone = ThisFrame(4, 4)
    write(alone, 1.0, 2.0, 3.0)
    write(alone, 4.0)
    assert places(alone.held) == [4.0]


def test_the_newest_weigh_most() -> None:
    answers = []
    for fade in (0.0, 100.0):
        policy = Fifo(9, 4, fade=fade)
        write(policy, 1.0)
        policy.write(*(-part for part in rows(-1.0)), 1.0, STILL, None)  # same place, other look
        answers.append(float(policy.answer(rows(1.0)[1], 1.0, STILL)[0, 1]))
    assert answers == pytest.approx([0.0, -1.0])


def test_cubes_seen_least_recently_go() -> None:
    policy = LeastRecent(2, 4)
    write(policy, 0.02, 1.02, time=0.0)
    write(policy, 0.04, time=1.0)  # in the cube of the first
    assert places(policy.held) == [0.03, 1.02]
    write(policy, 2.02, time=2.0)
    assert places(policy.held) == [0.03, 2.02]


def test_cubes_that_grow_lose_nothing() -> None:
    policy = Coarsening(8, 4)
    for n in range(64):
        write(policy, 0.1 * n)
    held = policy.held
    assert float(held.counts.sum()) == 64.0 and 4 <= len(held) <= 8
    assert float(held.counts @ held.positions[:, 0]) == pytest.approx(
        0.1 * sum(range(64)), rel=1e-5
    )
    assert policy.side > 0.08 and policy.reach == pytest.approx(policy.side / 2)


def test_a_query_mask_keeps_the_classes_apart() -> None:
    for make in (Fifo, Coarsening):
        policy = make(9, 4, same_class=True)
        write(policy, 0.02)
        write(policy, 0.03, motion=1.0)
        assert len(policy) == 2
        position = rows(0.02)[1]
        for asked, place in ((STILL, 0.02), (MOVES, 0.03)):
            answer = policy.answer(position, 0.0, asked)
            assert float(answer[0, 0]) == pytest.approx(place, abs=1e-4)
        unsure = policy.answer(position, 0.0, torch.tensor([0.5]))
        assert 0.02 < float(unsure[0, 0]) < 0.03


def test_a_reservoir_is_a_fair_sample() -> None:
    policy = Reservoir(100, 4)
    for n in range(100):
        write(policy, *[n + 0.01 * k for k in range(10)])
    held = policy.held.positions[:, 0]
    assert len(policy) == 100 and float(held.mean()) == pytest.approx(50, abs=9)  # 3 sigma
    assert (held.diff() > 0).all()


def test_what_is_attended_to_stays_by_spann3rs_rule() -> None:
    policy = Spann3RRule(3, 4)
    write(policy, 1.0, 2.0)
    for n in range(3):
        policy.answer(rows(2.0)[1], 0.0, STILL)  # of equals the first would stay
        write(policy, 5.0 + n)
    assert places(policy.held)[0] == 2.0 and places(policy.held)[-1] == 7.0


def test_near_pointers_are_replaced_and_not_averaged() -> None:
    policy = Point3RRule(3, 4)
    write(policy, 0.0, 8.0, time=0.0)
    write(policy, 0.2, time=1.0)  # a 20th of the extent is 0.4
    assert places(policy.held) == [0.2, 8.0]
    write(policy, 4.0, 6.0, time=2.0)
    assert places(policy.held) == [0.2, 4.0, 6.0]  # 8.0 was hit longest ago


def test_the_first_frame_and_what_is_least_alike_stay_by_infinitevggts_rule() -> None:
    policy = InfiniteVGGTRule(4, 4)
    write(policy, 1.0, 1.1)
    policy.write(torch.eye(4)[[3, 2, 2, 2]], rows(1.0, 1, 1, 1)[1], 1.0, torch.zeros(4), None)
    assert places(policy.held)[:2] == [1.0, 1.1] and len(policy) == 4
    assert bool((policy.held.features == torch.eye(4)[3]).all(1).any())


def test_a_dual_sorts_by_motion_and_is_read_by_it() -> None:
    policy = Dual(LeastRecent(4, 4), Fifo(2, 4))
    features, positions = rows(0.1, 0.12, 2.0)
    policy.write(features, positions, 0.0, torch.tensor([0.0, 1.0, 1.0]), None)
    assert places(policy.static.held) == [0.1] and places(policy.ring.held) == [0.12, 2.0]
    position = rows(0.11)[1]
    for asked, place in ((STILL, 0.1), (MOVES, 0.12)):
        answer = policy.answer(position, 0.0, asked)
        assert float(answer[0, 0]) == pytest.approx(place, abs=1e-3)
    far = policy.answer(rows(2.0)[1], 0.0, torch.tensor([0.5]))  # the mask does not tell; places do
    assert float(far[0, 0]) == pytest.approx(2.0, abs=1e-3)


def test_a_window_holds_what_stands_before_the_cubes_do() -> None:
    policy = WindowedDual(20, 4)  # four for what moves, six in the window
    for n in range(10):
        write(policy, 0.1 * n + 0.01, time=0.1 * n)
    write(policy, 0.5, time=1.0, motion=1.0)
    assert places(policy.recent.held) == [0.41, 0.51, 0.61, 0.71, 0.81, 0.91]
    assert places(policy.static.held) == [0.01, 0.11, 0.21, 0.31] and len(policy) == 11
    features, positions = rows(0.01, 0.91)
    assert torch.allclose(policy.answer(positions, 1.0, torch.zeros(2)), features, atol=0.05)


# ------------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def bench(script):
    return script("static_dynamic")


@pytest.fixture(scope="module")
def moments(bench):
    """160 frames of ten rows, each at a place of its own."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for number in range(160):
        moving = torch.rand(10, generator=draws) < 0.3
        wrong = bench.bad_mask(moving, draws)
        found.append(
            bench.Moment(
                0.1 * number,
                {"codes": torch.randn(10, 80, generator=draws)},
                torch.rand(10, 3, generator=draws),
                moving,
                torch.rand(10, generator=draws) < 0.4,
                ~moving & (torch.rand(10, generator=draws) < 0.8),
                {"truth": moving.float(), "bad mask": wrong},
                None,
            )
        )
    return found


class Oracle:
    """Knows everything, or nothing; and notes what it is told and asked."""

    def __init__(self, moments, knows: bool):
        self.moments, self.knows = moments, knows
        self.written, self.asked = [], []

    def __len__(self) -> int:
        return 7

    def write(self, features, positions, time, motion, view) -> None:
        self.written.append((positions, motion))

    def answer(self, positions, time, motion):
        self.asked.append((positions, time, motion))
        found = torch.zeros(len(positions), 80)
        for moment in self.moments if self.knows else ():
            same = (positions[:, None] == moment.positions).all(2)
            found[same.any(1)] = moment.features["codes"][same.int().argmax(1)[same.any(1)]]
        return found


def test_a_perfect_memory_scores_0_and_none_1(bench, moments) -> None:
    for knows, wanted in ((True, 0.0), (False, 1.0)):
        policy = Oracle(moments, knows)
        scores = bench.measure(policy, moments, "codes", "truth")
        found = (scores.static, scores.dynamic, scores.revisit)
        assert found == pytest.approx((wanted,) * 3, abs=1e-3)
        assert scores.used == 7.0


def test_what_is_hidden_is_asked_for_and_never_written(bench, moments) -> None:
    policy = Oracle(moments, False)
    bench.measure(policy, moments, "codes", "bad mask")
    for moment, (positions, motion) in zip(moments, policy.written, strict=True):
        assert torch.equal(positions, moment.positions[~moment.hidden])
        assert torch.equal(motion, moment.motion["bad mask"][~moment.hidden])
    now = [asked for n, asked in enumerate(policy.asked) if n not in (151, 157)]
    assert len(now) == len(moments)
    for moment, (positions, time, motion) in zip(moments, now, strict=True):
        assert torch.equal(positions, moment.positions[moment.hidden]) and time == moment.time
        assert torch.equal(motion, moment.motion["bad mask"][moment.hidden])
    then, (positions, time, _) = moments[0], policy.asked[151]  # of frame 150
    assert torch.equal(positions, then.positions[then.hidden & then.lasting])
    assert time == moments[150].time


def test_classes_are_scored_apart(bench, moments) -> None:
    class OnlyWhatMoves(Oracle):
        def answer(self, positions, time, motion):
            return super().answer(positions, time, motion) * motion[:, None]

    scores = bench.measure(OnlyWhatMoves(moments, True), moments, "codes", "truth")
    assert (scores.dynamic, scores.static) == pytest.approx((0.0, 1.0), abs=1e-3)


def test_another_stream_can_be_what_is_written(bench, moments) -> None:
    policy, other = Oracle(moments, False), moments[::-1]
    bench.measure(policy, moments, "codes", "truth", other)
    assert torch.equal(policy.written[0][0], other[0].positions[~other[0].hidden])
    assert torch.equal(policy.asked[0][0], moments[0].positions[moments[0].hidden])


def test_moments_hold_what_is_true(bench) -> None:
    moments = bench.watch(0, 3, None)
    for moment in moments:
        count = len(moment.moving)
        assert not bool((moment.moving & moment.lasting).any())
        assert 0.6 < float(moment.lasting.float().mean()) < 1
        assert torch.equal(moment.motion["truth"] > 0.5, moment.moving)
        assert set(moment.motion) == set(bench.MASKS)
        assert all(bool(((m >= 0) & (m <= 1)).all()) for m in moment.motion.values())
        noisy, clean = moment.features["codes"], moment.features["clean codes"]
        alike = torch.cosine_similarity(noisy, clean, dim=1)
        assert noisy.shape == (count, 80) and 0.9 < float(alike.mean()) < 0.97


def test_a_bad_mask_is_as_bad_as_it_says(bench) -> None:
    moving = torch.arange(100_000) % 7 == 0
    found = bench.bad_mask(moving, torch.Generator().manual_seed(0)) > 0.5
    assert float(found[moving].float().mean()) == pytest.approx(bench.RECALL, abs=0.02)
    assert float(moving[found].float().mean()) == pytest.approx(bench.PRECISION, abs=0.02)
    assert not bool((bench.bad_mask(moving[:0], torch.Generator()) > 0).any())


def test_a_cell_of_the_table(bench) -> None:
    one = SimpleNamespace(static=0.1, dynamic=0.2, revisit=0.3, used=500)
    two = SimpleNamespace(static=0.1, dynamic=0.2, revisit=0.5, used=510)
    assert bench.means([one, two]) == pytest.approx([0.1, 0.2, 0.4])
    assert bench.cell([one, two], [0.1, 0.1, 0.4]) == ".100/.200/.400 ±0.100 505 x2.0"
