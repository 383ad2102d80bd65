"""The writer's thread. Tests wait for events, never for time; a hang is a failure of the suite."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from vismem.engine import Writer
from vismem.errors import StoreError
from vismem.frame import Frame

PATIENCE = 30.0  # seconds before a wait gives up, so that a broken writer fails and does not hang


def frame(number: int) -> Frame:
    return Frame(np.zeros((1, 1, 3), np.uint8), float(number), index=number)


class Desk:
    """What a writer writes to: notes what it was given, and fails or waits when told to."""

    def __init__(self, capacity: int = 100) -> None:
        self.encoded: list[int] = []
        self.stored: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.failures: dict[int, list[Exception]] = {}  # to be raised, by number of the frame
        self.breaks: set[int] = set()  # frames that break the encoder
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()  # a frame is being encoded
        self.writer = Writer(self.encode, self.store, self.refuse, capacity)

    def encode(self, given: Frame) -> str:
        self.busy.set()
        assert self.gate.wait(PATIENCE)
        self.encoded.append(given.index)
        if given.index in self.breaks:
            raise RuntimeError("broken picture")
        return f"encoding of {given.index}"

    def store(self, given: Frame, encoding: str) -> None:
        assert encoding == f"encoding of {given.index}"
        if self.failures.get(given.index):
            raise self.failures[given.index].pop()
        self.stored.append(given.index)

    def refuse(self, given: Frame, error: Exception) -> None:
        self.refused.append((given.index, str(error)))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Run a call in a thread; what it raised comes back in the list."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def finish(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the writer hangs"


def test_frames_are_stored_in_order(desk: Desk) -> None:
    for number in range(50):
        assert desk.writer.put(frame(number))
    desk.writer.flush()
    assert desk.stored == desk.encoded == list(range(50))
    assert desk.writer.close() == 0


def test_a_writer_that_was_never_used_ends_at_once() -> None:
    before = threading.active_count()
    writer = Desk().writer
    writer.flush()
    assert writer.close() == 0 and threading.active_count() == before


def test_close_writes_what_waits(desk: Desk) -> None:
    desk.gate.clear()
    for number in range(5):
        desk.writer.put(frame(number))
    desk.gate.set()
    assert desk.writer.close() == 0 and desk.stored == list(range(5))


def test_without_blocking_a_full_queue_takes_nothing() -> None:
    desk = Desk(capacity=2)
    desk.gate.clear()
    assert [desk.writer.put(frame(n), block=False) for n in range(4)] == [True, True, False, False]
    desk.gate.set()
    desk.writer.flush()
    assert desk.stored == [0, 1]
    assert desk.writer.put(frame(4), block=False)
    desk.writer.flush()
    assert desk.stored == [0, 1, 4] and desk.writer.close() == 0


def test_with_blocking_the_source_waits_for_room() -> None:
    desk = Desk(capacity=1)
    desk.gate.clear()
    desk.writer.put(frame(0))
    assert desk.busy.wait(PATIENCE)
    waiting, raised = in_thread(lambda: desk.writer.put(frame(1)))
    assert not desk.writer.put(frame(2), block=False)
    assert desk.stored == []
    desk.gate.set()
    finish(waiting)
    desk.writer.flush()
    assert desk.stored == [0, 1] and not raised
    desk.writer.close()


def test_a_frame_that_breaks_the_encoder_is_left_out(desk: Desk) -> None:
    desk.breaks = {2}
    for number in range(5):
        desk.writer.put(frame(number))
    desk.writer.flush()
    assert desk.stored == [0, 1, 3, 4] and desk.refused == [(2, "broken picture")]
    desk.writer.close()


def test_a_frame_that_the_store_cannot_understand_is_left_out(desk: Desk) -> None:
    desk.failures = {1: [ValueError("no such width")]}
    for number in range(3):
        desk.writer.put(frame(number))
    desk.writer.flush()
    assert desk.stored == [0, 2] and desk.refused == [(1, "no such width")]
    desk.writer.close()


def test_a_full_disk_stops_tells_and_goes_on(desk: Desk) -> None:
    desk.failures = {1: [StoreError("full, still"), StoreError("full")]}
    for number in range(2):
        desk.writer.put(frame(number))
    with pytest.raises(StoreError, match="^full$"):
        desk.writer.flush()
    with pytest.raises(StoreError, match="^full, still$"):
        desk.writer.flush()
    desk.writer.flush()
    desk.writer.put(frame(2))
    desk.writer.flush()
    assert desk.stored == [0, 1, 2] and desk.refused == []
    assert desk.encoded == [0, 1, 2], "encoding is dear: once a frame"
    desk.writer.close()


def test_once_told_the_writer_rests_until_it_is_called(desk: Desk) -> None:
    """Else a call after room was made would be told of a failure from before."""
    tries = 0

    def count(given: Frame, encoding: str, store: Callable = desk.store) -> None:
        nonlocal tries
        tries += 1
        store(given, encoding)

    desk.writer._store = count
    desk.failures = {0: [StoreError("full")] * 3}
    desk.writer.put(frame(0))
    for call in (1, 2, 3):
        with pytest.raises(StoreError, match="full"):
            desk.writer.flush()
        assert tries == call
    desk.writer.flush()
    assert desk.stored == [0] and tries == 4
    desk.writer.close()


def test_all_who_wait_are_told_and_none_waits_for_ever() -> None:
    desk = Desk(capacity=1)
    desk.failures = {0: [StoreError("full")]}
    desk.gate.clear()
    desk.writer.put(frame(0))
    waiting = [in_thread(desk.writer.flush) for _ in range(4)]
    desk.gate.set()
    for thread, _ in waiting:
        finish(thread)
    desk.writer.flush()
    assert desk.stored == [0]
    assert any(raised for _, raised in waiting)
    desk.writer.close()


def test_whoever_hands_over_next_is_told_and_the_frame_is_not_taken() -> None:
    desk = Desk(capacity=1)
    desk.failures = {0: [StoreError("full")]}
    desk.gate.clear()
    desk.writer.put(frame(0))
    waiting, raised = in_thread(lambda: desk.writer.put(frame(1)))
    desk.gate.set()
    finish(waiting)
    # Told while it waited for room, or taken because the frame before was stored meanwhile.
    assert [str(error) for error in raised] == ["full"]
    desk.writer.flush()
    assert desk.stored == [0]
    desk.writer.put(frame(1))
    desk.writer.flush()
    assert desk.stored == [0, 1]
    desk.writer.close()


def test_close_gives_up_on_what_cannot_be_stored(desk: Desk) -> None:
    desk.failures = {0: [StoreError("full")] * 9}
    desk.gate.clear()
    for number in range(3):
        desk.writer.put(frame(number))
    desk.gate.set()
    assert desk.writer.close() == 3 and desk.stored == []


def test_many_sources_lose_nothing() -> None:
    desk = Desk(capacity=3)
    sources = [
        in_thread(lambda s=s: [desk.writer.put(frame(100 * s + n)) for n in range(50)])
        for s in range(4)
    ]
    for thread, _ in sources:
        finish(thread)
    desk.writer.flush()
    assert not any(raised for _, raised in sources)
    assert sorted(desk.stored) == [100 * s + n for s in range(4) for n in range(50)]
    for source in range(4):
        own = [n for n in desk.stored if n // 100 == source]
        assert own == sorted(own)
    desk.writer.close()
