"""Training a memory into a detector: what is read, how much of it, and what stays untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_detector import DIM, make, picture, run
from torch import Tensor

from vismem.memory.feature import FeatureConfig
from vismem.models.detector import MemoryDetector

CLIPS, FRAMES = 3, 4
AGES = torch.arange(1.0, FRAMES + 1).expand(CLIPS, -1)
KEY = [picture(n) for n in range(CLIPS)]
REFS = [[picture(10 * n + m) for m in range(1, FRAMES + 1)] for n in range(CLIPS)]


def reads(detector: MemoryDetector, times: int = 200) -> list[dict[str, Tensor]]:
    """What the enhancement was given, step by step."""
    seen: list[dict[str, Tensor]] = []
    honest = detector.enhancement.forward

    def watch(x: Tensor, keys: Tensor, **more: Tensor) -> Tensor:
        seen.append({"keys": keys} | more)
        return honest(x, keys, **more)

    detector.enhancement.forward = watch
    for _ in range(times):
        detector.forward_train(KEY, REFS, AGES, None)
    detector.enhancement.forward = honest
    return seen


def test_how_many_frames_are_read_is_drawn() -> None:
    masks = torch.stack([seen["index"] >= 0 for seen in reads(make(without=0.25))])
    frames = masks.view(len(masks), CLIPS, FRAMES, -1)
    assert (frames.all(-1) == frames.any(-1)).all()  # whole frames
    counts = frames.any(-1).sum(-1)
    share = torch.bincount(counts.flatten(), minlength=FRAMES + 1) / counts.numel()
    assert abs(float(share[0]) - 0.25) < 0.07
    assert ((share[1:] - 0.75 / FRAMES).abs() < 0.07).all()
    assert (frames.any(-1).float().mean((0, 1)) > 0.3).all()  # each of them at times
    assert (counts[:, 0] != counts[:, 1]).any()  # each clip by itself


@pytest.mark.parametrize(("without", "least"), [(0.0, 1), (1.0, 0)])
def test_the_share_without_memory_may_be_none_or_all(without: float, least: int) -> None:
    counts = torch.stack([(seen["index"] >= 0).sum(1) for seen in reads(make(without=without), 30)])
    assert bool((counts >= least).all()) and bool((counts == 0).all()) == (without == 1.0)


def test_without_memory_the_detector_is_the_plain_one() -> None:
    detector = make(without=1.0)
    detector.adapter.model.eval()
    plain = detector.adapter.model(torch.stack(KEY))
    assert torch.equal(detector.forward_train(KEY, REFS, AGES, None), plain)
    with_memory = make(without=0.0)
    with_memory.adapter.model.eval()
    assert not torch.equal(with_memory.forward_train(KEY, REFS, AGES, None), plain)


def test_training_reads_what_a_stream_would_hold() -> None:
    """The same rows, scores, boxes and ages as `step` after the same frames."""
    config = FeatureConfig(DIM, quota=4, alike=2.0)
    detector = make(memory=config)
    for clip, refs in enumerate(REFS):
        for number, ref in enumerate(reversed(refs)):
            detector.step(ref, float(number), str(clip))
    (seen,) = reads(make(memory=config, without=0.0), 1)
    assert seen["keys"].shape == (CLIPS, FRAMES * 4, DIM)
    for clip in range(CLIPS):
        held = detector.memory(str(clip)).snapshot()
        order = (held.times.max() + 1 - held.times).argsort(stable=True)  # newest first
        assert torch.allclose(seen["keys"][clip], held.tokens[order].float(), atol=1e-3)
        assert torch.equal(seen["key_scores"][clip], held.scores[order])
        assert torch.equal(seen["key_boxes"][clip], held.boxes[order])
        ages = held.times.max() + 1 - held.times[order]
        assert torch.equal(seen["ages"][clip], ages.float())


def test_earlier_frames_are_evaluated_and_give_no_gradient() -> None:
    detector = make(without=0.0)
    model = detector.adapter.model.train()
    model.judge.eval()
    one, other = reads(detector, 2)
    assert torch.equal(one["keys"], other["keys"])  # no dropout among the rows
    assert not one["keys"].requires_grad
    assert model.training and model.drop.training and not model.judge.training
    output = detector.forward_train(KEY, REFS, AGES, None)
    assert (output == 0).all(-1).any() or model.seen.eq(0).any()  # but in the key frame
    output.square().sum().backward()
    assert detector.enhancement.output.weight.grad.abs().max() > 0
    assert model.look.weight.grad.abs().max() > 0


def test_training_touches_no_stream_and_is_repeatable() -> None:
    one, other = make(), make()
    run(one, range(3))
    before = one.state_dict()
    drawn = [[seen["index"] for seen in reads(detector, 5)] for detector in (one, other)]
    assert all(map(torch.equal, *drawn))
    assert one.streams == ("camera",)
    assert all(torch.equal(part, before[name]) for name, part in one.state_dict().items())


def test_a_head_trained_on_memory_learns_what_only_memory_knows() -> None:
    """The class was visible in an earlier frame and is not in this one."""
    detector = make(trained=False, without=0.0, memory=FeatureConfig(DIM, quota=1))
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(detector.enhancement.parameters(), 1e-2)
    right = []
    for _ in range(150):
        hidden = torch.randint(2, (16,), generator=draw)
        refs = [[(2.0 * h - 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)] for h in hidden]
        output = detector.forward_train([torch.zeros(3, 1, 1)] * 16, refs, torch.ones(16, 1), None)
        logits = output[:, 0, :2]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, hidden).backward()
        optimizer.step()
        right.append(float((logits.argmax(1) == hidden).float().mean()))
    assert np.mean(right[-30:]) > 0.95 and np.mean(right[:3]) < 0.75


@pytest.mark.parametrize(
    "change",
    [
        {"ages": -AGES},
        {"ages": AGES * torch.nan},
        {"ages": AGES[:2]},
        {"ages": AGES[:, :2]},
        {"ages": AGES[0]},
        {"refs": REFS[:2]},
        {"refs": [REFS[0], REFS[1], REFS[2][:1]]},
        {"key": KEY[:1]},
        {"key": [], "refs": [], "ages": AGES[:0]},
        {"refs": [[], [], []], "ages": AGES[:, :0]},
    ],
)
def test_clips_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    given = {"key": KEY, "refs": REFS, "ages": AGES, "targets": None} | change
    with pytest.raises(ValueError):
        make().forward_train(**given)
