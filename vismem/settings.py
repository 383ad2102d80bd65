"""The settings of a memory: refused where no memory should have them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from vismem.errors import StoreError
from vismem.memory.base import Budget
from vismem.memory.episodic import EpisodicConfig
from vismem.memory.policies import POLICIES

__all__ = ["DAMAGE", "check_policy", "check_settings"]

# What settings and state can break on that are not what this wrote.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
LARGEST_ROW = 2**20  # bytes of a moment that a stranger's settings may ask for


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings that no memory should have, as of an archive that somebody else made.

    Args:
        config: `MemoryStore.config`; made for ``check`` of `vismem.store.unpack_memory`.

    Raises:
        StoreError: If anything is not as `VisualMemory` writes it, or out of all proportion.
    """
    try:
        known = {"encoder", "budget", "policy", "retain", "moments"}
        if set(config) - {"motion"} != known:  # which memories of before have not
            raise ValueError(f"they are {sorted(config)}")
        Budget(int(config["budget"]))
        check_policy(config["policy"])
        retain, moments = config["retain"], config["moments"]
        if retain is not None and not 0 < float(retain) < math.inf:
            raise ValueError(f"retain is {retain}")
        if not all(0 <= value < math.inf for value in moments.values()):
            raise ValueError(f"moments are {moments}")
        if EpisodicConfig(token_dim=1, embedding_dim=1, **moments).row_bytes > LARGEST_ROW:
            raise ValueError(f"moments are {moments}")
    except DAMAGE as error:
        raise StoreError(f"the memory's settings are not to be trusted: {error}") from error


def check_policy(policy: str) -> None:
    """Refuse a policy that there is not.

    Raises:
        ValueError: If it is neither ``"moments"`` nor the name of a bank.
    """
    if policy != "moments" and policy not in POLICIES:
        raise ValueError(f"policy is moments, {', '.join(POLICIES)}; not {policy}")
