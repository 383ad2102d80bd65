"""When a memory is sealed, and what a restart finds of what was only logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vismem.encoders.base import Encoder
from vismem.errors import StoreError
from vismem.journal import COMMIT_BYTES, COMMIT_RECORDS, Journal, opened
from vismem.memory.episodic import EpisodicConfig
from vismem.stats import Stats
from vismem.store import MemoryStore
from vismem.stream_set import StreamSet

LEAST, MOST = COMMIT_BYTES
MEGABYTE = {"tokens": torch.zeros(2**20, dtype=torch.uint8)}


@pytest.fixture
def begin(path: Path, tiny: Encoder) -> Callable[[], Journal]:
    """Makes the store, and goes on with it where it is made already."""

    def begin() -> Journal:
        if path.exists():
            return Journal(MemoryStore.open(path), tiny)
        return Journal(MemoryStore.create(path, encoder=tiny.identity, config={}), tiny)

    return begin


@pytest.mark.parametrize(("budget", "full"), [(0, LEAST), (6 * 2**20, 6 * 2**20), (2**40, MOST)])
def test_a_log_as_large_as_the_budget_is_due(begin, budget: int, full: int) -> None:
    journal = begin()
    for number in range(full // 2**20):
        assert not journal.due(budget), number
        journal.log("camera", float(number), float(number), MEGABYTE)
    assert journal.due(budget) and journal.due(2**40) == (full == MOST)
    journal.store.close()
    again = begin()  # a restart counts what is there
    assert again.due(budget)
    again.store.close()


def test_many_frames_are_due(begin) -> None:
    journal = begin()
    for number in range(COMMIT_RECORDS):
        assert not journal.due(2**40)
        journal.log("camera", float(number), float(number), {})
    assert journal.due(2**40)
    journal.store.close()


def test_what_is_gone_from_memory_is_due_and_nothing_is_after_a_seal(begin) -> None:
    journal, streams = begin(), StreamSet(10**6, EpisodicConfig(4, 6), "moments", Stats())
    for number in range(LEAST // 2**20):
        journal.log("camera", float(number), float(number), MEGABYTE)
    assert journal.due(0)
    assert journal.seal(streams, {"budget": 7}) == () and not journal.due(0)
    journal.stale = True
    assert journal.due(2**40)
    journal.seal(streams, {"budget": 8})
    assert not journal.due(2**40) and journal.store.config == {"budget": 8}
    journal.store.close()


def test_a_store_that_is_not_taken_up_is_let_go(begin, path: Path) -> None:
    begin().store.close()
    with pytest.raises(StoreError, match=r"damaged \('size'\); run: vismem inspect --verify"):
        with opened(path):
            raise KeyError("size")
    with pytest.raises(KeyboardInterrupt), opened(path):
        raise KeyboardInterrupt
    with opened(path) as store:  # else the lock would be held
        pass
    assert store.records == 0  # and where nothing goes wrong it stays open
    store.close()
