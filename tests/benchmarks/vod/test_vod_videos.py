"""The videos of DigitVOD are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vod import random_found, same


def test_equal_seeds_give_equal_videos_whatever_else_is_drawn(vod, plain) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = vod.generate.generate(vod.generate.SCENARIOS["plain"], 6, 12, "test", 1)
    assert same(plain, again) and torch.equal(torch.get_rng_state(), before)
    other = vod.generate.generate(vod.generate.SCENARIOS["plain"], 6, 12, "test", 2)
    assert not torch.equal(plain.images, other.images)
    assert not torch.equal(plain.boxes, other.boxes)


def test_the_first_videos_do_not_depend_on_how_many_follow(vod) -> None:
    chunk = vod.generate.CHUNK
    few, many = (
        vod.generate.generate(vod.generate.SCENARIOS["plain"], count, 2, "train", 3)
        for count in (chunk, chunk + 2)
    )
    assert same(few, many[:chunk]) and len(many.images) == chunk + 2
    assert not torch.equal(many.boxes[0], many.boxes[chunk])


def test_training_and_test_have_no_digit_and_no_photograph_in_common(vod) -> None:
    render = vod.render
    numbers = {split: set(render.digits(split)[2].tolist()) for split in ("train", "test")}
    assert not numbers["train"] & numbers["test"]
    assert len(numbers["train"] | numbers["test"]) == 1797
    assert all(number % 5 == 0 for number in numbers["test"])
    names = {split: {name for _, name in render.PHOTOS[split]} for split in ("train", "test")}
    assert not names["train"] & names["test"]
    assert not any("right" in name for name in names["train"] | names["test"])  # of a stereo pair
    pictures = {s: {p.numpy().tobytes() for p in render.photos(s)} for s in ("train", "test")}
    assert len(pictures["train"]) == 7 and len(pictures["test"]) == 6
    assert not pictures["train"] & pictures["test"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_videos_show_the_digits_and_photographs_of_their_split(vod, split) -> None:
    videos = vod.generate.generate(vod.generate.SCENARIOS["plain"], 20, 2, split, 4)
    assert ((videos.digits % 5 == 0) == (split == "test")).all()
    from sklearn.datasets import load_digits

    assert torch.equal(videos.labels, torch.from_numpy(load_digits().target).long()[videos.digits])
    crops = vod.render.backgrounds(4, 2, split, vod.render.Draw(1), moves=True)
    for crop in (crops[:, 0] * 255).round().byte():
        patch = crop[:8, :8].sort(-1).values  # colours are exchanged, the picture may be mirrored
        found = False
        for photo in vod.render.photos(split):
            for picture in (photo, photo.flip(1)):
                windows = picture.sort(-1).values.unfold(0, 8, 1).unfold(1, 8, 1)
                target = patch.permute(2, 0, 1)
                found = found or bool((windows == target).flatten(2).all(-1).any())
        assert found


def test_a_digit_is_drawn_where_its_box_is(vod) -> None:
    corner = torch.tensor([30.0, 20.0]).expand(1, 1, 1, 2)
    size = torch.tensor([[24.0]])
    ink = torch.zeros(1, 1, 8, 8)
    ink[..., 0, 7] = 1  # upper right cell of the digit
    look = torch.ones(1, 1, 3)
    objects = vod.render.Objects(
        ink, look, look, size, torch.zeros(1, 1, 2), corner, torch.ones(1, 1, 1)
    )
    digit, plate = vod.render.strokes(objects, torch.zeros(1, 1, 1))
    line = torch.arange(96) + 0.5
    for mask, x, y, area in ((plate, 42.0, 32.0, 24.0**2), (digit, 50.4, 23.6, 2.4**2)):
        mask = mask[0, 0, 0]
        assert mask.sum() == pytest.approx(area, rel=1e-3)
        assert (mask.sum(0) @ line / mask.sum()) == pytest.approx(x, abs=0.01)
        assert (mask.sum(1) @ line / mask.sum()) == pytest.approx(y, abs=0.01)
    blurred, _ = vod.render.strokes(objects, torch.ones(1, 1, 1))
    assert blurred.sum() == pytest.approx(float(digit.sum()), rel=1e-3)
    assert blurred.max() < digit.max() / 2


def test_motion_blurs_along_the_way(vod) -> None:
    look, flag = torch.ones(1, 1, 3), torch.ones(1, 1, 1)
    still, moving = (
        vod.render.strokes(
            vod.render.Objects(
                torch.ones(1, 1, 8, 8), look, look, torch.tensor([[24.0]]),
                torch.tensor([[[speed, 0.0]]]), torch.full((1, 1, 1, 2), 30.0), flag,
            ),
            torch.zeros(1, 1, 1),
        )[1][0, 0, 0]
        for speed in (0.0, 8.0)
    )  # fmt: skip

    def width(mask):
        return (mask.sum(0) > 0.5).sum(), (mask.sum(1) > 0.5).sum()

    assert width(moving)[0] > width(still)[0] and width(moving)[1] == width(still)[1]


def test_a_bar_hides_its_share_of_the_object(vod) -> None:
    look, one = torch.ones(1, 1, 3), torch.ones(1, 1, 1)
    objects = vod.render.Objects(
        torch.ones(1, 1, 8, 8), look, look, torch.tensor([[20.0]]), torch.zeros(1, 1, 2),
        torch.full((1, 1, 1, 2), 30.0), one,
    )  # fmt: skip
    for upright, shape in ((True, (20, 8)), (False, (8, 20))):
        condition = vod.render.Condition(
            one, one > 0, torch.tensor(upright).expand(1, 1, 1), 0.5 * one, 0.4 * one, one
        )
        mask = vod.render.bars(objects, condition)[0, 0, 0]
        assert mask.sum() == pytest.approx(160, rel=1e-3)
        assert ((mask > 0.5).any(1).sum(), (mask > 0.5).any(0).sum()) == shape
    none = replace(condition, barred=one < 0)
    assert not vod.render.bars(objects, none).any()


def test_boxes_stay_in_the_frame_and_times_are_sorted(vod) -> None:
    for scenario in vod.generate.SCENARIOS.values():
        videos = vod.generate.generate(scenario, 3, 24, "train", 7)
        assert (videos.boxes >= -1e-3).all() and (videos.boxes <= 96 + 1e-3).all()
        assert (videos.times.diff(dim=1) > 0).all() and videos.times.dtype == torch.float64
        assert videos.visible.any(2).float().mean() > 0.5
        assert videos.images.shape == (3, 24, 96, 96, 3)


def test_the_low_rate_moves_farther_between_frames(vod) -> None:
    slow, fast = (
        vod.generate.generate(vod.generate.SCENARIOS[name], 20, 6, "train", 1)
        for name in ("plain", "low rate")
    )
    assert torch.equal(slow.times * 6, fast.times)
    assert fast.motion[fast.visible].mean() < slow.motion[slow.visible].mean() - 0.2


def test_who_leaves_returns_elsewhere(vod) -> None:
    videos = vod.generate.generate(vod.generate.SCENARIOS["returning"], 12, 24, "train", 2)
    for visible in videos.visible:
        for number in range(int(visible[0].sum())):
            there = visible[:, number].int()
            away = int((there == 0).sum())
            assert 5 <= away <= 15 and there[0] == 1 and there[-1] == 1
            assert int((there.diff() != 0).sum()) == 2
    gone = ~videos.visible & videos.visible[:, :1]
    before = (gone[:, 1:] & ~gone[:, :-1]).nonzero()
    jumps = []
    for video, frame, number in before.tolist():
        back = frame + 1 + int(gone[video, frame + 1 :, number].sum())
        apart = videos.boxes[video, back, number] - videos.boxes[video, frame, number]
        jumps.append(float(apart[:2].norm()))
    assert np.median(jumps) > 15


@pytest.mark.parametrize(("name", "alike"), [("crossing", True), ("ambiguous", False)])
def test_a_pair_meets_half_way(vod, name, alike) -> None:
    videos = vod.generate.generate(vod.generate.SCENARIOS[name], 12, 24, "train", 2)
    assert torch.equal(videos.visible.sum(2), torch.full((12, 24), 2))
    assert ((videos.labels[:, 0] == videos.labels[:, 1]) == alike).all()
    assert (videos.digits[:, 0] != videos.digits[:, 1]).all()
    size = videos.boxes[:, 0, :2, 2] - videos.boxes[:, 0, :2, 0]
    torch.testing.assert_close(size[:, 0], size[:, 1])
    steps = videos.boxes[:, 12, :2, :2] - videos.boxes[:, 11, :2, :2]
    torch.testing.assert_close(steps[:, 0], -steps[:, 1], atol=1e-3, rtol=0)
    assert (steps[:, 0].norm(dim=-1) > 0.9).all()
    apart = (videos.boxes[:, :, 0, :2] - videos.boxes[:, :, 1, :2]).norm(dim=-1)
    middle = apart[:, 11:13].mean(1)
    assert middle.median() < 10 and (apart[:, 0] > middle).float().mean() > 0.8


def test_a_camera_trap_stands_still_and_waits(vod) -> None:
    videos = vod.generate.generate(vod.generate.SCENARIOS["camera trap"], 8, 24, "train", 2)
    gaps = videos.times.diff(dim=1)
    assert 0.5 < (gaps == 1).float().mean() < 0.85 and gaps.max() > 600
    assert videos.visible.any(2).all()  # an empty frame is no visit
    assert not videos.visible[:, :, 0].all()
    # A photograph that stands still has the same median colour in each half, but for the noise.
    other = vod.generate.generate(vod.generate.SCENARIOS["plain"], 8, 24, "train", 2)
    still, panned = (
        (v.images[:, :12].float().median(1).values - v.images[:, 12:].float().median(1).values)
        .abs()
        .flatten(1)
        .median(1)
        .values
        for v in (videos, other)
    )
    assert still.median() <= 3 < 5 < panned.median()
    new = gaps > 1
    jumps = (videos.boxes[:, 1:, :, :2] - videos.boxes[:, :-1, :, :2]).norm(dim=-1).mean(2)
    assert jumps[new].mean() > 4 * jumps[~new].mean()


def test_half_of_what_is_seen_is_degraded_and_states_last(vod) -> None:
    videos = vod.generate.generate(vod.generate.SCENARIOS["plain"], 20, 12, "train", 3)
    assert 0.55 < (videos.degraded > 0.5).float().mean() < 0.75
    changed = (videos.degraded.diff(dim=1) != 0).float().mean()
    assert 0.2 < changed < 0.3


@settings(max_examples=50, derandomize=True)
@given(st.floats(-1e3, 1e3), st.floats(1, 90))
def test_a_path_bounces_between_its_ends(vod, position, span) -> None:
    at = vod.render.bounce(torch.tensor(position), torch.tensor(span))
    assert -1e-3 <= at <= span + 1e-3
    if 0 <= position <= span:
        assert at == pytest.approx(position, abs=1e-3)


def test_a_state_holds_until_it_is_renewed(vod) -> None:
    renewed = torch.tensor([1, 0, 1, 0, 0, 1]).bool()[None, :, None]
    drawn = torch.arange(6.0)[None, :, None]
    assert vod.generate.held(renewed, drawn)[0, :, 0].tolist() == [0, 0, 2, 2, 2, 5]


def test_motion_is_the_overlap_with_oneself_around(vod) -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]])
    visible = torch.ones(1, 3, 1, dtype=torch.bool)
    motion = vod.generate.motion_overlap(box[None, :, None], visible)[0, :, 0]
    torch.testing.assert_close(motion, torch.tensor([1 / 6, 1 / 3, 1 / 6]))
    visible[0, 2] = False
    motion = vod.generate.motion_overlap(box[None, :, None], visible)[0, :, 0]
    torch.testing.assert_close(motion[:2], torch.tensor([1 / 3, 1 / 3]))
    still = box[:1].expand(1, 30, 1, 4)
    far = still.clone()
    far[:, 20:] += 50
    seen = torch.ones(1, 30, 1, dtype=torch.bool)
    assert (vod.generate.motion_overlap(still, seen) == 1).all()
    motion = vod.generate.motion_overlap(far, seen)[0, :, 0]
    assert motion[9] == 1 and motion[10] < 1 and motion[29] == pytest.approx(0.9)


def test_another_order_moves_the_truth_with_the_frames(vod, plain) -> None:
    order = torch.rand(6, 12, generator=torch.Generator().manual_seed(0)).argsort(1)
    moved = plain.reordered(order)
    for video in range(6):
        for place, frame in enumerate(order[video].tolist()):
            for name in ("images", "boxes", "visible", "degraded", "motion"):
                one, other = getattr(moved, name), getattr(plain, name)
                assert torch.equal(one[video, place], other[video, frame])
    assert torch.equal(moved.times, plain.times)
    found = random_found(vod, 6, 12)
    assert torch.equal(found.reordered(order).tokens[2, 3], found.tokens[2, order[2, 3]])
