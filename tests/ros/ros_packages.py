"""Where the ROS packages are, and their definitions."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2] / "apps/ros2"


def definitions(kind: str) -> dict[str, str]:
    """Text of every definition of a kind, ``msg``, ``srv`` or ``action``, by name."""
    files = sorted((ROOT / "vismem_msgs" / kind).iterdir())
    return {path.stem: path.read_text() for path in files}
