"""`Closeable`: what is used in a ``with`` block and closed at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod

from typing_extensions import Self

__all__ = ["Closeable"]


class Closeable(ABC):
    """Something that holds a file, a directory or a thread until it is closed.

    Example:
        >>> class Door(Closeable):
        ...     def close(self):
        ...         print("closed")
        >>> with Door():
        ...     print("open")
        open
        closed
    """

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
