import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vismem.errors import SourceError, UsageError
from vismem.frame import Frame
from vismem.streams import Sampler, Stream, StreamStats, sample

GAPS = st.lists(st.integers(1, 400), min_size=1, max_size=80)


@given(gaps=GAPS, fps=st.sampled_from([0.3, 1, 2, 3, 7.5, 30]), start=st.integers(0, 10**6))
def test_takes_the_first_frame_at_or_after_each_multiple(gaps, fps, start):
    # Times that no rounding brings near a multiple: 10 ms steps shifted by 4 ms.
    times = [start / 100] + [start / 100 + t / 100 + 0.004 for t in np.cumsum(gaps)]
    wanted = set()
    for multiple in range(int((times[-1] - times[0]) * fps) + 1):
        due = times[0] + multiple / fps
        after = [i for i, t in enumerate(times) if t >= due - 1e-3]
        wanted.update(after[:1])
    assert sample(times, fps) == sorted(wanted)


@given(gaps=GAPS, fps=st.floats(0.1, 60))
def test_one_frame_a_period_at_most_and_always_the_first(gaps, fps):
    times = np.cumsum(gaps) / 100
    picks = sample(times, fps)
    assert picks[0] == 0
    assert len(picks) <= (times[-1] - times[0] + 1e-3) * fps + 1
    assert sample(times, None) == list(range(len(times)))


def test_times_rounded_by_the_container_still_count():
    thirds = [0.0, 0.333, 0.667, 1.0, 1.333]  # Matroska writes whole milliseconds
    assert sample(thirds, 3) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "2"])
def test_refuses_a_rate_that_is_none(fps):
    with pytest.raises(UsageError, match="fps must be a number above 0"):
        Sampler(fps)


def test_problems_stay_short():
    stats = StreamStats()
    for number in range(1000):
        stats.note("unreadable", f"{number}.png")
    stats.note("file ends early")
    assert stats.problems == ["unreadable (1000 times, first: 0.png)", "file ends early"]


class Counting(Stream):
    def __init__(self, limit=5):
        super().__init__("counting")
        self.limit, self.freed, self.gate = limit, False, threading.Event()
        self.waits = threading.Event()
        self._start()

    def _read(self):
        try:
            for index in range(self.limit):
                if index == 1:
                    self.waits.set()
                    self.gate.wait(10)
                yield Frame(np.zeros((2, 3, 3), np.uint8), float(index), self.name, index)
        finally:
            self.freed = True


def test_is_read_once_and_frees_its_source():
    with Counting() as stream:
        assert (stream.size, stream.stats.frames) == ((3, 2), 0)
        stream.gate.set()
        assert [frame.index for frame in stream] == [0, 1, 2, 3, 4]
        assert stream.freed
        assert list(stream) == []
        assert stream.stats.frames == 5


def test_break_and_close_free_the_source():
    stream = Counting()
    next(stream)
    stream.close()
    stream.close()
    assert stream.freed and list(stream) == []


def test_close_from_another_thread_while_a_frame_is_read():
    stream = Counting()
    next(stream)
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(stream))
    reader.start()
    assert stream.waits.wait(10)
    stream.close()
    stream.gate.set()
    reader.join(10)
    assert not reader.is_alive() and rest == [] and stream.freed


def test_no_frame_at_all_is_an_error():
    with pytest.raises(SourceError, match="no frame can be read from counting"):
        Counting(limit=0)


def test_importing_the_package_is_light():
    heavy = "[m for m in ('torch', 'cv2', 'av', 'decord', 'rosbags') if m in sys.modules]"
    code = f"import sys, vismem.streams; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
