"""What the tests of `VisualMemory` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_memory import MOMENTS

import vismem as vm
from vismem import journal


@pytest.fixture
def make(tiny, tmp_path: Path) -> Iterator[Callable[..., vm.VisualMemory]]:
    """Makes memories with the tiny encoder, and lets their threads end."""
    made: list[vm.VisualMemory] = []

    def make(budget: int | str = "1MB", **options: object) -> vm.VisualMemory:
        settings = {"encoder": tiny, "moments": MOMENTS} | options
        made.append(vm.VisualMemory(budget, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for memory in made:
        memory._writer.close()


@pytest.fixture
def seal_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMMIT_RECORDS", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clip.mem"
