"""Edge cases of the published operators that no golden array covers."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.published.clustering import (
    NTMWeights,
    Slots,
    attention_feature,
    drop,
    k_drop,
    k_merge,
    kmeans,
    lloyd,
    merge,
    ntm_write,
    pooled_side,
    spatial_pool,
    weighted_kmeans,
)


class Given(random.Random):
    """Gives the numbers it was told to; notes what it was asked for."""

    def __init__(self, *numbers: int):
        super().__init__(0)
        self.numbers, self.asked = list(numbers), list[tuple[int, int]]()

    def randint(self, a: int, b: int) -> int:
        self.asked.append((a, b))
        return self.numbers.pop(0)


def draws(seed: int = 0) -> tuple[torch.Generator, random.Random]:
    return torch.Generator().manual_seed(seed), random.Random(seed)


def frames(*values: float) -> Tensor:
    """Frames of one token of two numbers: a direction in degrees."""
    angles = torch.tensor(values).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)[:, None]


def test_a_generator_of_its_own_draws_what_the_global_one_would() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        expected = [torch.randperm(n) for n in (5, 26, 1000)]
    own = torch.Generator().manual_seed(17)
    assert all(torch.equal(torch.randperm(len(e), generator=own), e) for e in expected)


# ---------------------------------------------------------------------- lloyd


def test_lloyd_gives_the_centroids_before_the_last_move() -> None:
    x = torch.tensor([[0.0], [1.0]])
    start = torch.tensor([[0.5 + 4e-5]])
    found = lloyd(x, start, torch.ones(2), Given())
    assert torch.equal(found.centroids, start)  # moved by less than the tolerance
    assert found.mass.tolist() == [2] and found.labels.tolist() == [0, 0]
    start = torch.tensor([[0.5 + 4e-4]])
    assert lloyd(x, start, torch.ones(2), Given()).centroids.tolist() == [[0.5]]


def test_lloyd_stops_after_ten_iterations() -> None:
    """The second cluster is without weight, and its new row is another one every time."""
    x, coins = torch.tensor([[0.0], [8.0]]), Given(*[0, 1] * 5)
    found = lloyd(x, x, torch.tensor([1.0, 0.0]), coins)
    assert coins.asked == [(0, 1)] * 10
    assert found.centroids.tolist() == [[0.0], [8.0]] and found.mass.tolist() == [1, 0]


def test_clusters_without_weight_take_rows_in_the_order_of_their_numbers() -> None:
    x = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    start = torch.tensor([[100.0], [3.0], [200.0], [3.0]])  # all rows go to the second
    coins = Given(3, 0, 2)
    found = lloyd(x, start, torch.ones(4), coins)
    assert coins.asked == [(0, 3)] * 3 and found.labels.tolist() == [2, 1, 3, 0]
    assert found.centroids.tolist() == [[6.0], [2.0], [0.0], [4.0]]


def test_a_row_without_weight_does_not_move_a_centroid() -> None:
    x = torch.tensor([[0.0], [2.0], [50.0]])
    found = lloyd(x, torch.tensor([[1.0]]), torch.tensor([1.0, 3.0, 0.0]), Given())
    assert found.centroids.tolist() == [[1.5]] and found.mass.tolist() == [4]


@pytest.mark.parametrize("expanded", [False, True])
def test_the_two_forms_of_the_distance_agree_where_nothing_cancels(expanded: bool) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(50, 9, generator=noise)
    found = lloyd(x, x[:6], torch.ones(50), random.Random(0), expanded=expanded)
    plain = lloyd(x.double(), x[:6].double(), torch.ones(50).double(), random.Random(0))
    assert torch.equal(found.labels, plain.labels)
    torch.testing.assert_close(found.centroids.double(), plain.centroids, rtol=1e-5, atol=1e-6)


def test_expanded_is_handed_on() -> None:
    """Far from the origin the expanded form loses what tells rows apart."""
    x = 4000 + torch.arange(8.0)[:, None] / 1024
    one = lloyd(x, x[:4], torch.ones(8), random.Random(0))
    other = lloyd(x, x[:4], torch.ones(8), random.Random(0), expanded=True)
    assert not torch.equal(one.labels, other.labels)


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_no_weight_is_lost_in_clusters(count: int, slots: int, levels: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (count, 2, 3), generator=noise).float()
    weights = torch.randint(4, (count,), generator=noise).float()
    found = weighted_kmeans(x, slots, *draws(seed), weights)
    assert found.centroids.shape == (min(count, slots), 2, 3)
    assert found.mass.sum() == weights.sum()
    sums = torch.zeros(min(count, slots)).index_add_(0, found.labels, weights)
    assert torch.equal(sums, found.mass)
    assert bool((found.centroids >= 0).all() and (found.centroids <= levels - 1).all())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_nothing_is_drawn_where_all_fit(count: int) -> None:
    x, (permutations, coins) = torch.ones(count, 2, 3), draws()
    before = permutations.get_state()
    found = weighted_kmeans(x, 4, permutations, coins, torch.arange(float(count)))
    assert torch.equal(found.centroids, x) and found.mass.tolist() == list(range(count))
    assert found.labels.tolist() == list(range(count))
    assert kmeans(x, 4, permutations, coins).mass.tolist() == [1] * count
    assert torch.equal(permutations.get_state(), before)


# ---------------------------------------------------------------------- one after the other


def test_drop_takes_the_first_of_the_most_alike_and_tosses_a_coin() -> None:
    x = frames(0, 40, 50, 120, 130)
    assert drop(x, 4, Given(0)).labels.tolist() == [0, -1, 1, 2, 3]
    assert drop(x, 4, Given(1)).labels.tolist() == [0, 1, -1, 2, 3]
    found = drop(x, 4, Given(1))
    expected = torch.tensor([40.0, 80.0, 10.0]).deg2rad().cos()  # one pair is new
    torch.testing.assert_close(found.similarity, expected)
    assert torch.equal(found.frames, x[[0, 1, 3, 4]])


def test_drop_at_the_ends() -> None:
    x = frames(0, 5, 90, 180, 270)
    assert drop(x, 4, Given(0)).labels.tolist() == [-1, 0, 1, 2, 3]
    assert drop(x.flip(0), 4, Given(1)).labels.tolist() == [0, 1, 2, 3, -1]
    expected = torch.tensor([85.0, 90.0, 90.0]).deg2rad().cos()
    for similarity in (
        drop(x, 4, Given(0)).similarity,
        drop(x.flip(0), 4, Given(1)).similarity.flip(0),
    ):
        torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=0)


def test_k_drop_looks_at_all_pairs_and_its_coin_is_the_other_way_round() -> None:
    x = frames(0, 90, 3, 180, 250)
    assert k_drop(x, 4, Given(1)).labels.tolist() == [-1, 0, 1, 2, 3]
    assert k_drop(x, 4, Given(0)).labels.tolist() == [0, 1, -1, 2, 3]
    assert k_drop(x, 4, Given(0)).similarity is None


def test_merge_is_a_plain_mean_however_many_frames_it_stands_for() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.3], [-1.0, 5.0]])[:, None]
    found = merge(x, 2)  # the second and third first, then the first with both
    assert found.labels.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(found.frames, torch.tensor([[[1.0, 0.125]], [[-1.0, 5.0]]]))
    assert found.similarity is not None
    torch.testing.assert_close(found.similarity[0], _cos(found.frames[0], found.frames[1]))


def _cos(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)


def test_k_merge_stands_where_the_later_frame_stood() -> None:
    x = frames(0, 90, 3, 180, 250)
    found = k_merge(x, 4)
    assert found.labels.tolist() == [1, 0, 1, 2, 3]
    assert torch.equal(found.frames[1], (x[0] + x[2]) / 2)


RULES: dict[str, Callable[[Tensor, int], Slots]] = {
    "drop": lambda x, k: drop(x, k, random.Random(0)),
    "k_drop": lambda x, k: k_drop(x, k, random.Random(0)),
    "merge": merge,
    "k_merge": k_merge,
}


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 1000))
def test_slots_hold_what_their_labels_say(rule: str, count: int, slots: int, seed: int) -> None:
    x = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))
    given_x = x.clone()
    found = RULES[rule](x, slots)
    assert torch.equal(x, given_x), "the input was changed"
    size = min(count, slots)
    assert found.frames.shape == (size, 2, 3) and found.labels.shape == (count,)
    assert set(found.labels.tolist()) - {-1} == set(range(size))
    if "drop" in rule:
        assert torch.equal(found.frames, x[found.labels >= 0])
    elif count > slots:
        assert found.similarity is not None and -1 not in found.labels
        alike = torch.stack([torch.stack([_cos(a, b) for b in found.frames]) for a in found.frames])
        if rule == "k_merge":
            alike.fill_diagonal_(-100)
        else:
            alike = alike.diagonal(1)
        torch.testing.assert_close(found.similarity, alike, atol=1e-5, rtol=0)
    alone = torch.bincount(found.labels[found.labels >= 0], minlength=size) == 1
    members = [int((found.labels == slot).nonzero()[0]) for slot in range(size)]
    assert torch.equal(found.frames[alone], x[members][alone])


# ---------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("side", "wanted", "given_side"), [(16, 8, 8), (8, 1, 1), (7, 3, 3), (5, 3, 5), (5, 2, 2)]
)
def test_a_pooled_grid_has_the_published_side(side: int, wanted: int, given_side: int) -> None:
    x = torch.arange(2.0 * side**2 * 3).reshape(2, side**2, 3)
    out = spatial_pool(x, wanted)
    assert out.shape == (2, given_side**2, 3) and pooled_side(side, wanted) == given_side
    kernel = side // wanted
    corner = x.unflatten(1, (side, side))[:, :kernel, -(side % kernel) - kernel :][:, :, :kernel]
    torch.testing.assert_close(out[:, given_side - 1], corner.mean((1, 2)))


@pytest.mark.parametrize(("tokens", "side"), [(8, 2), (4, 3), (4, 0)])
def test_a_grid_that_cannot_be_pooled_is_refused(tokens: int, side: int) -> None:
    with pytest.raises(ValueError):
        spatial_pool(torch.ones(1, tokens, 2), side)


def test_a_write_keeps_its_share_of_every_row() -> None:
    noise = torch.Generator().manual_seed(0)
    memory, new = torch.randn(5, 4, generator=noise), torch.randn(3, 4, generator=noise)
    ntm = NTMWeights.random(4, hidden=7)
    expected = 0.7 * memory + 0.3 * ntm.attention(memory, new) @ new
    torch.testing.assert_close(ntm_write(memory, new, ntm, 0.3), expected)
    assert torch.equal(ntm_write(memory, new, ntm, 0.0), memory)
    one = new[:1]
    torch.testing.assert_close(ntm_write(memory, one, ntm, 1.0), one.expand(5, -1))


def test_untrained_weights_are_those_of_their_seed() -> None:
    one, same, other = (NTMWeights.random(16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.q_weight, same.q_weight)
    assert not torch.equal(one.q_weight, other.q_weight)
    assert one.q_weight.shape == (32, 16) and float(one.q_weight.abs().max()) <= 0.25


def test_later_frames_are_written_in_chunks() -> None:
    x = torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(0))
    ntm = NTMWeights.random(4)
    memory = x[:3].reshape(6, 4)
    for chunk in (x[3:6], x[6:]):
        memory = ntm_write(memory, chunk.reshape(-1, 4), ntm, 0.2)
    assert torch.equal(attention_feature(x, 3, ntm, 0.2), memory.reshape(3, 2, 4))
    assert torch.equal(attention_feature(x, 8, ntm, 0.2), x)
