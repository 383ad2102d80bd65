"""DigitVOD: its videos are what they say, its figures are right, and no arm sees the future."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytest.importorskip("skimage", reason="photographs are scikit-image's")
pytest.importorskip("hotcoco", reason="the average precision is hotcoco's")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "vod"
NAMES = "arms detector evaluate generate heads render run tracks train".split()


@pytest.fixture(scope="module")
def vod():
    """The scripts, which import each other by name; the names are too plain to stay."""
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plain(vod):
    return vod.generate.generate(vod.generate.SCENARIOS["plain"], 6, 12, "test", 1)


def same(one, other) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def random_found(vod, videos=4, frames=6, seed=0, peaks=8):
    """Boxes that drift, tokens and classes of no meaning."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(videos, 1, peaks, 2, generator=draw) * 60
    low = low + torch.randn(videos, frames, peaks, 2, generator=draw)
    boxes = torch.cat([low, low + 24], -1).clamp(0, 96)
    objectness = torch.rand(videos, frames, peaks, generator=draw)
    objectness = objectness.sort(dim=2, descending=True).values
    objectness[..., -1] = 0  # no peak
    return vod.detector.Found(
        torch.randn(videos, frames, peaks, vod.detector.DIM, generator=draw).relu(),
        boxes,
        objectness,
        torch.randn(videos, frames, peaks, 10, generator=draw),
        torch.arange(frames).double().expand(videos, -1).clone(),
    )


def random_head(vod, kind: str, seed=0):
    """A head whose attention says something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = vod.heads.Head(vod.detector.Detector(), vod.heads.ATTENTIONS[kind]())
        for part in head.parameters():
            torch.nn.init.normal_(part, std=0.2)
    return head.eval().requires_grad_(False)


# ------------------------------------------------------------------------------ the videos


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


@settings(max_examples=50, deadline=None, derandomize=True)
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


# ------------------------------------------------------------------------------ the detector


def test_peaks_are_maxima_that_stand_apart(vod) -> None:
    objectness = torch.zeros(1, 144)
    objectness[0, [13, 14, 40, 100]] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    boxes = torch.zeros(1, 144, 4)
    boxes[..., 2:] = 20
    boxes[0, 40] += 40  # alone; 100 lies on 13, and 14 beside it in the grid
    cells, values = vod.detector.peaks(objectness, boxes)
    assert cells[0, :2].tolist() == [13, 40] and values[0, :2].tolist() == pytest.approx([0.9, 0.7])
    assert not values[0, 2:].any()


def test_targets_name_the_cell_of_a_centre_and_its_object(vod) -> None:
    boxes = torch.tensor([[[0.0, 0, 24, 24], [60, 60, 90, 90], [30, 0, 54, 24]]])
    visible = torch.tensor([[True, True, False]])
    holds, near, owner = vod.train.targets(boxes, visible)
    assert holds[0].nonzero()[:, 0].tolist() == [13, 9 * 12 + 9]
    assert near[0, 13] and owner[0, 13] == 0 and owner[0, 117] == 1
    apart = (
        (vod.detector.centres() - 12)
        .abs()
        .amax(1)
        .minimum((vod.detector.centres() - 75).abs().amax(1))
    )
    assert torch.equal(near[0], apart < vod.train.RADIUS)


def test_training_the_detector_repeats_and_leaves_the_global_generator(vod) -> None:
    before = torch.get_rng_state()
    one, two = (vod.train.train(2, videos=4).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_weights_that_are_shipped_find_digits(vod) -> None:
    assert vod.detector.WEIGHTS.stat().st_size < 4e6
    videos = vod.generate.generate(vod.generate.SCENARIOS["plain"], 10, 6, "test", 77)
    found = vod.detector.find(vod.detector.load_detector(), videos)
    judge = vod.evaluate.Judge(videos, found)
    [said] = vod.arms.single(found, []).probabilities
    ap50, ap = judge.average_precision(said)
    assert 20 < ap < ap50 < judge.average_precision(judge.oracle())[0]
    clean, degraded = judge.accuracy(said)
    assert clean > degraded + 15


def test_missing_weights_are_named_with_what_makes_them(vod, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        vod.detector.load_detector(tmp_path / "none.safetensors")


# ------------------------------------------------------------------------------ the figures


def scene(vod, boxes, labels, visible=None, motion=None):
    """Truth of one video: ``boxes`` by frame and object, ``labels`` by object."""
    boxes = torch.tensor(boxes, dtype=torch.float32)[None]
    shape = boxes.shape[:3]
    ones = torch.ones(shape)
    return vod.generate.Videos(
        torch.zeros(1, shape[1], 1, 1, 3, dtype=torch.uint8),
        torch.arange(shape[1]).double()[None],
        boxes,
        ones.bool() if visible is None else torch.tensor(visible)[None],
        torch.tensor(labels)[None],
        torch.tensor(labels)[None],
        0 * ones,
        ones if motion is None else torch.tensor(motion)[None],
    )


def seen(vod, boxes, objectness):
    """Found in one video, by frame."""
    boxes, objectness = torch.tensor(boxes)[None].float(), torch.tensor(objectness)[None]
    shape = objectness.shape
    return vod.detector.Found(
        torch.zeros(*shape, 128), boxes, objectness, torch.zeros(*shape, 10),
        torch.arange(shape[1]).double()[None],
    )  # fmt: skip


def named(classes) -> torch.Tensor:
    """Probabilities of one video that name one class for sure; -1 names none."""
    classes = torch.tensor(classes)[None]
    sure = torch.nn.functional.one_hot(classes.clamp_min(0), 10).float()
    return sure * (classes >= 0)[..., None]


HERE, THERE, ASIDE = [0, 0, 20, 20], [50, 50, 80, 80], [7, 0, 27, 20]
CASES = {
    # boxes, objectness and class of what was found in a frame with a 3 HERE and a 5 THERE; AP50
    "both found": ([HERE, THERE], [0.9, 0.8], [3, 5], 1.0),
    "one found": ([HERE, THERE], [0.9, 0.8], [3, -1], 0.5),
    "the other's class": ([HERE, THERE], [0.9, 0.8], [5, 3], 0.0),
    "twice, the worse a false one": ([HERE, HERE, THERE], [0.9, 0.8, 0.7], [3, 3, 5], 1.0),
    "a false one before it": ([ASIDE[2:] * 2, HERE, THERE], [0.9, 0.8, 0.7], [3, 3, 5], 0.75),
    "enough overlap": ([[0, 0, 20, 11], THERE], [0.9, 0.8], [3, 5], 1.0),
    "not enough": ([[0, 0, 20, 9], THERE], [0.9, 0.8], [3, 5], 0.5),
    "nothing": ([HERE, THERE], [0.9, 0.8], [-1, -1], 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_of_hand_made_frames(vod, case) -> None:
    boxes, objectness, classes, expected = CASES[case]
    videos = scene(vod, [[HERE, THERE]], [3, 5])
    found = seen(vod, [boxes], [objectness])
    said = named([classes])
    own = vod.evaluate.curves(vod.evaluate.match(found, videos, said), np.ones((1, 1)))
    assert own[0] == pytest.approx(expected)
    judge = vod.evaluate.Judge(videos, found)
    assert judge.average_precision(said)[0] == pytest.approx(100 * expected, abs=0.1)


def eleven_hundred(matched) -> float:
    """COCO's average over 101 points of recall, from our matches."""
    each = []
    for kind in range(10):
        objects = matched.objects[:, kind].sum()
        if not objects:
            continue
        rows = np.flatnonzero(matched.kind == kind)
        right = matched.right[rows[np.argsort(-matched.score[rows], kind="stable")]]
        hits = np.cumsum(right)
        precision = hits / np.arange(1, len(hits) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1] if len(hits) else precision
        at = np.searchsorted(hits / objects, np.linspace(0, 1, 101), side="left")
        each.append(np.mean([best[i] if i < len(best) else 0.0 for i in at]))
    return 100 * float(np.mean(each))


def all_points(matched) -> float:
    """The area below precision over recall, right one by right one."""
    each = []
    for kind in np.flatnonzero(matched.objects.sum(0)):
        rows = np.flatnonzero(matched.kind == kind)
        right = matched.right[rows[np.argsort(-matched.score[rows])]].tolist()
        precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
        best = [max(precision[n:]) for n in range(len(right)) if right[n]]
        each.append(sum(best) / matched.objects[:, kind].sum())
    return float(np.mean(each))


@pytest.mark.parametrize("seed", range(4))
def test_our_matches_are_those_of_hotcoco(vod, plain, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    found = random_found(vod, 6, 12, seed)
    noise = 5 * torch.randn(6, 12, 3, 2, generator=draw).repeat(1, 1, 1, 2)
    found.boxes[:, :, :3] = plain.boxes + noise * torch.rand(6, 12, 3, 1, generator=draw)
    found.boxes[:, :, 3:6] = plain.boxes + noise.flip(2)  # some near the truth, some not
    said = (2 * torch.randn(6, 12, 8, 10, generator=draw)).softmax(-1)
    matched = vod.evaluate.match(found, plain, said)
    judge = vod.evaluate.Judge(plain, found)
    theirs = judge.average_precision(said)[0]
    assert matched.right.sum() > 50 and theirs > 2
    assert theirs == pytest.approx(eleven_hundred(matched), abs=1e-6)
    own = vod.evaluate.curves(matched, np.ones((1, 6)))[0]
    assert own == pytest.approx(all_points(matched), abs=1e-5)
    assert theirs == pytest.approx(100 * own, abs=2)


def test_a_resample_is_as_if_its_videos_were_there_as_often(vod, plain) -> None:
    found = random_found(vod, 6, 12, 1)
    found.boxes[:, :, :3] = plain.boxes
    said = torch.randn(6, 12, 8, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    drawn = torch.tensor([0, 2, 2, 5, 5, 5])
    columns = [getattr(plain, f.name)[drawn] for f in fields(plain)]
    direct = vod.evaluate.match(found[drawn], type(plain)(*columns), said[drawn])
    weights = np.bincount(drawn, minlength=6)[None]
    resampled = vod.evaluate.curves(vod.evaluate.match(found, plain, said), weights)
    # The copies of a video tie with each other: as blocks here, one after the other there.
    assert resampled[0] == pytest.approx(vod.evaluate.curves(direct, np.ones((1, 6)))[0], abs=0.02)


def test_resamples_are_paired_and_repeat(vod, plain) -> None:
    found = random_found(vod, 6, 12, 1)
    found.boxes[:, :, :3] = plain.boxes
    weights = vod.evaluate.resamples(6, 40)
    assert (weights.sum(1) == 6).all() and len(np.unique(weights, axis=0)) > 30
    heads = [
        vod.evaluate.match(found, plain, torch.randn(6, 12, 8, 10).softmax(-1)) for _ in range(3)
    ]
    drawn = vod.evaluate.resampled(heads, weights)
    assert np.array_equal(drawn, vod.evaluate.resampled(heads, weights)) and drawn.std() > 0
    one = vod.evaluate.resampled(heads[:1], weights)
    assert np.allclose(one, vod.evaluate.curves(heads[0], weights))
    each = np.stack([vod.evaluate.curves(head, weights) for head in heads])
    assert (drawn >= each.min(0) - 1e-9).all() and (drawn <= each.max(0) + 1e-9).all()


def test_objects_of_another_speed_count_neither_for_nor_against(vod) -> None:
    videos = scene(vod, [[HERE, THERE]], [3, 3], motion=[[0.95, 0.1]])
    found = seen(vod, [[HERE, THERE]], [[0.9, 0.8]])
    judge = vod.evaluate.Judge(videos, found)
    both, slow_alone = named([[3, 3]]), named([[3, -1]])
    for speed, one, other in (("slow", 100, 100), ("fast", 100, 0), ("all", 100, 50)):
        assert judge.average_precision(both, speed)[0] == pytest.approx(one, abs=1)
        assert judge.average_precision(slow_alone, speed)[0] == pytest.approx(other, abs=1)
    assert np.isnan(judge.average_precision(both, "medium")[0])


def test_accuracy_is_of_objects_found_clean_and_degraded(vod) -> None:
    videos = scene(vod, [[HERE, THERE], [HERE, THERE]], [3, 5])
    videos.degraded[0, :, 1] = 0.9
    found = seen(vod, [[HERE, THERE], [HERE, [0, 60, 10, 70]]], [[0.9, 0.8], [0.9, 0.8]])
    judge = vod.evaluate.Judge(videos, found)
    assert judge.accuracy(named([[3, 5], [4, 5]])) == pytest.approx((50, 100))
    assert judge.accuracy(named([[3, 3], [3, 3]])) == pytest.approx((100, 0))
    assert judge.accuracy(judge.oracle()) == (100, 100)


# ------------------------------------------------------------------------------ tracks


def tracks_one_by_one(vod, found, said) -> torch.Tensor:
    """The same, video by video, with lists."""
    out = said.clone()
    for video in range(len(said)):
        tracks = []  # box, sum, count, last
        for now in range(said.shape[1]):
            live = [t for t in tracks if now - t["last"] <= vod.tracks.PATIENCE]
            used = set()
            for peak in range(said.shape[2]):
                if found.objectness[video, now, peak] <= 0:
                    continue
                box, mine = found.boxes[video, now, peak], said[video, now, peak]
                best, overlap = None, 0.0
                for track in live:
                    near = float(box_iou(box[None], track["box"][None]))
                    if id(track) not in used and near > overlap:
                        best, overlap = track, near
                if best is None or overlap < vod.tracks.FOLLOWS:
                    best = {"sum": torch.zeros(10), "count": 0}
                    tracks.append(best)
                used.add(id(best))
                best["before"] = best.get("box", box)
                best |= {"sum": best["sum"] + mine, "count": best["count"] + 1}
                best |= {"next": box, "last": now}
                out[video, now, peak] = best["sum"] / best["count"]
            for track in tracks:
                track["box"] = track.pop("next", track.get("box"))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_tracks_are_those_of_plain_loops(vod, seed) -> None:
    found = random_found(vod, 3, 10, seed, peaks=5)
    said = torch.randn(3, 10, 5, 10, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    ours, nbytes = vod.tracks.track_mean(found, said)
    torch.testing.assert_close(ours, tracks_one_by_one(vod, found, said))
    assert not torch.allclose(ours, said) and 0 < nbytes < 4000


def test_a_track_averages_until_it_jumps_or_is_gone_too_long(vod) -> None:
    patience = vod.tracks.PATIENCE
    for away, remembered in ((patience - 1, True), (patience, False)):
        frames = [[HERE]] * 3 + [[THERE]] * away + [[HERE]]
        found = seen(vod, frames, [[0.9]] * len(frames))
        said = named([[0], [1], [1]] + [[2]] * away + [[3]])
        out, _ = vod.tracks.track_mean(found, said)
        torch.testing.assert_close(out[0, 2, 0, :2], torch.tensor([1 / 3, 2 / 3]))
        assert out[0, 3, 0, 2] == 1  # elsewhere: another track
        assert out[0, -1, 0, 3] == (0.25 if remembered else 1)


def test_a_sure_frame_may_count_for_more(vod) -> None:
    found = seen(vod, [[HERE], [HERE]], [[0.9], [0.1]])
    said = named([[0], [1]])
    equal, sure = (vod.tracks.track_mean(found, said, weigh)[0] for weigh in ("equal", "sure"))
    assert equal[0, 1, 0, 0] == 0.5 and sure[0, 1, 0, 0] == pytest.approx(0.9)


# ------------------------------------------------------------------------------ heads


def test_a_head_starts_as_the_detector(vod) -> None:
    detector, found = vod.detector.Detector(), random_found(vod)
    logits = detector.classify(found.tokens[:, 3])
    rows = vod.heads.rows_of(
        found, torch.tensor([[0, 1]] * 4), torch.ones(4, 2).bool(), found.times[:, 3]
    )
    for kind in ("ours", "score", "appearance", "no memory"):
        head = vod.heads.Head(detector, vod.heads.ATTENTIONS[kind]())
        assert torch.equal(head(found.tokens[:, 3], found.fractions[:, 3], rows), logits)


def test_training_reads_what_was_found_before_and_nothing_else(vod) -> None:
    found = random_found(vod, 20, 12)
    draw = torch.Generator().manual_seed(0)
    counts, nothing = set(), 0
    for _ in range(40):
        frames = 1 + torch.randint(11, (20, 1), generator=draw)
        rows = vod.heads.past(found, frames, draw)
        if rows is None:
            nothing += 1
            continue
        assert (rows.ages[rows.mask] > 0).all()
        for video in range(20):
            mine = rows.mask[video]
            times = rows.times[video][mine].unique()
            counts.add(len(times))
            at = rows.times[video].long() * 8 + torch.arange(8).repeat(rows.mask.shape[1] // 8)
            every = found.tokens[video].flatten(0, 1)
            assert torch.equal(rows.tokens[video][mine], every[at[mine]])
            assert (rows.scores[video][mine] > 0).all()
    assert counts == set(range(1, 9)) and 4 <= nothing <= 18


def test_the_published_training_looks_to_both_sides(vod) -> None:
    found = random_found(vod, 20, 12)
    frames = torch.full((20, 1), 5)
    rows = vod.heads.around(found, frames, torch.Generator().manual_seed(0))
    ages = rows.ages[:, ::8]
    assert (ages[:, 0] > 0).all() and (ages[:, 1] < 0).all() and len(ages.unique()) > 6
    last = vod.heads.around(found, torch.full((20, 1), 11), torch.Generator().manual_seed(0))
    assert (last.ages[:, 8] == 0).all()  # there is nothing after the end


def test_training_a_head_repeats_and_learns(vod) -> None:
    detector, found = vod.detector.Detector(), random_found(vod, 30, 8)
    truth = torch.randint(10, (30, 1, 1), generator=torch.Generator().manual_seed(0))
    truth = truth.expand(30, 8, 8)
    found.tokens[:, ::2] += 4 * torch.nn.functional.one_hot(truth[:, ::2], 128).float()
    before = torch.get_rng_state()
    heads = [vod.heads.train_head("ours", detector, found, truth, 30, 0) for _ in range(2)]
    one, two = (head.state_dict() for head in heads)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["attention.output.weight"].abs().sum() > 0
    other = vod.heads.train_head("ours", detector, found, truth, 30, 1).state_dict()
    assert not torch.equal(one["classify.weight"], other["classify.weight"])


def test_the_class_of_a_box_is_that_of_the_object_it_shows(vod) -> None:
    videos = scene(vod, [[HERE, THERE]], [3, 5], visible=[[True, False]])
    found = seen(vod, [[HERE, THERE, [0, 0, 20, 9], HERE]], [[0.9, 0.8, 0.7, 0.0]])
    assert vod.heads.truth_of(found, videos).tolist() == [[[3, -1, -1, -1]]]


# ------------------------------------------------------------------------------ arms


def every_arm(vod):
    return [*vod.arms.DURABLE, *vod.arms.CONTROLS, *vod.arms.SWEEP]


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


# ------------------------------------------------------------------------------ the table


def test_a_tiny_run_prints_all_rows_and_verdicts(vod, capsys) -> None:
    small = vod.run.Settings(
        clips=6, videos=3, frames=4, steps=2, seeds=2, resamples=10, tracks=("low rate, shuffled",)
    )
    results = vod.run.run(small, vod.detector.load_detector())
    printed = capsys.readouterr().out
    plain_rows = [r for r in results if r.track == "plain"]
    assert [r.arm for r in plain_rows] == [a.name for a in every_arm(vod)] + ["oracle class"]
    for result in results:
        assert f"| {result.arm} | {result.ap50:.1f} (" in printed
        assert result.causal is None or result.causal == (result.arm != "MAMBA, its protocol")
        assert result.causal is None or result.milliseconds > 0
    durable = [a.name for a in vod.arms.DURABLE] + ["oracle class"]
    assert [r.arm for r in results if r.track == "low rate, shuffled"] == durable
    for claim, *_ in vod.run.CRITERIA:
        assert f"* {claim}: " in printed
    of = {r.arm: r for r in plain_rows}
    assert of["oracle class"].ap50 > of["single frame"].ap50
    assert of["score, 16 rows"].kilobytes == of["fifo, 16 rows"].kilobytes > 0
    assert of["single frame"].kilobytes == 0


def test_training_clips_are_as_many_as_asked(vod) -> None:
    found, truth = vod.run.training_clips(23, vod.detector.load_detector())
    assert len(found.tokens) == len(truth) == 23 and (truth >= 0).any()


@pytest.mark.parametrize(
    ("gain", "spread", "holds"),
    [(3.0, 0.1, [1, 0, 1, 1, 1]), (9.0, 0.1, [1, 1, 1, 1, 1]), (3.0, 5.0, [0, 0, 0, 0, 0])],
)
def test_a_claim_holds_only_if_its_interval_does(vod, gain, spread, holds) -> None:
    noise = np.random.default_rng(0).normal(0, spread, 200)

    def result(name: str, better: bool):
        drawn = 50 + gain * better + noise * better
        return vod.run.Result(
            "plain", name, 50 + gain * better, (0, 0), {}, 0, 0, 0, 0, resampled=drawn
        )

    results = {}
    for _, one, other, *_ in vod.run.CRITERIA:
        results |= {one: result(one, True), other: result(other, False)}
    results["single frame"] = result("single frame", False)
    results[vod.arms.WRONG] = replace(result("", False), ap50=50 - gain)
    results[vod.arms.WRONG].resampled = 50 - gain - noise
    lines = vod.run.verdicts(results)
    assert [": holds" in line for line in lines] == [bool(h) for h in holds]
