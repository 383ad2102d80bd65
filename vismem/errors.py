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


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises:
        UsageError: If the module is not installed.

    Example:
        >>> require("math", extra="test").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module} is needed for this and cannot be imported ({error}); "
            f"run: pip install 'vismem[{extra}]'"
        ) from error
