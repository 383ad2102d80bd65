from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.identities import Identities, IdentityConfig

X, Y, Z = torch.eye(3)
Frame = dict[str, Any]


def identities(**settings: Any) -> Identities:
    return Identities(IdentityConfig(**{"dim": 3} | settings))


def box(x: float, y: float = 0.5, size: float = 0.1) -> Tensor:
    return torch.tensor([x - size / 2, y - size / 2, x + size / 2, y + size / 2])


def scene(number: int, seed: int = 0, dim: int = 8, most: int = 12) -> Frame:
    """Frame of a stream in which many objects come and go; some frames are empty."""
    noise = torch.Generator().manual_seed(1000 * seed + number)
    count = int(torch.randint(0, most, (), generator=noise))
    who = torch.randperm(20, generator=noise)[:count]
    looks = torch.randn(20, dim, generator=torch.Generator().manual_seed(seed))[who]
    low = torch.rand(count, 2, generator=noise)
    return {
        "embeddings": looks + 0.3 * torch.randn(count, dim, generator=noise),
        "time": 0.2 * (number - number % 2),
        "boxes": torch.cat([low, low + 0.1], 1) if number % 3 else None,
        "scores": torch.rand(count, generator=noise),
    }


# --------------------------------------------------------------------------- who is who


def test_ids_stay_whatever_the_order() -> None:
    memory = identities()
    assert memory.update(torch.stack([X, Y, Z]), 0.0).tolist() == [0, 1, 2]
    assert memory.update(torch.stack([Z, X]), 1.0).tolist() == [2, 0]
    assert memory.update(3 * torch.stack([Y, Z, X]), 2.0).tolist() == [1, 2, 0]
    assert memory.held("seen").tolist() == [3, 2, 3]


def test_one_detection_and_one_identity_are_not_forced_to_match() -> None:
    memory = identities()
    assert [int(memory.update(look[None], 0.0)) for look in (X, Y, -X, X)] == [0, 1, 2, 0]


def test_a_known_one_is_known_again_after_a_gap() -> None:
    memory = identities()
    memory.update(torch.stack([X, Y]), 0.0)
    for time in range(1, 50):
        assert int(memory.update(Y[None], float(time))) == 1
    assert memory.update(torch.stack([Z, X]), 1e6).tolist() == [2, 0]


def test_after_a_gap_too_long_it_is_another() -> None:
    memory = identities(max_gap=5.0)
    assert [int(memory.update(X[None], time)) for time in (0.0, 5.0, 10.5)] == [0, 0, 1]


def test_two_detections_never_share_an_identity() -> None:
    memory = identities()
    memory.update(X[None], 0.0)
    close = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.0]])
    assert memory.update(close, 1.0).tolist() == [1, 0]  # the better one is it


def test_the_choice_is_the_best_for_all() -> None:
    """Each detection could be the first identity; only one could be the second."""
    memory = identities(alike=0.3, views=0)
    memory.update(torch.stack([X, Y]), 0.0)
    both = torch.tensor([[1.0, 0.7, 0.0], [1.0, 0.0, 1.0]])
    assert memory.update(both, 1.0).tolist() == [1, 0]


def test_twins_are_told_apart_by_where_they_are() -> None:
    memory = identities()
    looks = torch.stack([X, X])
    for time, (left, right) in enumerate([(0.2, 0.8), (0.25, 0.75), (0.3, 0.7)]):
        ids = memory.update(looks, 0.1 * time, boxes=torch.stack([box(left), box(right)]))
        assert ids.tolist() == [0, 1]
    assert memory.update(looks, 0.3, boxes=torch.stack([box(0.7), box(0.3)])).tolist() == [1, 0]


def test_twins_that_cross_keep_their_ids_by_their_motion() -> None:
    memory = identities()
    for step in range(30):
        left, right = 0.2 + 0.021 * step, 0.8 - 0.021 * step
        places = torch.stack([box(left, 0.45), box(right, 0.55)])
        ids = memory.update(torch.stack([X, X]), 0.1 * step, boxes=places)
        assert ids.tolist() == [0, 1], f"step {step}"


def test_a_blurred_look_at_the_expected_place_is_the_same_one() -> None:
    blurred = torch.tensor([[0.4, 0.0, 0.917]])
    for where, expected in ((0.3, 0), (0.9, 1)):
        memory = identities()
        for step in range(2):
            memory.update(X[None], 0.1 * step, boxes=box(0.1 + 0.1 * step)[None])
        assert int(memory.update(blurred, 0.2, boxes=box(where)[None])) == expected


def test_the_average_moves_slowly_and_the_views_at_once() -> None:
    memory = identities(views=2, momentum=0.25)
    turned = torch.tensor([0.6, 0.8, 0.0])
    memory.update(X[None], 0.0)
    memory.update(turned[None], 1.0)
    share = 0.25 * 0.6
    mean = torch.nn.functional.normalize((1 - share) * X + share * turned, dim=0)
    torch.testing.assert_close(memory.held("mean")[0], mean)
    torch.testing.assert_close(memory.held("views")[0], torch.stack([X, turned]))
    assert int(memory.update(torch.tensor([[0.0, 1.0, 0.0]]), 2.0)) == 0  # like the last view
    assert memory.held("mean").norm(dim=1).item() == pytest.approx(1)


def test_who_is_not_sure_enough_becomes_nobody_but_is_known_again() -> None:
    memory = identities(birth=0.5)
    scores = torch.tensor([0.9, 0.4])
    assert memory.update(torch.stack([X, Y]), 0.0, scores=scores).tolist() == [0, -1]
    assert memory.update(torch.stack([Y, X]), 1.0, scores=scores.flip(0)).tolist() == [-1, 0]
    assert memory.update(X[None], 2.0, scores=torch.tensor([0.1])).tolist() == [0]


# --------------------------------------------------------------------------- bounds


def test_the_one_unseen_for_longest_is_forgotten_first() -> None:
    memory = identities(most=2)
    memory.update(torch.stack([X, Y]), 0.0)
    memory.update(X[None], 1.0)
    assert memory.update(Z[None], 2.0).tolist() == [2]
    assert memory.held("ids").tolist() == [0, 2]
    assert memory.update(Y[None], 3.0).tolist() == [3]  # ids are never used again
    assert memory.held("ids").tolist() == [2, 3]


def test_more_than_there_is_room_for_are_born_by_score() -> None:
    memory = identities(most=2)
    scores = torch.tensor([0.5, 0.9, 0.8])
    assert memory.update(torch.stack([X, Y, Z]), 0.0, scores=scores).tolist() == [-1, 0, 1]
    assert identities(most=0).update(torch.stack([X, Y]), 0.0).tolist() == [-1, -1]


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 9), st.integers(0, 5), st.integers(0, 1000))
def test_whatever_comes_the_bound_holds_and_ids_are_true(most: int, views: int, seed: int) -> None:
    config = IdentityConfig(dim=8, most=most, views=views)
    memory, known = Identities(config), set[int]()
    for number in range(25):
        frame = scene(number, seed)
        before = set(memory.held("ids").tolist())
        ids = memory.update(**frame)
        held = memory.held("ids").tolist()
        named = [number for number in ids.tolist() if number >= 0]
        assert len(named) == len(set(named)) and len(ids) == len(frame["embeddings"])
        assert held == sorted(held) and len(held) == len(memory) <= most
        assert memory.nbytes == len(held) * config.row_bytes <= most * config.row_bytes
        born = set(named) - before
        assert not born & known  # never used again
        assert born == set(range(len(known), len(known) + len(born)))
        known |= born
        assert born <= set(held)
        assert (memory.held("last") >= memory.held("first")).all()


def test_many_detections_of_one_frame() -> None:
    memory = identities(max_tokens=10_000)
    looks = torch.randn(2_000, 3, generator=torch.Generator().manual_seed(0))
    for time in range(2):
        ids = memory.update(looks, float(time))
        assert len(memory) == 256 and int((ids >= 0).sum()) == 256
    with pytest.raises(ValueError, match="1 to 10000 tokens"):
        memory.update(torch.ones(10_001, 3), 2.0)


# --------------------------------------------------------------------------- the contract's lines


def test_save_kill_load_continue_is_bit_equal() -> None:
    config = IdentityConfig(dim=8, most=9)
    whole = Identities(config)
    expected = [whole.update(**scene(number)) for number in range(40)]
    for cut in (0, 1, 20):
        before, after = Identities(config), Identities(config)
        for number in range(cut):
            before.update(**scene(number))
        after.load_state_dict(copied(before.state_dict()))
        assert same(after.state_dict(), before.state_dict())
        found = [after.update(**scene(number)) for number in range(cut, 40)]
        assert all(map(torch.equal, found, expected[cut:]))
        assert same(after.state_dict(), whole.state_dict())


def test_a_state_that_does_not_fit_is_refused() -> None:
    memory = Identities(IdentityConfig(dim=8))
    memory.update(**scene(1))
    before, state = copied(memory.state_dict()), memory.state_dict()
    for name in state:
        with pytest.raises(ValueError):
            memory.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="another configuration"):
        Identities(IdentityConfig(dim=8, most=9)).load_state_dict(state)
    with pytest.raises(ValueError, match="boxes"):
        memory.load_state_dict(state | {"boxes": state["boxes"][1:]})
    assert same(memory.state_dict(), before)


def test_a_hostile_frame_is_refused_and_changes_nothing() -> None:
    memory = Identities(IdentityConfig(dim=8))
    good = scene(4)
    count = len(good["embeddings"])
    assert count and good["boxes"] is not None
    memory.update(**good)
    before = copied(memory.state_dict())
    bad = torch.tensor(torch.nan)
    cases: dict[str, Frame] = {
        "NaN": {"embeddings": good["embeddings"] * bad},
        "infinity": {"embeddings": good["embeddings"] / 0},
        "narrow": {"embeddings": good["embeddings"][:, 1:]},
        "narrow and empty": {"embeddings": torch.empty(0, 7), "boxes": None, "scores": None},
        "one dimension": {"embeddings": torch.ones(8)},
        "boxes: NaN": {"boxes": good["boxes"] * bad},
        "boxes: swapped": {"boxes": good["boxes"].flip(1)},
        "boxes: too few": {"boxes": good["boxes"][1:]},
        "scores: NaN": {"scores": good["scores"] * bad},
        "scores: too many": {"scores": torch.ones(count + 1)},
        "time: NaN": {"time": float("nan")},
        "time: backwards": {"time": good["time"] - 1},
    }
    for what, change in cases.items():
        with pytest.raises(ValueError):
            memory.update(**good | change)
            pytest.fail(f"taken: {what}")
        assert same(memory.state_dict(), before), f"left traces: {what}"


def test_an_empty_frame_is_a_frame() -> None:
    memory = identities()
    assert memory.update(torch.empty(0, 3), 5.0).tolist() == []
    with pytest.raises(ValueError, match="backwards"):
        memory.update(X[None], 4.0)


def test_boxes_without_area_and_frames_at_the_same_time() -> None:
    memory = identities()
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    for _ in range(3):
        assert int(memory.update(X[None], 1.0, boxes=point)) == 0
    assert torch.isfinite(memory.held("speed")).all()


def test_reset_is_a_new_beginning() -> None:
    memory = identities()
    memory.update(torch.stack([X, Y]), 9.0)
    memory.reset()
    assert len(memory) == memory.nbytes == 0
    assert memory.update(Y[None], 0.0).tolist() == [0]


def test_what_was_handed_over_may_be_changed_afterwards() -> None:
    one, other = (Identities(IdentityConfig(dim=8)) for _ in range(2))
    for number in range(20):
        frame = scene(number)
        ids = one.update(**frame)
        for value in (*frame.values(), ids, one.held("mean")):
            if isinstance(value, Tensor):
                value.zero_()
        other.update(**scene(number))
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"most": -1}, {"views": -1}, {"sharpness": 0.0}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        identities(**wrong)


# --------------------------------------------------------------------------- joining and forgetting


def test_who_is_forgotten_is_somebody_new_and_takes_no_old_id() -> None:
    memory = identities()
    memory.update(torch.stack([X, Y, Z]), 0.0)
    memory.forget(torch.tensor([1, 7]))
    assert memory.held("ids").tolist() == [0, 2]
    assert memory.update(torch.stack([Z, Y, X]), 1.0).tolist() == [2, 3, 0]


def test_likeness_is_the_mean_over_the_views_of_one() -> None:
    memory = identities(views=1, momentum=0.0)
    memory.update(torch.stack([X, Y]), 0.0)
    half = (X + Y) / 2**0.5
    memory.update(half[None], 1.0)  # the last view of 0, whose average stays
    alike = memory.likeness(1, torch.tensor([0]))
    assert alike.tolist() == pytest.approx([2**-0.5])  # each view of 1 is Y, half of it in `half`
    assert memory.likeness(0, torch.tensor([1, 0])).tolist() == pytest.approx([2**-1.5, 1.0])
    assert memory.likeness(0, torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("views", [0, 1, 2, 5])
def test_two_that_are_one_go_on_under_the_older_id(views: int) -> None:
    memory = identities(views=views)
    for time in range(views):
        memory.update(X[None], float(time), boxes=box(0.2)[None])
    memory.update(X[None], 9.0, boxes=box(0.2)[None])
    for time in (10.0, 11.0):
        assert memory.update(Y[None], time, boxes=box(0.8)[None]).tolist() == [1]
    memory.join(1, 0)
    assert memory.held("ids").tolist() == [0] and memory.held("seen").tolist() == [views + 3]
    assert memory.held("last").tolist() == [11.0] and memory.held("boxes")[0, 0] == box(0.8)[0]
    assert memory.held("first").tolist() == [0.0 if views else 9.0]
    assert torch.allclose(memory.held("mean")[0], (X + Y) / 2**0.5)
    mine = memory.held("views")[0]
    assert mine.shape == (views, 3)
    assert int((mine @ Y > 0.9).sum()) == views - views // 2
    if views:
        assert torch.equal(mine[-1], Y)
    looks = (X + Y + 0.1 * Z)[None]
    assert memory.update(looks, 12.0).tolist() == [0]
    assert memory.update(Z[None], 13.0).tolist() == [2]


def test_who_is_not_held_cannot_be_joined() -> None:
    memory = identities()
    memory.update(torch.stack([X, Y]), 0.0)
    for young, old in ((0, 5), (5, 0), (1, 1)):
        with pytest.raises(ValueError, match="held|already"):
            memory.join(young, old)
    with pytest.raises(ValueError, match="not held"):
        memory.likeness(5, torch.tensor([0]))
    assert memory.held("ids").tolist() == [0, 1]


def test_of_equals_the_older_is_forgotten_first() -> None:
    memory = identities(most=3)
    memory.update(torch.stack([X, Y, Z]), 0.0)
    assert memory.update(-X[None], 1.0).tolist() == [3]
    assert memory.held("ids").tolist() == [1, 2, 3]
    assert memory.update(torch.stack([-Y, -Z]), 2.0).tolist() == [4, 5]
    assert memory.held("ids").tolist() == [3, 4, 5]


@pytest.mark.parametrize(("gap", "who"), [(0.1, 0), (5.0, 1)])
def test_a_place_counts_the_less_the_longer_ago(gap: float, who: int) -> None:
    memory = identities(alike=0.5, place=0.2)
    memory.update(X[None], 0.0, boxes=box(0.5)[None])
    turned = 0.4 * X + (1 - 0.4**2) ** 0.5 * Y
    assert memory.update(turned[None], gap, boxes=box(0.5)[None]).tolist() == [who]
