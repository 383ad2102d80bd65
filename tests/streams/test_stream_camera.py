import http.server
import socket
import threading
from itertools import count

import cv2
import numpy as np
import pytest

from vismem.errors import SourceError, UsageError
from vismem.streams import camera, open_stream
from vismem.streams.camera import CameraStream, hide_credentials


class Server(http.server.ThreadingHTTPServer):
    """An MJPEG camera whose frames are sent when the test says so; it also serves one file."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0, file=b""):
        self.file, self.cut = file, threading.Event()
        self.allowed = threading.Semaphore(0)
        super().__init__(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://user:secret@127.0.0.1:{self.server_port}/live.mjpg?token=secret"

    def send(self, frames):
        self.allowed.release(frames)

    def die(self):
        self.cut.set()
        self.allowed.release(1)
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.send_response(200)
        if self.path.startswith("/file"):
            self.send_header("Content-Length", str(len(self.server.file)))
            self.end_headers()
            self.wfile.write(self.server.file)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in count():
            self.server.allowed.acquire()
            if self.server.cut.is_set():
                return
            picture = np.full((48, 64, 3), number % 25 * 10, np.uint8)
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                return


@pytest.fixture
def server():
    server = Server()
    yield server
    if not server.cut.is_set():
        server.die()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vismem")]


@pytest.fixture(autouse=True)
def no_leaked_threads():
    before = threads()  # tests that play a crash leave some
    yield
    assert threads() == before


def test_frames_arrive_with_rising_wall_clock_times(server):
    server.send(200)
    with open_stream(server.url, read_timeout=5) as stream:
        assert stream.live and stream.duration is None and stream.size == (64, 48)
        assert stream.name == f"127.0.0.1:{server.server_port}/live.mjpg"
        frames = [next(stream)]
        server.send(200)
        frames.append(next(stream))
    first, second = (frame.timestamp for frame in frames)
    assert 1.6e9 < first < second
    assert frames[0].index < frames[1].index


def test_dead_camera_comes_back(server):
    server.send(20)
    stream = open_stream(server.url, open_timeout=2, read_timeout=2)
    before = next(stream)
    port = server.server_port
    server.die()
    again = Server(port)
    again.send(10)
    after = next(frame for frame in stream if stream.stats.reconnects)
    assert after.timestamp > before.timestamp and after.index > before.index
    assert stream.stats.reconnects >= 1 and "camera lost" in stream.stats.problems[0]
    stream.close()
    again.die()


def test_without_reconnect_the_stream_ends_with_the_camera(server):
    server.send(5)
    stream = open_stream(server.url, reconnect=False, read_timeout=5)
    server.die()
    assert list(stream)
    assert stream.stats.reconnects == 0
    stream.close()


def test_close_from_another_thread_ends_the_iteration(server):
    server.send(20)
    stream = open_stream(server.url, read_timeout=0.5)
    taken, first = [], threading.Event()

    def consume():
        for frame in stream:
            taken.append(frame)
            first.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert first.wait(10)
    stream.close()
    consumer.join(10)
    assert not consumer.is_alive() and taken


def test_finite_video_behind_an_address_gives_every_frame(tmp_path, video, server, number):
    server.file = video(
        tmp_path / "a.mp4", [i / 30 for i in range(40)], faststart=True
    ).read_bytes()
    stream = open_stream(f"http://127.0.0.1:{server.server_port}/file.mp4", reconnect=False)
    frames = list(stream)
    assert not stream.live
    left, right = frames[0].image[20:40, :40], frames[0].image[20:40, 56:]
    assert left[..., 0].mean() > 150 > 50 > left[..., 2].mean()
    assert right[..., 2].mean() > 150 > 50 > right[..., 0].mean()
    assert [number(frame.image) for frame in frames] == list(range(40))
    assert np.allclose([frame.timestamp for frame in frames], np.arange(40) / 30, atol=2e-3)
    assert stream.stats.dropped == 0
    stream.close()


def test_cut_off_video_behind_an_address_says_so(tmp_path, video, server):
    times = [i / 30 for i in range(60)]
    data = video(tmp_path / "a.mp4", times, faststart=True, noise=True).read_bytes()
    server.file = data[: len(data) // 2]
    stream = open_stream(f"http://127.0.0.1:{server.server_port}/file.mp4")
    got = len(list(stream))
    assert 10 < got < 50
    assert stream.stats.problems == [f"ends early: {got} of 60 frames"]
    stream.close()


def test_unreachable_camera_fails_at_once_and_keeps_secrets(capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("rtsp", "http"):
        with pytest.raises(SourceError) as caught:
            open_stream(f"{scheme}://admin:hunter2@127.0.0.1:{port}/live?token=hunter2")
        message = str(caught.value)
        assert "hunter2" not in message and "admin" not in message
        assert f"cannot open {scheme}://***@127.0.0.1:{port}/live?***" in message
    assert "hunter2" not in "".join(capfd.readouterr())


def test_missing_webcam():
    with pytest.raises(SourceError, match="cannot open camera 97; it is not plugged in"):
        open_stream("97")


def test_timeouts_must_be_above_zero():
    with pytest.raises(UsageError, match="timeout"):
        open_stream(0, open_timeout=0)


@pytest.mark.parametrize(
    "url, shown",
    [
        ("rtsp://h/a", "rtsp://h/a"),
        ("rtsp://u:p@h:5/a?x=1#y", "rtsp://***@h:5/a?***"),
        ("rtsp://u:p/w@x@h/a", "rtsp://***@h/a"),
    ],
)
def test_credentials_are_hidden(url, shown):
    assert hide_credentials(url) == shown


class Capture:
    """Stands for OpenCV's capture: gives a number of frames, then is lost.

    With a gate, all frames but the first one, and the loss, wait for it.
    """

    def __init__(self, frames, gate=None):
        self.left, self.gate, self.first = frames, gate, True

    def grab(self):
        if self.gate and not self.first:
            self.gate.wait(10)
        self.first = False
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.zeros((2, 2, 3), np.uint8)

    def get(self, what):
        assert what == cv2.CAP_PROP_POS_MSEC
        return -100.0 * self.left

    def release(self):
        pass


class Clock:
    """Stands for the module `time`: each look at the monotonic clock takes the next time."""

    def __init__(self, *times):
        self.times = iter((0, *times))
        self.wall = iter((1000.0,))  # looked at once: setting the clock later changes nothing

    def monotonic(self):
        return next(self.times)

    def time(self):
        return next(self.wall)


def fake(monkeypatch, *captures, **options):
    captures = iter(captures)
    monkeypatch.setattr(CameraStream, "_connect", lambda self: next(captures, None))
    return CameraStream("rtsp://h/a", **options)


def test_slow_reader_gets_the_newest_frame(monkeypatch):
    stream = fake(monkeypatch, Capture(11), reconnect=False)
    stream._thread.join(10)
    assert [frame.index for frame in stream] == [10]
    assert (stream.stats.frames, stream.stats.dropped) == (1, 10)


def test_finite_video_waits_for_its_reader(monkeypatch):
    monkeypatch.setattr(CameraStream, "live", False)
    stream = fake(monkeypatch, Capture(500))
    assert [frame.index for frame in stream] == list(range(500))
    assert stream.stats.dropped == 0


def test_sampling_and_late_frames(monkeypatch):
    monkeypatch.setattr(camera, "time", Clock(0, 0.1, 0.9, 1.1, 3.5, 3.6))
    stream = fake(monkeypatch, Capture(6), reconnect=False, fps=1)
    stream._thread.join(10)
    (frame,) = stream
    assert (frame.index, frame.timestamp) == (4, 1003.5)
    assert stream.stats.skipped == 3  # 0.1, 0.9 and 3.6
    assert stream.stats.dropped == 2  # 0 and 1.1, replaced by 3.5
    assert stream.stats.late == 1  # nothing came for 2 s


def test_close_ends_the_iteration_though_the_camera_is_silent(monkeypatch):
    gate = threading.Event()
    stream = fake(monkeypatch, Capture(5, gate))
    taken, first = [], threading.Event()

    def consume():
        for frame in stream:
            taken.append(frame.index)
            first.set()

    consumer, closer = threading.Thread(target=consume), threading.Thread(target=stream.close)
    consumer.start()
    assert first.wait(10)
    closer.start()
    consumer.join(10)
    assert not consumer.is_alive() and closer.is_alive() and taken == [0]
    gate.set()
    closer.join(10)
    assert not closer.is_alive()


def test_close_interrupts_the_back_off(monkeypatch):
    monkeypatch.setattr(camera, "FIRST_DELAY", 1000.0)
    stream = fake(monkeypatch, Capture(1))
    next(stream)
    stream.close()
    assert list(stream) == []


def test_back_off_doubles_to_thirty_seconds_and_only_a_frame_resets_it(monkeypatch):
    gate = threading.Event()
    hang_ups = [Capture(0) for _ in range(8)]
    stream = fake(monkeypatch, Capture(1, gate), *hang_ups, None, Capture(1), Capture(0))
    delays = []

    def wait(delay):
        delays.append(delay)
        return len(delays) > 11

    monkeypatch.setattr(stream._closed, "wait", wait)
    monkeypatch.setattr(stream._random, "uniform", lambda low, high: high)
    gate.set()
    stream._thread.join(10)
    assert delays == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.25, 0.5]
    assert stream.stats.reconnects == 10  # all but the None
    stream.close()


def test_a_camera_that_sends_nothing_is_an_error(monkeypatch):
    with pytest.raises(SourceError, match="opens but gives no frame"):
        fake(monkeypatch, Capture(0))
