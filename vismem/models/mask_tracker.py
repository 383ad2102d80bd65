"""`MaskTracker`: transformers' SAM 2 video model on an endless stream, with a bounded memory.

The model reads six recent memory maps, fifteen recent pointers and the prompted frames of an
object, but its session keeps every frame, its picture, logits and masks for ever. Here what a frame
leaves is moved into banks of an object after each step (`vismem.memory.spatial`), and the session
is given what they hold:

* recent maps and recent pointers, windows as long as the model reads;
* prompted frames, and, unless the policy is ``"published"``, views of the object that were unlike
  all others. The model reads them as it reads prompted frames, after Ding et al., "SAM2Long", 2024
  (https://arxiv.org/abs/2410.16268) and Videnovic et al., "A Distractor-Aware Memory for Visual
  Object Tracking with SAM2", 2024 (https://arxiv.org/abs/2411.17576), who also let frames that
  nobody prompted stay.

With ``"published"`` it does what the model does with its own session, to the bit, as long as no
more frames are prompted than are held.

Source of the model: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024
(https://arxiv.org/abs/2408.00714).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from vismem.checkpoint import best_device, find_checkpoint, first_line
from vismem.errors import UsageError, require
from vismem.frame import Frame
from vismem.masks import Masks
from vismem.memory.spatial import SpatialConfig, SpatialMemory, View

__all__ = ["MaskTracker", "Prompt", "TrackConfig"]

TRANSFORMERS = (5, 17)
Policy = Literal["novelty", "published"]
INSTEAD = "give --model a folder that holds one"


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a person says of an object in one frame: a box, points or a mask.

    Args:
        id: Of the object; the same again corrects it in a later frame.
        box: ``x0 y0 x1 y1`` in pixels of the frame.
        points: ``(x, y)`` in pixels.
        labels: Whether each point is of the object; all of them by default.
        mask: ``(H, W)`` bool.

    Raises:
        ValueError: If it is none of them, or a mask beside another.
    """

    id: int
    box: tuple[float, float, float, float] | None = None
    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[bool] | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.box is None and not self.points) == (self.mask is None):
            raise ValueError("a prompt is a box, points, both, or a mask alone")
        if self.labels is not None and len(self.labels) != len(self.points):
            raise ValueError(f"{len(self.points)} points have {len(self.labels)} labels")

    def check(self, width: int, height: int) -> None:
        """Refuse a prompt that is not of a picture of this size.

        Raises:
            ValueError: If it reaches out of the picture, or is empty.
        """
        corners = list(self.points)
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1):
                raise ValueError(f"the box {self.box} is empty; give x0,y0,x1,y1 with x0 < x1")
            corners += [(x0, y0), (x1, y1)]
        for x, y in corners:
            if not (0 <= x <= width and 0 <= y <= height):
                raise ValueError(f"{x:g},{y:g} is outside of the picture of {width}x{height}")
        if self.mask is not None:
            if self.mask.shape != (height, width):
                raise ValueError(f"a mask is {(height, width)}, not {self.mask.shape}")
            if not self.mask.any():
                raise ValueError(f"the mask of object {self.id} is empty")


@dataclass(frozen=True)
class TrackConfig:
    """What is kept of an object.

    Args:
        policy: ``"novelty"`` or ``"published"``, see the module.
        views: Prompted and long-term views of an object at most. Where more are prompted, the
            older of the two most alike goes; as published the oldest.
        novelty: Mean difference of two maps, as a share of their size, up to which one is no news.
            Not tuned: no trained weights were at hand.

    Raises:
        ValueError: If a number is out of its range.
    """

    policy: Policy = "novelty"
    views: int = 8
    novelty: float = 0.1

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(f"the policy is novelty or published, not {self.policy!r}")
        if self.views < 1 or not self.novelty >= 0:
            raise ValueError("views is 1 or more, novelty 0 or more")


class ObjectMaps:
    """What is kept of one object: three banks, whose clock counts frames as the model does.

    Args:
        model: ``Sam2VideoModel``, which says how much it reads.
        config: See `TrackConfig`.
    """

    def __init__(self, model: Any, config: TrackConfig) -> None:
        rows, columns = model.backbone_feature_sizes[-1]
        self._grid = int(rows), int(columns)
        self._long = config.policy == "novelty"
        width, cells = int(model.hidden_dim), self._grid[0] * self._grid[1]
        window: dict[str, Any] = {"policy": "fifo", "signature_dim": 1}
        maps: dict[str, Any] = {"dtype": "bfloat16", "pointer_dim": width}
        self.recent = _bank(model.mem_dim, cells, model.num_maskmem - 1, **window, **maps)
        length = model.config.max_object_pointers_in_encoder - 1
        self.pointers = _bank(width, 1, length, **window, dtype="float32")
        keep: dict[str, Any] = {"novelty": config.novelty} if self._long else {"policy": "fifo"}
        self.kept = _bank(model.mem_dim, cells, config.views, **keep, **maps)

    @property
    def nbytes(self) -> int:
        """Bytes of the three banks."""
        return self.recent.nbytes + self.pointers.nbytes + self.kept.nbytes

    def write(self, frame: int, left: dict[str, Tensor], prompted: bool) -> None:
        """Keep what a frame left.

        Args:
            frame: Its number.
            left: ``maskmem_features (HW, 1, E)``, ``object_pointer (1, 1, C)`` and
                ``object_score_logits (1, 1, 1)`` of the session.
            prompted: Whether a person said where the object is.
        """
        cells, pointer = left["maskmem_features"][:, 0], left["object_pointer"].flatten()
        view: dict[str, Any] = {"time": float(frame), "grid": self._grid, "pointer": pointer}
        if not prompted:
            alike = torch.zeros(1)  # a window compares nothing
            self.recent.write(cells, signature=alike, **view)
            self.pointers.write(pointer[None], float(frame), signature=alike)
        if prompted or (self._long and bool(left["object_score_logits"] > 0)):
            self.kept.write(cells, prompted=prompted, **view)

    def outputs(self, code: Tensor) -> dict[str, dict[int, dict[str, Tensor]]]:
        """What is held, as the session names it.

        Args:
            code: Of the places of a map, ``(HW, 1, E)``, the same for every frame.
        """
        tracked = {
            round(view.time): {"object_pointer": view.tokens[None].to(code.dtype)}
            for view in self.pointers.snapshot().views()
        }
        tracked |= {round(view.time): _left(view, code) for view in self.recent.snapshot().views()}
        kept = {
            round(view.time): _left(view, code)
            for view in self.kept.snapshot().views()
            if view.prompted or round(view.time) not in tracked  # else it would be read twice
        }
        return {"cond_frame_outputs": kept, "non_cond_frame_outputs": tracked}


def _bank(dim: int, cells: int, views: int, **settings: Any) -> SpatialMemory:
    """A bank with room for so many views."""
    config = SpatialConfig(dim, cells, max_views=views, **settings)
    view = config.row.itemsize + 4 * config.signature_width
    return SpatialMemory(views * (view + cells * dim * config.torch_dtype.itemsize), config)


def _left(view: View, code: Tensor) -> dict[str, Tensor]:
    """What a frame left, as the session names it."""
    assert view.pointer is not None
    return {
        "maskmem_features": view.tokens[:, None],
        "maskmem_pos_enc": code,
        "object_pointer": view.pointer.to(code.dtype).reshape(1, 1, -1),
    }


class MaskTracker:
    """Follow objects through an endless stream; see the module.

    Args:
        model: transformers' ``Sam2VideoModel``.
        processor: transformers' ``Sam2VideoProcessor``.
        config: What is kept of an object.

    Example:
        >>> tracker = MaskTracker.load("facebook/sam2.1-hiera-tiny")  # doctest: +SKIP
        >>> for frame in vismem.open_stream("clip.mp4"):  # doctest: +SKIP
        ...     start = [Prompt(1, box=(10, 20, 90, 80))] if frame.index == 0 else []
        ...     masks = tracker.step(frame, start)
    """

    def __init__(self, model: Any, processor: Any, config: TrackConfig | None = None) -> None:
        self.config = config or TrackConfig()
        self._model, self._processor = model.eval(), processor
        self.reset()

    @classmethod
    def load(
        cls,
        name: str,
        config: TrackConfig | None = None,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> MaskTracker:
        """Load a model by name.

        Args:
            name: A repository of the hub, say ``facebook/sam2.1-hiera-tiny``, or a folder.
            config: What is kept of an object.
            device: Where the model runs; the best there is by default.
            revision: Commit, tag or branch of the hub's repository.

        Raises:
            UsageError: If transformers is missing or too old, or this is no SAM 2 video model.
            SourceError: If the hub cannot be reached and the model is not in its local cache.
        """
        transformers = require("transformers", extra="video")
        if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < TRANSFORMERS:
            raise UsageError(
                f"tracking needs transformers {TRANSFORMERS[0]}.{TRANSFORMERS[1]} or newer, not "
                f"{transformers.__version__}; run: pip install -U 'vismem[video]'"
            )
        folder, _ = find_checkpoint(name, revision, instead=INSTEAD, extra="video")
        try:
            kind = transformers.AutoConfig.from_pretrained(folder).model_type
            if kind != "sam2_video":
                raise ValueError(f"it is a {kind} model, not sam2_video")
            processor = transformers.Sam2VideoProcessor.from_pretrained(folder)
            model, loaded = transformers.Sam2VideoModel.from_pretrained(
                folder, output_loading_info=True
            )
            if missing := sorted(loaded["missing_keys"]):  # transformers would draw them at random
                raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
        except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise UsageError(
                f"{name} cannot be loaded: {first_line(error)}; name another model or {INSTEAD}"
            ) from error
        place = torch.device(device) if device is not None else best_device()
        return cls(model.to(place).requires_grad_(False), processor, config)

    def reset(self) -> None:
        """Forget all objects."""
        place = self._model.device
        self._session = self._processor.init_video_session(
            inference_device=place, dtype=self._model.dtype
        )
        self._objects: dict[int, ObjectMaps] = {}
        self._frames = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """Numbers of the objects that are followed, in the order that they came."""
        return tuple(self._objects)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of all objects."""
        return sum(held.nbytes for held in self._objects.values())

    def object_maps(self, number: int) -> ObjectMaps:
        """What is kept of an object."""
        return self._objects[number]

    @torch.inference_mode()
    def step(self, frame: Frame, prompts: Sequence[Prompt] = ()) -> Masks:
        """Follow all objects into the next frame.

        Args:
            frame: Of any size; all of one stream should be alike.
            prompts: What a person says of objects in this frame.

        Returns:
            A mask of every object that was ever prompted; of none before the first prompt.

        Raises:
            ValueError: If a prompt is not of this picture, or two are of one object. Nothing is
                changed then.
        """
        height, width = frame.image.shape[:2]
        numbers = [prompt.id for prompt in prompts]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"several prompts of one object in one frame: {numbers}")
        for prompt in prompts:
            prompt.check(width, height)
        if not prompts and not self._objects:
            nothing = np.zeros((0, height, width), bool), np.zeros(0), np.zeros(0, np.int64)
            return Masks(*nothing, frame.timestamp, frame.index)
        pixels = self._processor(images=frame.image, return_tensors="pt").pixel_values[0]
        for prompt in prompts:
            self._add(prompt, (height, width))
        self._session.obj_with_new_inputs = numbers
        out = self._model(
            inference_session=self._session,
            frame=pixels.to(self._model.device),
            frame_idx=self._frames,
        )
        self._settle()
        masks = self._processor.post_process_masks([out.pred_masks], [[height, width]])[0][:, 0]
        scores = out.object_score_logits.float().sigmoid().flatten()
        found = masks.cpu().numpy(), scores.cpu().numpy(), np.array(out.object_ids)
        return Masks(*found, frame.timestamp, frame.index)

    def _add(self, prompt: Prompt, size: tuple[int, int]) -> None:
        """Put a prompt into the session."""
        given: dict[str, Any] = {"original_size": size}
        if prompt.mask is not None:
            given = {"input_masks": [prompt.mask]}
        if prompt.box is not None:
            given["input_boxes"] = [[list(prompt.box)]]
        if prompt.points:
            labels = prompt.labels or [True] * len(prompt.points)
            given["input_points"] = [[[list(point) for point in prompt.points]]]
            given["input_labels"] = [[[int(label) for label in labels]]]
        self._processor.add_inputs_to_inference_session(
            self._session, self._frames, [prompt.id], **given
        )
        if prompt.id not in self._objects:
            self._objects[prompt.id] = ObjectMaps(self._model, self.config)

    def _settle(self) -> None:
        """Move what the frame left into the banks, and give the session what they hold."""
        session, frame = self._session, self._frames
        for number, held in self._objects.items():
            place = session.obj_id_to_idx(number)
            left = session.output_dict_per_obj[place]
            prompted = frame in left["cond_frame_outputs"]
            now = left["cond_frame_outputs" if prompted else "non_cond_frame_outputs"][frame]
            held.write(frame, now, prompted)
            session.output_dict_per_obj[place] = held.outputs(now["maskmem_pos_enc"])
            for name in ("frames_tracked", "point_inputs", "mask_inputs"):
                getattr(session, f"{name}_per_obj")[place].clear()
        session.processed_frames.clear()
        self._frames += 1
