"""No arm of DigitVOD sees the future."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from small_vod import every_arm, random_found, random_head


def test_no_arm_but_the_published_protocol_sees_the_future(vod) -> None:
    found = random_found(vod, 4, 8)
    for arm in every_arm(vod):
        heads = [random_head(vod, arm.head)] if arm.head else []
        ahead = arm.name == "MAMBA, its protocol"
        assert vod.run.is_causal(arm, found, heads) != ahead, arm.name


@dataclass(frozen=True)
class Bug:
    """A memory with a planted bug, made of an arm that has none."""

    arm: object
    what: str

    def __call__(self, found, heads):
        if self.what == "the next frame is written early":
            early = replace(found, tokens=found.tokens.roll(-1, 1))
            return self.arm(early, heads)
        if self.what == "a mean over the whole video":
            said = self.arm(found, heads).probabilities
            return SimpleNamespace(probabilities=[s / s.sum((1, 2), keepdim=True) for s in said])
        return self.arm(found, heads)


@pytest.mark.parametrize("what", ["the next frame is written early", "a mean over the whole video"])
def test_an_arm_that_sees_the_future_is_caught(vod, what) -> None:
    found, heads = random_found(vod, 4, 8), [random_head(vod, "ours")]
    for run, causal in ((Bug(vod.arms.Remember(), what), False), (vod.arms.Remember(), True)):
        assert vod.run.is_causal(vod.arms.Arm("x", run, "ours"), found, heads) == causal


def test_a_frame_never_attends_to_itself(vod) -> None:
    found, head = random_found(vod, 3, 4), random_head(vod, "ours")
    [without] = vod.arms.single(found, [head]).probabilities
    [said] = vod.arms.Remember()(found, [head]).probabilities
    torch.testing.assert_close(said[:, 0], without[:, 0])
    assert not torch.allclose(said[:, 1], without[:, 1])


def test_what_is_read_is_what_was_kept_and_whose(vod) -> None:
    found = random_found(vod, 3, 6)
    seen_rows = {}

    class Spy(torch.nn.Module):
        def forward(self, tokens, boxes, rows):
            seen_rows.setdefault(self, []).append(rows)
            return torch.zeros(*tokens.shape[:2], 10)

    def reads(arm):
        spy = Spy()
        outcome = arm(found, [spy])
        return seen_rows[spy], outcome.nbytes

    rows, nbytes = reads(vod.arms.Remember("fifo", 1000))
    assert not rows[0].mask.any()
    torch.testing.assert_close(
        rows[3].tokens[1][rows[3].mask[1]], found.tokens[1, :3, :7].flatten(0, 1).half()
    )
    assert rows[3].ages[1][rows[3].mask[1]].tolist() == [3.0] * 7 + [2.0] * 7 + [1.0] * 7
    wrong, _ = reads(vod.arms.Remember("fifo", 1000, wrong=True))
    assert torch.equal(wrong[3].tokens[1], rows[3].tokens[0])
    assert torch.equal(wrong[3].boxes[0], rows[3].boxes[2])
    window, of_window = reads(vod.arms.Remember("fifo", 1000, window=2))
    assert (window[5].ages[window[5].mask] <= 2).all() and window[5].mask.sum() == 3 * 14
    assert of_window < nbytes
    sizes = {}
    for evict in ("score", "fifo", "random", "reservoir"):
        rows, sizes[evict] = reads(vod.arms.Remember(evict, 16))
        assert rows[5].mask.sum(1).max() <= 16
    assert len(set(sizes.values())) == 1  # equal bytes
    sure, _ = reads(vod.arms.Remember("fifo", 1000, sure=0.5))
    assert (found.objectness[:, :5] > 0.5).sum() == sure[5].mask.sum()


def test_enhanced_rows_feed_on_themselves_as_published(vod) -> None:
    found, head = random_found(vod, 2, 12), random_head(vod, "published")
    outcomes = [
        vod.arms.AsPublished(ahead=False, enhanced=enhanced)(found, [head])
        for enhanced in (True, False)
    ]
    enhanced, raw = (outcome.probabilities[0] for outcome in outcomes)
    assert torch.equal(enhanced[:, 0], raw[:, 0]) and torch.equal(enhanced[:, 1], raw[:, 1])
    assert not torch.allclose(enhanced[:, 4], raw[:, 4])
    capacity = vod.arms.ROWS + 7  # soft, as published
    assert all(o.nbytes <= capacity * (128 * 4 + 16) for o in outcomes)
