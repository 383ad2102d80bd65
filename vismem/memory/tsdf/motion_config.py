"""What counts as motion in a depth stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from vismem.memory.tsdf.fuse import FuseConfig

__all__ = ["MotionConfig"]


@dataclass(frozen=True)
class MotionConfig:
    """What counts as motion.

    Args:
        fuse: Sizes of the map.
        seen_through: Looks through a voxel after which it is empty.
        empty_around: Of the 27 voxels around a point, that are empty where it moves for certain.
        strong: Share of a component that must move for certain.
        least_pixels: Of a component, in a picture of 320 by 240.
        rested: Share of a component that must lie where something has been for `FuseConfig.rest`
            seconds, before it counts as part of the room.
        shift: Metres that a surface must lie before or behind where the map knows it, as the mean
            of a window, to have moved.
        window: Side of that window, in pixels of half the picture.
        sure: Looks that the map must be the mean of there.
        thing_shift: The same for a whole face of a thing.
        slide: Metres that a thing must have come in half a second, told by its texture and depth.
        sure_slide: How many standard deviations that must be. A part that surely came less far
            stands, wherever the map has it.
        largest: Square metres of a thing.
        resting: Share of a thing that may have lain in its place for long.
        settled: Looks after which a surface that lies where the map has it does not move.
        most_shifted: Share of the picture beyond which it is the pose that shifted.
        carry: What was believed of a surface holds in the next frame where it moved by no more, in
            metres of depth.
        fade: Share of that belief that is left each frame.
        register: Whether each picture is brought onto the map before it is compared.
        agree: Share of the pixels that the map knows something of, that must lie on its surface;
            below it the pose is lost.
        patience: Lost frames after which the map is begun anew.
    """

    fuse: FuseConfig = field(default_factory=FuseConfig)
    seen_through: int = 6
    empty_around: int = 20
    strong: float = 0.25
    least_pixels: int = 60
    rested: float = 0.9
    shift: float = 0.045
    window: int = 9
    sure: int = 2
    thing_shift: float = 0.015
    slide: float = 0.02
    sure_slide: float = 5.0
    largest: float = 1.0
    resting: float = 0.2
    settled: int = 3
    most_shifted: float = 0.3
    carry: float = 0.06
    fade: float = 0.95
    register: bool = True
    agree: float = 0.25
    patience: int = 30
