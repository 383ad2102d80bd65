from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny import frames
from tiny_masks import tiny_sam2

from vismem import Frame
from vismem.errors import SourceError, UsageError
from vismem.masks import Masks
from vismem.models.mask_tracker import MaskTracker, Prompt, TrackConfig

HEIGHT, WIDTH = 60, 90
SPOT = np.zeros((HEIGHT, WIDTH), bool)
SPOT[20:40, 30:70] = True
# A box, points of both kinds, a mask of an object that comes later, and a correction.
PROMPTS = {
    0: [
        Prompt(3, box=(10, 10, 60, 50)),
        Prompt(1, points=[(80, 50), (20, 20)], labels=[True, False]),
    ],
    5: [Prompt(7, mask=SPOT)],
    9: [Prompt(3, points=[(30, 40)]), Prompt(7, box=(5, 5, 40, 40), points=[(20, 20)])],
}


@functools.cache
def model() -> tuple[Any, Any]:
    return tiny_sam2()


def stream(count: int, seed: int = 0) -> list[Frame]:
    pictures = frames(count, HEIGHT, WIDTH, seed=seed).numpy()
    return [Frame(image, 0.1 * index, index=index) for index, image in enumerate(pictures)]


def track(tracker: MaskTracker, video: list[Frame], prompts: Any = PROMPTS) -> list[Masks]:
    return [tracker.step(frame, prompts.get(frame.index, ())) for frame in video]


def stock(video: list[Frame]) -> tuple[list[Masks], Any]:
    """The model with its own session, which keeps everything."""
    net, processor = model()
    session = processor.init_video_session()
    found = []
    for frame in video:
        prompts = PROMPTS.get(frame.index, [])
        for prompt in prompts:
            given: dict[str, Any] = {"original_size": (HEIGHT, WIDTH)}
            if prompt.mask is not None:
                given = {"input_masks": [prompt.mask]}
            if prompt.box is not None:
                given["input_boxes"] = [[list(prompt.box)]]
            if prompt.points:
                given["input_points"] = [[[list(point) for point in prompt.points]]]
                labels = prompt.labels or [1] * len(prompt.points)
                given["input_labels"] = [[[int(label) for label in labels]]]
            processor.add_inputs_to_inference_session(session, frame.index, [prompt.id], **given)
        session.obj_with_new_inputs = [prompt.id for prompt in prompts]
        pixels = processor(images=frame.image, return_tensors="pt").pixel_values[0]
        out = net(inference_session=session, frame=pixels)
        masks = processor.post_process_masks([out.pred_masks], [[HEIGHT, WIDTH]])[0][:, 0]
        scores = out.object_score_logits.sigmoid().flatten()
        found.append(Masks(masks.numpy(), scores.numpy(), np.array(out.object_ids)))
    return found, session


def alike(one: list[Masks], other: list[Masks]) -> list[bool]:
    return [
        np.array_equal(a.masks, b.masks)
        and np.array_equal(a.scores, b.scores)
        and np.array_equal(a.ids, b.ids)
        for a, b in zip(one, other, strict=True)
    ]


def test_as_published_it_is_the_stock_model_to_the_bit() -> None:
    video = stream(30)
    expected, _ = stock(video)
    found = track(MaskTracker(*model(), TrackConfig("published")), video)
    assert all(alike(found, expected))
    assert [masks.time for masks in found] == [frame.timestamp for frame in video]
    # The stream is one that says something: objects come and go, and masks are of some size.
    scores = np.concatenate([masks.scores for masks in expected])
    assert 0.2 < (scores > 0.5).mean() < 0.95
    assert 0.05 < np.concatenate([masks.masks for masks in expected[1:]], 0).mean() < 0.95


def test_by_default_it_is_the_stock_model_within_its_window_and_remembers_beyond() -> None:
    video = stream(30)
    expected, _ = stock(video)
    tracker = MaskTracker(*model())
    same = alike(track(tracker, video), expected)
    assert all(same[:16]) and not all(same[16:])  # from frame 16 on, the first is out of it
    held = tracker.object_maps(3).kept.snapshot().views()
    assert [view.time for view in held if view.prompted] == [0.0, 9.0]
    assert 2 < len(held) <= tracker.config.views


def test_a_view_that_is_no_news_is_not_kept_for_long() -> None:
    still = [Frame(stream(1)[0].image, 0.1 * n, index=n) for n in range(12)]
    prompts = {0: [Prompt(1, mask=SPOT)]}
    for novelty, most in ((10.0, 1), (0.0, 8)):
        tracker = MaskTracker(*model(), TrackConfig(novelty=novelty))
        track(tracker, still, prompts)
        assert len(tracker.object_maps(1).kept) <= most
    net, processor = tiny_sam2(presence=-9.0)
    absent = MaskTracker(net, processor, TrackConfig(novelty=0.0))
    track(absent, stream(12), prompts)
    assert len(absent.object_maps(1).kept) == 1  # what shows no object is no view of it


def held_by(value: Any) -> int:
    """Bytes of all tensors below."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(held_by, parts)) if isinstance(parts, (list, tuple, type({}.values()))) else 0


def session_bytes(session: Any) -> int:
    names = ("output_dict_per_obj", "processed_frames", "point_inputs_per_obj")
    rest = ("mask_inputs_per_obj", "frames_tracked_per_obj")
    entries = sum(len(part) for part in session.frames_tracked_per_obj.values())
    return entries + sum(held_by(getattr(session, name)) for name in names + rest)


@pytest.mark.parametrize("policy", ["novelty", "published"])
def test_an_endless_stream_takes_constant_bytes(policy: Any) -> None:
    tracker = MaskTracker(*model(), TrackConfig(policy))
    video = stream(50)
    sizes, sessions = [], []
    for turn in range(4):
        for frame in video:
            again = Frame(frame.image, frame.timestamp + 5 * turn, index=frame.index + 50 * turn)
            tracker.step(again, PROMPTS.get(again.index, ()))
            sizes.append(tracker.nbytes)
            sessions.append(session_bytes(tracker._session))
    assert len(set(sizes[100:])) == 1 and 200_000 < sizes[-1] < 600_000
    # What the session is given of it depends on how much of what is kept is also recent.
    assert 200_000 < max(sessions[100:]) < 1_000_000
    _, session = stock(video)
    assert session_bytes(session) > 10 * max(sessions)  # in a quarter of the frames


def test_prompted_views_stay_where_there_are_too_many() -> None:
    prompts = {n: [Prompt(1, points=[(10 + n, 20)])] for n in range(6)}
    held = []
    for policy in ("novelty", "published"):
        tracker = MaskTracker(*model(), TrackConfig(policy, views=3))  # type: ignore[arg-type]
        track(tracker, stream(20), prompts)
        held.append(tracker.object_maps(1).kept.snapshot().views())
    assert all(view.prompted for views in held for view in views) and len(held[0]) == 3
    assert [view.time for view in held[1]] == [3.0, 4.0, 5.0]


def test_before_the_first_prompt_there_is_nothing_and_the_model_is_not_asked() -> None:
    late = {frame + 4: prompts for frame, prompts in PROMPTS.items()}
    video = stream(16)
    tracker = MaskTracker(*model(), TrackConfig("published"))
    found = track(tracker, video, late)
    assert [len(masks) for masks in found[:5]] == [0, 0, 0, 0, 2] and tracker.ids == (3, 1, 7)
    assert found[0].masks.shape == (0, HEIGHT, WIDTH)
    fresh = MaskTracker(*model(), TrackConfig("published"))
    since = [Frame(frame.image, frame.timestamp, index=frame.index - 4) for frame in video[4:]]
    assert all(alike(found[4:], track(fresh, since)))


def test_reset_is_a_new_beginning() -> None:
    video = stream(12)
    tracker = MaskTracker(*model())
    first = track(tracker, video)
    tracker.reset()
    assert tracker.nbytes == 0 and tracker.ids == ()
    assert all(alike(track(tracker, video), first))


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([Prompt(1, box=(10, 10, 95, 50))], "95,50 is outside"),
        ([Prompt(1, box=(-1, 10, 60, 50))], "-1,10 is outside"),
        ([Prompt(1, points=[(20, 61)])], "20,61 is outside"),
        ([Prompt(1, box=(50, 10, 50, 50))], "empty"),
        ([Prompt(1, mask=np.ones((4, 4), bool))], "a mask is"),
        ([Prompt(1, mask=np.zeros((HEIGHT, WIDTH), bool))], "empty"),
        ([Prompt(1, box=(1, 1, 9, 9)), Prompt(1, points=[(2, 2)])], "several prompts"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_and_changes_nothing(prompts: Any, says: str) -> None:
    tracker = MaskTracker(*model())
    with pytest.raises(ValueError, match=says):
        tracker.step(stream(1)[0], prompts)
    assert tracker.ids == ()
    video = stream(6)
    assert all(alike(track(tracker, video), track(MaskTracker(*model()), video)))


def test_a_prompt_is_one_of_its_kinds() -> None:
    wrong: list[dict[str, Any]] = [{}, {"mask": SPOT, "box": (0, 0, 1, 1)}]
    wrong += [{"mask": SPOT, "points": [(1, 1)]}, {"points": [(1, 1)], "labels": [True, False]}]
    for given in wrong:
        with pytest.raises(ValueError):
            Prompt(1, **given)


@pytest.mark.parametrize("wrong", [{"policy": "all"}, {"views": 0}, {"novelty": -1.0}])
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TrackConfig(**wrong)


def test_it_loads_what_was_saved_and_says_what_it_cannot_load(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, processor = model()
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MaskTracker.load(str(tmp_path), device="cpu")
    video = stream(8)
    for one, other in zip(
        track(loaded, video), track(MaskTracker(net, processor), video), strict=True
    ):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert (one.masks == other.masks).mean() > 0.99

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "sam2"}))
    with pytest.raises(UsageError, match="it is a sam2 model, not sam2_video"):
        MaskTracker.load(str(tmp_path))
    config["vision_config"]["fpn_hidden_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot be loaded"):
        MaskTracker.load(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((SourceError, UsageError), match="hub|folder"):
        MaskTracker.load("nobody/no-such-model")
    monkeypatch.setattr("transformers.__version__", "5.16.2")
    with pytest.raises(UsageError, match=r"5\.17 or newer, not 5\.16\.2"):
        MaskTracker.load(str(tmp_path))
