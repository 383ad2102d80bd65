"""What a detector with memory promises, on a detector that is a few lines long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_enhancement import random_weights
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vismem.detections import Detections
from vismem.frame import Frame
from vismem.memory.feature import FeatureConfig
from vismem.models.detector import MemoryDetector
from vismem.models.detectors import Adapter, Found

DIM = 8


class Cells(nn.Module):
    """Judges each pixel of a picture by itself: the smallest thing that detects."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.look, self.judge = nn.Linear(3, dim), nn.Linear(dim, 4)
        random_weights(self)
        self.drop = nn.Dropout(0.5)  # tells training from evaluation

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen = self.drop(self.look(pictures.flatten(2).transpose(1, 2)).tanh())
        return self.judge(self.seen)


class CellsAdapter(Adapter):
    """How anyone adds a detector of their own."""

    supported = "Cells"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(model, Cells)

    @property
    def class_layer(self) -> nn.Linear:
        return self.model.judge

    def watch(self) -> list[RemovableHandle]:
        return []

    def boxes(self) -> tuple[Tensor, Tensor]:
        count = self.model.seen.shape[1]
        low = torch.arange(count) / (count + 1)
        corners = torch.stack([low, low, low + 0.1, low + 0.1], -1).clamp(0, 1)
        mask = torch.ones(len(self.model.seen), count, dtype=torch.bool)
        return corners.expand(len(mask), -1, -1), mask

    def confidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores, labels = logits.sigmoid().max(-1)
        return scores, labels

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack([image.float() for image in images])

    def run(self, inputs: Any, targets: Any = None) -> Tensor:
        return self.model(inputs)

    def found(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        scores, labels = self.confidence(outputs)
        return [(torch.zeros(len(s), 4), s, n) for s, n in zip(scores, labels, strict=True)]


def make(trained: bool = True, dim: int = DIM, **options: Any) -> MemoryDetector:
    options = {"memory": FeatureConfig(dim, alike=0.999), "budget": "4kB"} | options
    detector = MemoryDetector.wrap(Cells(dim), adapter=CellsAdapter(Cells(dim)), **options)
    if trained:
        random_weights(detector.enhancement)
    return detector


def picture(seed: int = 0, pixels: int = 12) -> Tensor:
    return torch.randn(3, 1, pixels, generator=torch.Generator().manual_seed(seed))


def run(detector: MemoryDetector, frames: range, stream: str = "camera") -> list[Detections]:
    return [detector.step(picture(n), float(n), stream) for n in frames]


def same(one: list[Detections], other: list[Detections]) -> bool:
    return all(np.array_equal(a.scores, b.scores) for a, b in zip(one, other, strict=True))


def state(detector: MemoryDetector) -> dict[str, dict[str, Tensor]]:
    return {stream: detector.state_dict(stream) for stream in detector.streams}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --------------------------------------------------------------------------- reading


def test_memory_is_read_before_it_is_written_and_never_from_the_future() -> None:
    plain = run(make(trained=False), range(8))
    for length in range(1, 8):
        assert same(run(make(), range(length)), run(make(), range(8))[:length])
    found = run(make(), range(8))
    assert same(found[:1], plain[:1])
    assert not any(same([a], [b]) for a, b in zip(found[1:], plain[1:], strict=True))


def test_what_is_held_does_not_depend_on_what_was_read() -> None:
    """Raw rows, with raw scores and labels: nothing that was enhanced is written."""
    one, other = make(), make(trained=False)
    assert not same(run(one, range(9)), run(other, range(9)))
    assert equal(one.state_dict(), other.state_dict())


def test_rows_are_the_surest_instances_as_the_detector_saw_them() -> None:
    detector = make(memory=FeatureConfig(DIM, max_tokens=5, quota=5, alike=2.0))
    found = run(detector, range(1))[0]
    held = detector.memory().snapshot()
    assert torch.equal(held.scores, torch.from_numpy(np.sort(found.scores)[::-1][:5].copy()))
    cells = [int(n) for n in np.argsort(-found.scores, kind="stable")[:5]]
    raw = detector.adapter.model.seen[0, cells]
    assert torch.equal(held.tokens, raw.half())
    assert held.labels.tolist() == found.labels[cells].tolist()
    assert torch.equal(held.boxes, detector.adapter.boxes()[0][0, cells])
    assert set(held.times.tolist()) == {0.0}


def test_what_is_not_sure_enough_is_not_written() -> None:
    found = run(make(min_score=0.9), range(1))[0]
    detector = make(min_score=float(np.median(found.scores)))
    run(detector, range(3))
    assert 0 < len(detector.memory()) and detector.memory().snapshot().scores.min() >= np.median(
        found.scores
    )
    none = make(min_score=1.1)
    run(none, range(3))
    assert len(none.memory()) == 0 and none.memory().last == 2.0


def test_age_is_the_time_since_a_row_was_seen() -> None:
    ages: list[list[float]] = []
    detector = make()
    honest = detector.enhancement.forward

    def watch(*parts: Any, **more: Any) -> Tensor:
        ages.append(more["ages"].unique().tolist())
        return honest(*parts, **more)

    detector.enhancement.forward = watch
    for time in (0.0, 0.5, 4.0, 1e9 + 4.0):  # and no small difference is lost in large times
        detector.step(picture(int(time) % 7), time)
    detector.step(picture(3), 1e9 + 4.25)
    assert ages[:2] == [[0.5], [3.5, 4.0]] and 0.25 in ages[3]


@pytest.mark.parametrize("read", ["score", "recent", "random"])
def test_a_frame_may_read_a_few_rows(read: str) -> None:
    widths: list[int] = []
    detector = make(keys=3, read=read)
    honest = detector.enhancement.forward

    def watch(x: Tensor, keys: Any, **more: Any) -> Tensor:
        widths.append(more["index"].shape[1])
        return honest(x, keys, **more)

    detector.enhancement.forward = watch
    run(detector, range(5))
    assert widths == [3] * 4 and len(detector.memory()) > 3
    assert same(run(make(keys=3, read=read), range(5)), run(make(keys=3, read=read), range(5)))


def test_rows_are_projected_once() -> None:
    detector = make()
    counts: list[int] = []
    honest = detector.enhancement.project
    detector.enhancement.project = lambda rows: counts.append(len(rows)) or honest(rows)
    run(detector, range(6))
    written = int(detector.memory().snapshot().ids.max()) + 1
    assert 0 < sum(counts) <= written
    before = sum(counts)
    with torch.no_grad():
        detector.enhancement.key.weight.mul_(1.0)  # what an optimiser does
    detector.step(picture(6), 6.0)
    assert sum(counts) - before >= len(detector.memory()) - 8


def test_projections_follow_the_weights() -> None:
    changed, fresh = make(), make(trained=False)
    run(changed, range(4))
    run(fresh, range(4))
    random_weights(changed.enhancement, seed=5)
    random_weights(fresh.enhancement, seed=5)
    one, other = (detector.step(picture(4), 4.0) for detector in (changed, fresh))
    assert np.allclose(one.scores, other.scores, atol=1e-6)


# --------------------------------------------------------------------------- streams


def test_streams_do_not_see_each_other() -> None:
    apart = {stream: run(make(), range(n, n + 6), stream) for n, stream in enumerate("ab")}
    detector = make()
    together: dict[str, list[Detections]] = {"a": [], "b": []}
    for step in range(6):
        for n, stream in enumerate("ab"):
            together[stream] += run(detector, range(step + n, step + n + 1), stream)
    assert same(together["a"], apart["a"]) and same(together["b"], apart["b"])
    assert detector.streams == ("a", "b")


def test_a_reset_is_a_new_beginning_of_one_stream_alone() -> None:
    detector = make()
    run(detector, range(5), "a")
    run(detector, range(5), "b")
    held = detector.state_dict("b")
    detector.reset("a")
    assert detector.streams == ("b",) and equal(detector.state_dict("b"), held)
    assert same(run(detector, range(2, 6), "a"), run(make(), range(2, 6)))
    detector.reset("never seen")


def test_the_stream_unseen_for_longest_is_forgotten_beyond_the_limit() -> None:
    detector = make(streams=2)
    for n, stream in enumerate("abac"):
        run(detector, range(n, n + 1), stream)
    assert detector.streams == ("a", "c") and set(detector._projections) <= {"a", "c"}
    assert same(run(detector, range(2, 6), "b"), run(make(), range(2, 6)))
    detector.load_state_dict(detector.state_dict("b"), "d")
    assert detector.streams == ("b", "d")
    with pytest.raises(ValueError, match="3 streams at once, 2 are remembered"):
        detector.step_batch([picture(9)] * 3, [9.0] * 3, ["b", "d", "e"])
    assert detector.streams == ("b", "d")
    with pytest.raises(ValueError, match="streams is 1 or more"):
        make(streams=0)


def test_save_kill_load_continue() -> None:
    whole = make()
    run(whole, range(12))
    first, second = make(), make()
    run(first, range(7))
    second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
    found = run(second, range(7, 12))
    assert equal(second.state_dict(), whole.state_dict())
    again = make()
    expected = run(again, range(12))[7:]
    assert all(
        np.allclose(a.scores, b.scores, atol=1e-6) for a, b in zip(found, expected, strict=True)
    )
    before = state(second)
    with pytest.raises(ValueError):
        second.load_state_dict({"config": torch.zeros(3)})
    assert equal(state(second)["camera"], before["camera"])
    for call in (second.state_dict, second.memory):
        with pytest.raises(KeyError):
            call("nowhere")


def test_the_budget_holds_for_each_stream() -> None:
    detector = make(memory=FeatureConfig(DIM, evict="fifo"), budget=1000)
    for time in range(30):
        detector.step_batch([picture(time), picture(99 - time)], [float(time)] * 2, "ab")
        assert all(detector.memory(stream).nbytes <= 1000 for stream in "ab")
    assert len(detector.memory("a")) == detector.memory("a").capacity > 0


# --------------------------------------------------------------------------- the door


def hostile(good: Tensor) -> dict[str, tuple[Any, float, str]]:
    wide = torch.zeros(3, 1, 12)
    return {
        "NaN": (good.index_fill(2, torch.tensor([3]), torch.nan), 9.0, "NaN"),
        "infinity": (wide + torch.inf, 9.0, "infinity"),
        "backwards": (good, 1.0, "cannot follow"),
        "no time": (good, float("nan"), "cannot follow"),
        "endless": (good, float("inf"), "cannot follow"),
        "gray": (np.zeros((4, 4), np.uint8), 9.0, "a picture is"),
        "empty": (np.zeros((0, 4, 3), np.uint8), 9.0, "a picture is"),
        "whole numbers": (torch.zeros(3, 4, 4, dtype=torch.int64), 9.0, "a picture is"),
        "nothing": (None, 9.0, "NoneType"),
        "two at once": (torch.zeros(2, 3, 4, 4), 9.0, "a picture is"),
    }


@pytest.mark.parametrize("what", hostile(torch.zeros(3, 1, 12)))
def test_a_refused_frame_leaves_no_trace_in_any_stream(what: str) -> None:
    detector, spared = make(), make()
    for one in (detector, spared):
        run(one, range(3), "a")
        run(one, range(3), "b")
    image, time, words = hostile(picture(5))[what]
    before = state(detector)
    with pytest.raises(ValueError, match=words):
        detector.step_batch([picture(4), image], [3.0, time], "ab")
    with pytest.raises(ValueError, match=words):
        detector.step_batch([image, picture(4)], [time, 3.0], "ab")
    if "follow" not in words:
        with pytest.raises(ValueError, match=words):
            detector.step(image, time, "new")
    assert detector.streams == ("a", "b")
    assert all(equal(detector.state_dict(stream), before[stream]) for stream in "ab")
    assert same(run(detector, range(3, 6), "a"), run(spared, range(3, 6), "a"))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e6])
def test_features_that_no_memory_can_hold_are_refused(broken: float) -> None:
    detector = make()
    run(detector, range(3))
    before = detector.state_dict()
    detector.adapter.model.look.bias.data[0] = broken
    detector.adapter.model.forward = lambda pictures: detector.adapter.model.judge(
        detector.adapter.model.look(pictures.flatten(2).transpose(1, 2))
    )
    with pytest.raises(ValueError, match="not finite, or beyond float16"):
        detector.step(picture(3), 3.0)
    assert equal(detector.state_dict(), before)


@pytest.mark.parametrize("part", ["judge", "enhancement"])
def test_broken_weights_are_refused_before_anything_is_written(part: str) -> None:
    detector = make()
    run(detector, range(3))
    before = detector.state_dict()
    broken = detector.enhancement.output if part == "enhancement" else detector.adapter.model.judge
    broken.bias.data[:] = torch.nan
    for streams in (("camera", "new"), ("new", "camera")):
        with pytest.raises(ValueError, match="finite"):
            detector.step_batch([picture(3), picture(4)], [3.0, 3.0], streams)
    assert detector.streams == ("camera",) and equal(detector.state_dict(), before)


def test_a_batch_has_one_frame_of_each_stream() -> None:
    detector = make()
    one = picture()
    for images, times, streams in (
        ([one, one], [0.0, 1.0], "aa"), ([one], [0.0, 1.0], "ab"), ([one, one], [0.0], "ab"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="of its own"):
            detector.step_batch(images, times, streams)
    assert detector.step_batch([], [], []) == [] and detector.streams == ()


def test_a_detector_may_find_nothing_to_judge() -> None:
    detector = make()
    run(detector, range(2))
    detector.adapter.run = lambda inputs, targets=None: torch.empty(1, 0, 4)
    assert len(detector.step(picture(2), 2.0)) == 0
    assert detector.memory().last == 2.0 and len(detector.memory()) > 0


@pytest.mark.parametrize("pixels", [1, 10_000])
def test_one_instance_and_ten_thousand(pixels: int) -> None:
    detector = make()
    for time in range(3):
        found = detector.step(picture(time, pixels), float(time))
        assert len(found) == pixels and np.isfinite(found.scores).all()
    assert 0 < len(detector.memory()) <= 24  # a quota of 8 a frame


def test_a_frame_is_taken_whole() -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 5, 3), np.uint8)
    by_frame, by_array = make(), make()
    one = by_frame.step(Frame(image, 1.0), 1.0)
    assert same([one], [by_array.step(image, 1.0)])
    assert same([one], [make().step(torch.from_numpy(image), 1.0)])


def test_only_what_is_sure_enough_is_given_out() -> None:
    found = run(make(), range(1))[0]
    middle = float(np.median(found.scores))
    few = run(make(threshold=middle), range(1))[0]
    assert len(few) == (found.scores >= middle).sum() < len(found)


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in width"):
        make(memory=FeatureConfig(DIM + 1))


def test_called_by_itself_the_model_is_as_it_was() -> None:
    detector = make()
    run(detector, range(3))
    before = detector.state_dict()
    model = detector.adapter.model.eval()
    assert torch.equal(model(picture(7)[None]), Cells().eval()(picture(7)[None]))
    assert equal(detector.state_dict(), before)


def test_global_generators_are_neither_used_nor_moved() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        detector = make(keys=3, read="random")
        torch.manual_seed(seed)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        found.append(run(detector, range(6)))
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert same(*found)
