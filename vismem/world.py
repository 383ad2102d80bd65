"""`World`: the things that all streams of a memory see in one world, and their share of its bytes.

There is nothing of it until a frame comes with depth, intrinsics and pose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from vismem.encoders.color import COLORS
from vismem.encoders.objects import LOOK_DIM, MOST_LABELS, MOST_THINGS
from vismem.memory.base import WriteReport
from vismem.memory.objects import ObjectConfig, ObjectMemory, ObjectSnapshot

__all__ = ["OBJECT_SHARE", "World"]

OBJECT_SHARE = 1 / 8  # of a memory's budget
MOST_BYTES = 8_000_000  # several thousand things
LATE = 1.05  # of the age to forget by, so that not each frame forgets
PREFIX = "object."  # of its tensors in a log and in a state
CONFIG = ObjectConfig(
    look_dim=LOOK_DIM, colors=len(COLORS), labels=MOST_LABELS, max_things=MOST_THINGS
)


class World:
    """The writer's side of the things of a memory.

    Args:
        objects: What is held; nothing before the first frame that shows places.
    """

    def __init__(self, objects: ObjectMemory | None = None):
        self.objects = objects

    @property
    def budget(self) -> int:
        """Bytes set aside for it."""
        return self.objects.budget.bytes if self.objects is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.objects.nbytes if self.objects is not None else 0

    def begin(self, budget: int, tensors: Mapping[str, Tensor]) -> bool:
        """Set a share aside for the first frame that shows places; whether it was done just now.

        Args:
            budget: Bytes of the whole memory.
            tensors: What is kept of a frame.
        """
        if self.objects is not None or PREFIX + "near" not in tensors:
            return False
        self.objects = ObjectMemory(_share(budget), CONFIG)
        return True

    def check(self, time: float, tensors: Mapping[str, Tensor]) -> None:
        """Refuse what `write` would refuse, and change nothing.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        if seen := _own(tensors):
            objects = self.objects if self.objects is not None else ObjectMemory(0, CONFIG)
            look = seen.pop("look")
            objects.check(look, max(time, objects.last_time), seen)

    def write(self, time: float, tensors: Mapping[str, Tensor]) -> WriteReport | None:
        """Take one frame, if it shows places.

        Args:
            time: Seconds of its stream. One world has one time: a frame of a stream that is
                behind another counts as of that one's newest.
            tensors: What is kept of the frame.
        """
        seen = _own(tensors)
        if self.objects is None or not seen:
            return None
        look = seen.pop("look")
        return self.objects.write(look, max(time, self.objects.last_time), **seen)

    def changed(self, budget: int) -> World:
        """A copy for another budget of the whole memory; this one stays as it is."""
        if self.objects is None:
            return World()
        other = ObjectMemory(_share(budget), CONFIG)
        other.load_state_dict(self.objects.state_dict())
        other.set_budget(_share(budget))
        return World(other)

    def forget(self, start: float, end: float) -> int:
        """Give up what was seen in a span of time; how many things are gone."""
        return self.objects.forget(start, end) if self.objects is not None else 0

    def expire(self, age: float) -> int:
        """Give up what is older than an age in seconds; how many things that changed."""
        if self.objects is None or self.objects.oldest >= self.objects.last_time - LATE * age:
            return 0
        return self.objects.expire(self.objects.last_time - age)

    def snapshot(self) -> ObjectSnapshot | None:
        """An immutable view; ``None`` where no frame ever showed places."""
        return self.objects.snapshot() if self.objects is not None else None

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors; nothing where there is nothing."""
        if self.objects is None:
            return {}
        return {PREFIX + name: value for name, value in self.objects.state_dict().items()}

    def restore(self, budget: int, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave, among other things.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        held = _own(state)
        if held:
            self.objects = ObjectMemory(_share(budget), CONFIG)
            self.objects.load_state_dict(held)


def _share(budget: int) -> int:
    return min(math.floor(OBJECT_SHARE * budget), MOST_BYTES)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX): value for name, value in own.items()}
