"""Errors that a user meets: each is one line that names the fix, and knows its exit code."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["SourceError", "StoreError", "UsageError", "VismemError", "require"]


class VismemError(Exception):
    """Any failure that is not a bug; the command line prints it in one line."""

    exit_code = 1


class UsageError(VismemError):
    """The call itself cannot work: a wrong option, an extra that is not installed."""

    exit_code = 2


class SourceError(VismemError):
    """The source of frames is missing, unreachable or unreadable."""

    exit_code = 3


class StoreError(VismemError):
    """The stored memory is damaged, of another format, in use, or cannot be written."""

    exit_code = 4


def require(module: str, *, extra: str | None = None) -> ModuleType:
    """Import a dependency when it is needed, or say how to get it.

    Args:
        module: What to import.
        extra: The extra of vismem that brings it; without one it is named after its package.

    Raises:
        UsageError: If the module is not installed.

    Example:
        >>> require("math").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = f"'vismem[{extra}]'" if extra else module
        raise UsageError(
            f"{module} is needed for this and cannot be imported ({error}); "
            f"run: pip install {package}"
        ) from error
