"""``vismem ros``: a ROS 2 node with a memory, and a player of bags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from vismem.errors import UsageError

__all__ = ["Ros", "parse_ros"]


@dataclass
class Node:
    """Run the memory node: ``vismem ros node --ros-args -r image:=/camera/image_raw``."""

    ros: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Everything from --ros-args on."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.ros.installed import check_ros

        check_ros()
        from vismem.ros.node import run_node

        return run_node(self.ros)


@dataclass
class Replay:
    """Publish a ROS 2 bag, by its clock or in lockstep with a memory node."""

    bag: Positional[Path]
    """Folder of the bag, or one of its files."""
    rate: float = 1.0
    """How many times as fast as it was recorded."""
    clock: bool = False
    """Publish /clock; start nodes with use_sim_time."""
    lockstep: str | None = None
    """Full name of a memory node in every-frame mode, such as /vismem, to wait for: loses none."""
    remap: tuple[str, ...] = ()
    """Other names for topics: /recorded:=/new."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.ros.installed import check_ros

        if not self.rate > 0:
            raise UsageError(f"--rate is above 0, not {self.rate}")
        pairs = [pair.partition(":=") for pair in self.remap]
        if not all(old and new for old, _, new in pairs):
            raise UsageError("--remap takes pairs such as /camera/image:=/image")
        check_ros(messages=False)
        from vismem.ros.replay import replay

        done = replay(
            self.bag,
            rate=self.rate,
            clock=self.clock,
            lockstep=self.lockstep,
            remap={old: new for old, _, new in pairs},
        )
        print(f"{sum(done.published.values())} messages in {done.seconds:.1f} s")
        for topic, count in done.published.items():
            print(f"  {topic}: {count}")
        for topic, reason in done.left_out.items():
            print(f"note: {topic} left out: {reason}")
        return 0


@dataclass
class Ros:
    """Remember and answer on a robot: a ROS 2 node, and a player of bags."""

    task: (
        Annotated[Node, tyro.conf.subcommand("node", prefix_name=False)]
        | Annotated[Replay, tyro.conf.subcommand("replay", prefix_name=False)]
    )

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        return self.task()


def parse_ros(words: list[str]) -> Ros:
    """Read the words after ``vismem ros``; what follows ``--ros-args`` is for ROS."""
    end = words.index("--ros-args") if "--ros-args" in words else len(words)
    verb = tyro.cli(
        Ros, args=words[:end], prog="vismem ros", config=(tyro.conf.OmitSubcommandPrefixes,)
    )
    if end == len(words):
        return verb
    if not isinstance(verb.task, Node):
        raise UsageError("--ros-args goes with: vismem ros node")
    return Ros(dataclasses.replace(verb.task, ros=tuple(words[end:])))
