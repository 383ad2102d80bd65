from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from torch import Tensor

from vismem.memory.published.pyramid import PublishedPyramid, PublishedPyramidConfig

SMALL = PublishedPyramidConfig(token_dim=3, capacities=(2, 2, 6), level_tokens=(16, 4, 1))
LARGE = PublishedPyramidConfig(token_dim=3, capacities=(40, 40, 150), level_tokens=(16, 4, 1))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPublishedPyramid(MemoryContract):
    small = SMALL.most_bytes or 0
    large = LARGE.most_bytes or 0
    max_tokens = 16
    cannot = {
        "test_the_budget_holds_after_every_write": "its capacities are set in frames: a budget "
        "below them refuses the write that would pass it, as shown below",
    }

    def make(self, budget: int) -> PublishedPyramid:
        return PublishedPyramid(LARGE if budget > self.small else SMALL, budget)

    def make_other(self, budget: int) -> PublishedPyramid:
        return PublishedPyramid(PublishedPyramidConfig(3, (2, 3, 6), (16, 4, 1)), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        scene = noise(16, 3, seed=1000 * seed + number // 3)
        return {
            "tokens": scene + 0.1 * noise(16, 3, seed=number),
            "time": 20.0 + 0.5 * (number - number % 2),
        }

    def query(self) -> Tensor:
        return torch.ones(3)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "grid: none fits": good | {"tokens": noise(3, 3)},
            "grid: another count": good | {"grid": (4, 3)},
            "grid: negative": good | {"grid": (-4, -4)},
        }


def sources(memory: PublishedPyramid, means: list[list[float]], start: int = 0) -> list[list[int]]:
    """Write frames of one colour each; what the levels hold then."""
    for number, mean in enumerate(means, start):
        memory.write(torch.tensor(mean).expand(16, 3), time=float(number))
    return memory.level_sources


X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def flat(*capacities: int) -> PublishedPyramid:
    """Frames enter the finest level, whatever their number."""
    sizes, intervals = (16, 4, 1)[: len(capacities)], (1,) * len(capacities)
    return PublishedPyramid(PublishedPyramidConfig(3, capacities, sizes, intervals), 10**6)


def test_the_earlier_of_the_most_similar_neighbours_goes_down_before_the_new_is_compared() -> None:
    # 1 and 2 are alike, so 1 leaves; 3 is like 2 but not compared yet.
    assert sources(flat(3, 2), [X, Y, Y, Y]) == [[0, 2, 3], [1]]


def test_the_first_of_equally_similar_neighbours_leaves() -> None:
    assert sources(flat(3, 2), [X, X, X, Y]) == [[1, 2, 3], [0]]


def test_a_full_level_below_drops_and_does_not_cascade() -> None:
    # 0, 1 and 2 go down in turn; then 0, of the pair 0 and 1, is dropped, though a level has room.
    memory = flat(2, 2, 5)
    assert sources(memory, [X, X, X, X]) == [[2, 3], [0, 1], []]
    assert memory.write(torch.tensor(X).expand(16, 3), time=4.0).dropped == 1
    assert memory.level_sources == [[3, 4], [1, 2], []]


def test_neighbours_are_those_of_insertion_and_not_of_time() -> None:
    """Frame 0 comes down late and lies behind frame 1, which is not its neighbour in time."""
    memory = PublishedPyramid(PublishedPyramidConfig(3, (2, 3), (16, 4), (4, 1)))
    assert sources(memory, [X, Y, Z, Y, X, Z, X, Y, X])[1][-1] == 0
    assert memory.read().sources.unique_consecutive().tolist() == [0, 4, 6, 7, 8]


def test_without_a_limit_all_is_kept() -> None:
    held = sources(flat(0, 3), [X] * 30)
    assert held == [list(range(30)), []]


def test_without_a_limit_the_budget_is_hard_and_names_the_fix() -> None:
    config = PublishedPyramidConfig(3, (0, 2), (16, 4), (1, 1))
    with pytest.raises(ValueError, match="give a budget"):
        PublishedPyramid(config)
    memory = PublishedPyramid(config, budget=1000)
    refused = 0
    for number in range(9):
        before = copied(memory.state_dict())
        try:
            memory.write(noise(16, 3, seed=number), time=float(number))
        except ValueError as error:
            refused += 1
            assert "larger budget" in str(error) and "PyramidMemory" in str(error)
            assert same(memory.state_dict(), before)
        assert memory.nbytes <= 1000
    assert refused == 6  # 3 frames of 16 x 3 float32, their mean and 7 numbers


def test_bytes_are_those_of_the_state() -> None:
    memory = PublishedPyramid(SMALL)
    for number in range(60):
        memory.write(noise(16, 3, seed=number), time=float(number))
        state = memory.state_dict()
        frames = len(state["times"])
        means = 4 * 3 * frames
        parts = [state[name].nbytes for name in ("tokens", "times", "numbers")]
        assert memory.nbytes == sum(parts) + means
    assert memory.nbytes == SMALL.most_bytes


def test_a_frame_that_is_not_square_keeps_its_proportions() -> None:
    memory = PublishedPyramid(PublishedPyramidConfig(3, (2, 2), (16, 4), (1, 1)))
    tokens = noise(8, 3)
    for number in range(3):
        memory.write(tokens, time=float(number), grid=(2, 4))
    first = next(memory.read().frames())[2]
    assert first.shape == (2, 3)  # 1 x 2
    left = tokens.reshape(2, 4, 3)[:, :2].reshape(4, 3).mean(0)
    torch.testing.assert_close(first[0], left)


def test_frames_are_compared_as_they_lie_on_their_level() -> None:
    """Three cells become one by taking the middle: 1 and 2 have that alike, 0 and 1 the rest."""
    memory = PublishedPyramid(PublishedPyramidConfig(3, (2, 3), (9, 1), (1, 1)))
    for number, (border, middle) in enumerate([(Z, X), (Z, Y), (X, Y), (X, Y), (X, Y), (X, Y)]):
        tokens = torch.tensor(border).repeat(9, 1)
        tokens[4] = torch.tensor(middle)
        memory.write(tokens, time=float(number))
    assert memory.level_sources == [[4, 5], [0, 2, 3]]


def test_frames_that_enter_coarse_are_compared_as_they_were_pooled() -> None:
    """Three cells become two that share the middle, which so counts more than twice as much."""
    memory = PublishedPyramid(PublishedPyramidConfig(3, (2, 3), (9, 4), (100, 1)))
    for number, (border, middle) in enumerate([(Z, X), (Z, X), (Z, Y), (X, Y), (X, Z)]):
        tokens = torch.tensor(border).repeat(9, 1)
        tokens[4] = 5 * torch.tensor(middle)
        memory.write(tokens, time=float(number))
    assert memory.level_sources == [[0], [1, 3, 4]]


def test_a_frame_smaller_than_any_level_stays_one_token() -> None:
    memory = PublishedPyramid(SMALL)
    for number in range(40):
        memory.write(noise(1, 3, seed=number), time=float(number))
    assert len(memory.read().tokens) == len(memory.snapshot()) == 10


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"capacities": (2, 1, 12)}, "capacity of 1"),
        ({"capacities": (2, 12)}, "as many"),
        ({"capacities": (2, -2, 12)}, "capacity is 0"),
        ({"level_tokens": (256, 60, 16)}, "square"),
        ({"level_tokens": (16, 64, 256)}, "fine to coarse"),
        ({"intervals": (8, 4, 2)}, "end with 1"),
        ({"intervals": (8, 0, 1)}, "at least 1"),
    ],
)
def test_what_the_published_code_cannot_run_is_refused(wrong: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PublishedPyramidConfig(3, **wrong)


def test_a_state_beyond_the_budget_or_torn_is_refused() -> None:
    memory = PublishedPyramid(SMALL)
    for number in range(30):
        memory.write(noise(16, 3, seed=number), time=float(number))
    state = memory.state_dict()
    with pytest.raises(ValueError, match="budget"):
        PublishedPyramid(SMALL, budget=500).load_state_dict(state)
    with pytest.raises(ValueError, match="number of tokens"):
        PublishedPyramid(SMALL).load_state_dict(state | {"tokens": state["tokens"][1:]})
