"""The figures of DigitVOD are right."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small_vod import ASIDE, HERE, THERE, every_arm, named, random_found, scene, seen

# ---------------------------------------------------------------------- the figures


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


# ---------------------------------------------------------------------- the table


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
