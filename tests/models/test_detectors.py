"""Each supported detector, as its makers wrote it, with a memory: what changes and what may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_enhancement import random_weights
from tiny_detectors import DETECTORS, pictures, tiny_detector
from torch import Tensor, nn

from vismem.errors import UsageError
from vismem.memory.feature import FeatureConfig
from vismem.models.detector import MemoryDetector
from vismem.models.detectors import FasterRCNNAdapter, RTDetrAdapter, adapter_of

EACH = pytest.mark.parametrize("name", DETECTORS)
DETRS = pytest.mark.parametrize("name", [name for name in DETECTORS if name != "faster_rcnn"])


class Watched:
    """A detector with memory, and all that its model gives out inside."""

    def __init__(self, name: str, **options: Any) -> None:
        self.model = tiny_detector(name)
        self.detector = MemoryDetector.wrap(self.model, **options)
        self.seen: dict[str, Any] = {}
        parts: dict[str, nn.Module] = {"class": self.detector.adapter.class_layer}
        if name == "faster_rcnn":
            parts["box"] = self.model.roi_heads.box_predictor.bbox_pred
        else:
            parts["model"] = self.model
        for part, module in parts.items():
            module.register_forward_hook(
                lambda module, arguments, output, part=part: self.seen.__setitem__(part, output)
            )

    @property
    def logits(self) -> Tensor:
        return self.seen["class"]

    @property
    def boxes(self) -> Tensor:
        return self.seen["box"] if "box" in self.seen else self.seen["model"].pred_boxes

    def plain(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the model called by itself."""
        with torch.no_grad():
            self.detector.adapter.run(self.detector.adapter.prepare([picture]))
        return self.logits, self.boxes

    def learn(self) -> None:
        random_weights(self.detector.enhancement)


@EACH
def test_until_it_is_trained_nothing_changes_to_the_bit(name: str) -> None:
    watched = Watched(name)
    for time, picture in enumerate(pictures(4)):
        found = watched.detector.step(picture, float(time))
        logits, boxes = watched.logits, watched.boxes
        plain_logits, plain_boxes = watched.plain(picture)
        assert torch.equal(logits, plain_logits) and torch.equal(boxes, plain_boxes)
        with torch.no_grad():
            outputs = watched.detector.adapter.run(watched.detector.adapter.prepare([picture]))
        boxes, scores, labels = watched.detector.adapter.found(outputs, [(64, 96)])[0]
        assert np.array_equal(found.boxes, boxes.numpy())
        assert np.array_equal(found.scores, scores.numpy())
        assert np.array_equal(found.labels, labels.numpy()) and len(found)
    assert len(watched.detector.memory()) > 0


@EACH
def test_once_it_is_trained_scores_change_and_boxes_do_not(name: str) -> None:
    watched = Watched(name)
    watched.learn()
    for time, picture in enumerate(pictures(3)):
        watched.detector.step(picture, float(time))
        logits, boxes = watched.logits, watched.boxes
        plain_logits, plain_boxes = watched.plain(picture)
        assert torch.equal(boxes, plain_boxes)
        # The first frame has nothing to look at: a frame never sees itself.
        assert torch.equal(logits, plain_logits) == (time == 0)
        assert logits.isfinite().all()


@DETRS
def test_only_the_last_layer_is_enhanced(name: str) -> None:
    watched = Watched(name)
    watched.learn()
    first, second = pictures(2)
    watched.detector.step(first, 0.0)
    watched.detector.step(second, 1.0)
    enhanced = watched.seen["model"]
    watched.plain(second)
    plain = watched.seen["model"]
    assert not torch.equal(enhanced.logits, plain.logits)
    assert torch.equal(enhanced.intermediate_logits[:, :-1], plain.intermediate_logits[:, :-1])
    assert torch.equal(enhanced.last_hidden_state, plain.last_hidden_state)


@DETRS
def test_boxes_of_rows_are_those_that_are_given_out(name: str) -> None:
    watched = Watched(name)
    picture = pictures(1)[0]
    found = watched.detector.step(picture, 0.0)
    centre, size = watched.boxes[0].split(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
    assert corners.std(0).min() > 0.01  # they differ from each other
    held = watched.detector.memory().snapshot()
    apart = (held.boxes[:, None] - corners).abs().amax(-1)
    assert len(held) and float(apart.amin(1).max()) < 1e-5
    # And so are scores and labels, which the memory could not change in the first frame.
    query = apart.argmin(1)
    scores, labels = watched.logits[0].sigmoid().max(-1)
    assert torch.equal(held.scores, scores[query]) and torch.equal(held.labels, labels[query])
    scale = torch.tensor([96.0, 64.0, 96.0, 64.0])
    best = torch.from_numpy(found.boxes[0]) / scale
    assert (best - corners).abs().amax(-1).min() < 0.1


def test_rows_of_faster_rcnn_are_proposals() -> None:
    watched = Watched("faster_rcnn")
    kept: list[Tensor] = []
    pool = watched.model.roi_heads.box_roi_pool
    pool.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[1][0]))
    features: list[Tensor] = []
    layer = watched.detector.adapter.class_layer
    layer.register_forward_hook(lambda module, arguments, output: features.append(arguments[0]))
    watched.detector.step(pictures(1)[0], 0.0)
    held = watched.detector.memory().snapshot()
    row = int((features[0][:, None].half() == held.tokens[0]).all(-1).squeeze().nonzero()[0, 0])
    scores = watched.logits.softmax(-1)[:, 1:]
    size = torch.tensor([96.0, 64.0, 96.0, 64.0])
    assert torch.allclose(held.boxes[0], (kept[0][row] / size).clamp(0, 1), atol=1e-5)
    assert torch.allclose(held.scores[0], scores[row].max())
    assert int(held.labels[0]) == int(scores[row].argmax()) + 1


@EACH
def test_removed_it_leaves_no_trace(name: str) -> None:
    def hooks(model: nn.Module) -> int:
        return sum(len(p._forward_pre_hooks) + len(p._forward_hooks) for p in model.modules())

    model = tiny_detector(name)
    before = hooks(model)
    detector = MemoryDetector.wrap(model)
    assert hooks(model) > before
    detector.remove()
    assert hooks(model) == before
    with pytest.raises(ValueError, match="removed"):
        detector.step(pictures(1)[0], 0.0)
    MemoryDetector.wrap(model).step(pictures(1)[0], 0.0)


@EACH
def test_streams_in_one_batch_are_as_streams_apart(name: str) -> None:
    together, apart = (MemoryDetector.wrap(tiny_detector(name)) for _ in range(2))
    for detector in (together, apart):
        random_weights(detector.enhancement)
    streams = ("a", "b", "c")
    apart.step(pictures(1, seed=9)[0], 0.0, "b")  # b knows something before the others
    together.step(pictures(1, seed=9)[0], 0.0, "b")
    for time in range(1, 4):
        frames = pictures(3, seed=time)
        batch = together.step_batch(list(frames), [float(time)] * 3, streams)
        for frame, stream, found in zip(frames, streams, batch, strict=True):
            alone = apart.step(frame, float(time), stream)
            assert found.stream == stream and found.time == time
            assert len(found) == len(alone)
            assert np.allclose(found.scores, alone.scores, atol=1e-4)
    for stream in streams:
        one, other = (d.memory(stream).snapshot() for d in (together, apart))
        assert torch.equal(one.labels, other.labels) and torch.equal(one.times, other.times)
        assert torch.allclose(one.tokens.float(), other.tokens.float(), atol=1e-2)


@EACH
def test_whole_pictures_are_scaled_and_boxes_scaled_back(name: str) -> None:
    model = tiny_detector(name)
    adapter = adapter_of(model)
    if isinstance(adapter, RTDetrAdapter):
        adapter.size = (64, 96)
    detector = MemoryDetector.wrap(model, adapter=adapter)
    small = (pictures(1)[0] * 255).byte()
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    one = detector.step(small.permute(1, 2, 0).numpy(), 0.0, "small")
    two = detector.step(large.permute(1, 2, 0), 0.0, "large")
    assert 48 < one.boxes.max() < 110
    best = min(3, len(one), len(two))
    assert best and np.allclose(one.boxes[:best] * 2, two.boxes[:best], atol=8)
    if name != "faster_rcnn":  # it scales by itself, and ready pictures as well
        ready = detector.step(small / 255, 0.0, "ready")
        assert np.allclose(one.scores, ready.scores, atol=1e-5)


@EACH
def test_a_picture_of_one_pixel(name: str) -> None:
    detector = MemoryDetector.wrap(tiny_detector(name))
    for time in range(2):
        found = detector.step(np.full((1, 1, 3), 90, np.uint8), float(time))
        assert np.isfinite(found.boxes).all()


@DETRS
def test_ready_pictures_that_cannot_be_taken_are_refused(name: str) -> None:
    detector = MemoryDetector.wrap(tiny_detector(name))
    detector.adapter.model.config.num_queries = 22  # of 32x32 pixels there are 16 + 4 + 1 cells
    for height, width in ((1, 1), (64, 65), (65, 64), (32, 32)):
        with pytest.raises(ValueError, match=f"cannot take {height}x{width} pixels"):
            detector.step(torch.rand(3, height, width), 0.0)
    with pytest.raises(ValueError, match="one size"):
        detector.step_batch([torch.rand(3, 64, 64), torch.rand(3, 64, 96)], [0.0, 0.0], "ab")
    assert detector.streams == ()


def test_faster_rcnn_takes_pictures_of_several_sizes_and_of_nothing() -> None:
    model = tiny_detector("faster_rcnn")
    detector = MemoryDetector.wrap(model)
    random_weights(detector.enhancement)
    for time in range(3):
        batch = [pictures(1)[0], pictures(1, 80, 48)[0]]
        detector.step_batch(batch, [float(time)] * 2, "ab")
    held = len(detector.memory("a"))
    model.rpn.score_thresh = 2.0  # no proposals at all
    found = detector.step_batch(batch, [3.0, 3.0], "ab")
    assert [len(one) for one in found] == [0, 0]
    assert len(detector.memory("a")) == held and detector.memory("a").last == 3.0


def test_pictures_of_one_batch_may_have_any_number_of_proposals() -> None:
    counts = {"a": 3, "b": 0, "c": 30}

    def made(*streams: str) -> MemoryDetector:
        model = tiny_detector("faster_rcnn")
        honest = model.rpn.forward

        def few(*parts: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
            proposals, losses = honest(*parts)
            return [
                boxes[: counts[stream]] for boxes, stream in zip(proposals, streams, strict=True)
            ], losses

        model.rpn.forward = few
        # Every row is kept: of rows that look the same, rounding would choose.
        memory = FeatureConfig(1024, quota=30, alike=2.0)
        detector = MemoryDetector.wrap(model, memory)
        random_weights(detector.enhancement)
        return detector

    together, apart = made(*counts), {stream: made(stream) for stream in counts}
    for time in range(3):
        frames = list(pictures(3, seed=time))
        batch = together.step_batch(frames, [float(time)] * 3, list(counts))
        for frame, (stream, one), found in zip(frames, apart.items(), batch, strict=True):
            alone = one.step(frame, float(time), stream)
            assert np.allclose(found.scores, alone.scores, atol=1e-4)
            held, other = (d.memory(stream).snapshot() for d in (together, one))
            assert torch.equal(held.sources, other.sources)
            assert torch.allclose(held.scores, other.scores, atol=1e-5)
            for pair in ((found.boxes, alone.boxes), (held.boxes.numpy(), other.boxes.numpy())):
                ordered = [np.sort(boxes, axis=0) for boxes in pair]  # some have equal scores
                assert np.allclose(*ordered, atol=1e-2)
    assert [len(together.memory(stream)) for stream in counts] == [9, 0, 90]


@DETRS
def test_half_precision_changes_nothing_either(name: str) -> None:
    model = tiny_detector(name).bfloat16()
    detector = MemoryDetector.wrap(model)
    for time, picture in enumerate(pictures(3)):
        found = detector.step(picture, float(time))
        with torch.no_grad():
            outputs = detector.adapter.run(detector.adapter.prepare([picture]))
        assert np.array_equal(
            found.scores, detector.adapter.found(outputs, [(64, 96)])[0][1].numpy()
        )
    random_weights(detector.enhancement)
    detector.step(picture, 3.0)


# --------------------------------------------------------------------------- training


def targets(name: str, count: int) -> list[dict[str, Tensor]]:
    if name == "faster_rcnn":
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
        return [{"boxes": boxes, "labels": torch.tensor([2])}] * count
    return [
        {"boxes": torch.tensor([[0.3, 0.4, 0.3, 0.5]]), "class_labels": torch.tensor([2])}
    ] * count


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_losses_reach_the_enhancement(name: str, training: bool) -> None:
    if name == "faster_rcnn" and not training:
        pytest.skip("torchvision gives losses in training mode alone")
    watched = Watched(name, without=0.0)
    watched.learn()
    frozen = watched.model.backbone if name == "faster_rcnn" else watched.model.model.encoder
    watched.model.train(training)
    frozen.eval()
    ages = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 5.0]])
    refs = [list(pictures(3, seed=1)), list(pictures(3, seed=2))]
    output = watched.detector.forward_train(list(pictures(2)), refs, ages, targets(name, 2))
    loss = sum(output.values()) if name == "faster_rcnn" else output.loss
    loss.backward()
    for part, weight in watched.detector.enhancement.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), part
    assert watched.detector.enhancement.output.weight.grad.abs().max() > 0
    assert watched.model.training == training and not any(p.training for p in frozen.modules())
    assert watched.detector.streams == ()


# --------------------------------------------------------------------------- others


def test_what_is_not_supported_is_told_what_is() -> None:
    for model in (nn.Linear(3, 4), tiny_detector("rt_detr").model):
        with pytest.raises(UsageError) as raised:
            MemoryDetector.wrap(model)
        words = str(raised.value)
        assert type(model).__name__ in words and "adapter=" in words
        for known in ("RTDetrForObjectDetection", "RTDetrV2", "DFine", "FasterRCNN"):
            assert known in words


def test_each_detector_has_its_adapter() -> None:
    kinds = {name: type(adapter_of(tiny_detector(name))).__name__ for name in DETECTORS}
    assert kinds == {
        "rt_detr": "RTDetrAdapter", "rt_detr_v2": "RTDetrAdapter", "d_fine": "DFineAdapter",
        "faster_rcnn": "FasterRCNNAdapter",
    }  # fmt: skip
    assert not FasterRCNNAdapter.fits(tiny_detector("rt_detr"))
