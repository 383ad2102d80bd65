"""A memory on one page: what it saw when, what stands for it, and what that costs."""

from vismem.picture.overview import Held, draw, level_colors

__all__ = ["Held", "draw", "level_colors"]
