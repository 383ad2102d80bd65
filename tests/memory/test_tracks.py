"""Clusters and their tracks: what is one thing, what keeps its number, what rests, what is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.tracks import NO_TRACK, TrackConfig, Tracks, clusters


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chained(points: Tensor, apart: float) -> Tensor:
    """Which pairs a chain of short steps connects, the slow way."""
    near = (torch.cdist(points, points) < apart) | torch.eye(len(points), dtype=torch.bool)
    for _ in range(math.ceil(math.log2(max(2, len(points))))):
        near = (near.double() @ near.double()) > 0
    return near


@settings(max_examples=60, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 60), st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_clusters_are_what_chains_of_short_steps_connect(
    axes: int, count: int, seed: int, apart: float
) -> None:
    points = noise(seed, count, axes)
    label, centre = clusters(points, apart)
    assert torch.equal(label[:, None] == label[None], chained(points, apart))
    sizes = label.bincount(minlength=len(centre))
    assert len(centre) == len(label.unique()) and torch.equal(
        sizes, sizes.sort(descending=True).values
    )
    for number in range(len(centre)):
        torch.testing.assert_close(centre[number], points[label == number].mean(0))


@settings(max_examples=20, derandomize=True)
@given(st.integers(2, 60), st.integers(0, 10**6))
def test_the_order_of_points_does_not_matter(count: int, seed: int) -> None:
    points = noise(seed, count, 3)
    turn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    one, other = Tracks(TrackConfig(apart=0.8)), Tracks(TrackConfig(apart=0.8))
    for n in range(4):
        ids = one.step(points + 0.1 * n, 0.1 * n)
        assert torch.equal(other.step((points + 0.1 * n)[turn], 0.1 * n), ids[turn])
    for name, column in one.state_dict().items():
        assert torch.equal(column, other.state_dict()[name]), name


def test_points_at_exactly_the_distance_are_apart() -> None:
    label, _ = clusters(torch.tensor([[0.0], [0.5], [0.75]]), 0.5)
    assert label.tolist() == [1, 0, 0]


def test_crossing_things_keep_their_numbers() -> None:
    """The prediction alone tells them apart where they meet."""
    tracks = Tracks(TrackConfig(apart=0.15))
    blob = 0.03 * noise(0, 10, 3)
    for n in range(41):
        x = 0.1 * n - 2.0
        one = blob + torch.tensor([x, 0.2, 0.0])
        other = blob + torch.tensor([-x, -0.2, 0.0])
        ids = tracks.step(torch.cat([one, other]), 0.1 * n)
        if n == 0:
            first = ids
        assert torch.equal(ids, first) and len(ids.unique()) == 2
    assert len(tracks) == 2
    torch.testing.assert_close(
        tracks.velocity[:, 0].abs(), torch.ones(2).double(), rtol=1e-3, atol=0
    )
    assert tracks.first.tolist() == [0.0, 0.0] and tracks.last.tolist() == [4.0, 4.0]


def test_velocity_takes_two_fifths_of_each_step() -> None:
    tracks = Tracks(TrackConfig(axes=1))
    for n in range(3):
        tracks.step(torch.tensor([[0.2 * n]]), 0.2 * n)
    assert tracks.velocity[0, 0].item() == pytest.approx(0.4 + 0.6 * 0.4, rel=1e-6)
    assert tracks.at(0.9)[0, 0].item() == pytest.approx(0.4 + 0.5 * 0.64, rel=1e-6)


def test_a_track_is_found_again_behind_a_post_and_lost_after_its_time() -> None:
    tracks = Tracks(TrackConfig(axes=1, lost_seconds=0.5, match=0.15))
    for n in range(20):
        (number,) = tracks.step(torch.tensor([[0.1 * n]]), 0.1 * n).tolist()
    nothing = torch.empty(0, 1)
    for n in range(20, 23):
        assert tracks.step(nothing, 0.1 * n).tolist() == []
    # 0.4 on: only the prediction is near enough.
    assert tracks.step(torch.tensor([[2.3]]), 2.3).tolist() == [number]
    tracks.step(nothing, 2.8)
    assert len(tracks) == 1
    tracks.step(nothing, 2.81)
    assert len(tracks) == 0
    assert tracks.step(torch.tensor([[2.8]]), 2.82).tolist() == [number + 1]


def test_what_jumps_too_far_is_another_thing() -> None:
    tracks = Tracks(TrackConfig(axes=2, match=0.45))
    tracks.step(torch.zeros(3, 2), 0.0)
    assert tracks.step(torch.full((3, 2), 0.31), 0.1).tolist() == [0, 0, 0]  # 0.44 away
    tracks = Tracks(TrackConfig(axes=2, match=0.45))
    tracks.step(torch.zeros(3, 2), 0.0)
    assert tracks.step(torch.full((3, 2), 0.33), 0.1).tolist() == [1, 1, 1]  # 0.47 away


def test_what_falls_apart_is_one_track_and_a_new_one() -> None:
    tracks = Tracks(TrackConfig(axes=1, apart=0.1))
    tracks.step(torch.zeros(3, 1), 0.0)
    assert tracks.step(torch.tensor([[-0.3], [0.2]]), 0.1).tolist() == [1, 0]


def test_rest_is_told_through_trembling_and_ends_with_a_walk() -> None:
    tracks = Tracks(TrackConfig())
    for n in range(101):
        at = torch.tensor([0.05 * min(n, 50), 0.0, 0.0]).double()
        tracks.step(at + 0.01 * noise(n, 1, 3), 0.1 * n)
        if n <= 50:
            assert tracks.rest.item() < 0.3, n
    # The last place was taken within 6 cm of where it stopped.
    assert 4.8 <= tracks.rest.item() <= 5.2
    for n in range(101, 106):
        tracks.step(torch.tensor([[2.5 + 0.05 * (n - 100), 0.0, 0.0]]), 0.1 * n)
    assert tracks.rest.item() < 0.3


def test_a_slow_walk_is_no_rest() -> None:
    tracks = Tracks(TrackConfig(rest_speed=0.02, rest_seconds=3.0))
    for n in range(200):
        tracks.step(torch.tensor([[0.0025 * n, 0.0, 0.0]]), 0.1 * n)  # 2.5 cm a second
        assert tracks.rest.item() < 3.0


def test_of_too_many_the_largest_are_followed() -> None:
    tracks = Tracks(TrackConfig(axes=1, max_tracks=2))
    points = torch.tensor([[0.0], [10.0], [10.0], [20.0], [20.0], [20.0]])
    assert tracks.step(points, 0.0).tolist() == [NO_TRACK, 1, 1, 0, 0, 0]
    limit = tracks.nbytes
    # Those followed stay, however large the next are; those unseen make room.
    assert tracks.step(torch.cat([points, points + 40]), 0.1).tolist()[:6] == [-1, 1, 1, 0, 0, 0]
    assert tracks.nbytes == limit and len(tracks) == 2
    assert len(set(tracks.step(points[3:] + 90, 0.2).tolist()) - {NO_TRACK, 0, 1}) == 1
    assert len(tracks) == 2


def test_nothing_at_all_may_be_followed() -> None:
    tracks = Tracks(TrackConfig(max_tracks=0))
    assert tracks.step(torch.zeros(4, 3), 0.0).tolist() == [NO_TRACK] * 4
    assert tracks.nbytes == 0


def test_the_same_time_twice_changes_no_velocity() -> None:
    tracks = Tracks(TrackConfig(axes=1))
    for n in range(9):
        tracks.step(torch.tensor([[0.1 * n]]), 0.1 * n)
    before, place = tracks.velocity, tracks.position
    tracks.step(torch.tensor([[0.9]]), 0.8)
    assert place.item() == pytest.approx(0.8)  # what was handed out does not change
    assert torch.equal(tracks.velocity, before) and tracks.position.item() == pytest.approx(0.9)


def test_save_and_load_go_on_bit_for_bit() -> None:
    def walk(tracks: Tracks, numbers: range) -> list[list[int]]:
        return [
            tracks.step(noise(n // 20, 12, 3) + 0.02 * noise(n, 12, 3), 0.1 * n).tolist()
            for n in numbers
        ]

    whole, before, after = (Tracks(TrackConfig()) for _ in range(3))
    expected = walk(whole, range(100))
    walk(before, range(37))
    after.load_state_dict(before.state_dict())
    assert walk(after, range(37, 100)) == expected[37:]
    state = whole.state_dict()
    assert all(torch.equal(column, state[name]) for name, column in after.state_dict().items())
    with pytest.raises(ValueError, match="another configuration"):
        Tracks(TrackConfig(apart=0.2)).load_state_dict(state)
    for name in state:
        with pytest.raises(ValueError):
            after.load_state_dict({k: v for k, v in state.items() if k != name})


@pytest.mark.parametrize(
    ("points", "time"),
    [
        (torch.zeros(3), 2.0),
        (torch.zeros(3, 2), 2.0),
        (torch.full((1, 3), torch.nan), 2.0),
        (torch.full((1, 3), torch.inf), 2.0),
        (torch.zeros(1, 3), math.nan),
        (torch.zeros(1, 3), math.inf),
        (torch.zeros(1, 3), 0.9),
    ],
)
def test_what_does_not_fit_is_refused(points: Tensor, time: float) -> None:
    tracks = Tracks(TrackConfig())
    tracks.step(torch.zeros(2, 3), 1.0)
    before = tracks.state_dict()
    with pytest.raises(ValueError):
        tracks.step(points, time)
    assert all(torch.equal(column, before[name]) for name, column in tracks.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [dict(axes=0), dict(max_tracks=-1), dict(apart=0.0), dict(match=np.nan), dict(rest_speed=0.0),
     dict(rest_seconds=-1.0), dict(lost_seconds=-0.1)],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TrackConfig(**wrong)  # type: ignore[arg-type]
