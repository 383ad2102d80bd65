"""The banks of visual tokens by name, as a user picks one."""

from __future__ import annotations

from typing import Any

from vismem.memory.bank import SlotMemory
from vismem.memory.base import Budget
from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.pyramid import PyramidConfig, PyramidMemory
from vismem.memory.slots import JoinNotes
from vismem.memory.star import StarConfig, StarMemory

__all__ = ["POLICIES", "make_bank"]

POLICIES: dict[str, tuple[Any, Any]] = {
    "flash": (FlashMemory, FlashConfig),
    "star": (StarMemory, StarConfig),
    "pyramid": (PyramidMemory, PyramidConfig),
}


def make_bank(
    policy: str, budget: Budget | int | str, join_notes: JoinNotes | None = None, **sizes: Any
) -> SlotMemory:
    """Make a bank of visual tokens.

    Args:
        policy: ``"flash"``, ``"star"`` or ``"pyramid"``.
        budget: Bytes, or text such as ``"8MB"``.
        join_notes: Makes one note of two when scenes are merged; the representative's by default.
        **sizes: Fields of the bank's config: ``token_dim``, ``max_tokens``, ``embedding_dim``…

    Raises:
        ValueError: If there is no such policy, or a size is out of range.

    Example:
        >>> type(make_bank("pyramid", "1MB", token_dim=4)).__name__
        'PyramidMemory'
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    bank, config = POLICIES[policy]
    return bank(config(**sizes), budget, join_notes)
