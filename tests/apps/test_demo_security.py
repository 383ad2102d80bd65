"""What strangers try on the demo's server; `docs/security.md` lists it, and where else it is tried.

Without a browser, and with a tiny encoder in place of the networks.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripted import until
from starlette.websockets import WebSocketDisconnect
from tiny_encoder import TinyEncoder
from vismem.apps.demo import views
from vismem.apps.demo.gate import LARGEST_FORM
from vismem.apps.demo.server import make_app
from vismem.apps.demo.session import Models, Session
from vismem.apps.demo.settings import DemoSettings
from vismem.apps.demo.sources import open_clip
from vismem.apps.demo.webcam import PushedStream

from vismem.encoders.base import Encoding
from vismem.errors import SourceError, StoreError, VismemError
from vismem.frame import Frame
from vismem.pipeline import VisualMemory
from vismem.store import pack_memory
from vismem.streams.guard import GuardedCamera

HOME = "http://127.0.0.1"


@pytest.fixture
def client(settings: DemoSettings, models: Models) -> Iterator[TestClient]:
    with TestClient(make_app(settings, models), base_url=HOME) as client:
        yield client


@pytest.fixture
def visit(client: TestClient) -> Session:
    session = client.app.state.sessions.open()  # type: ignore[attr-defined]
    session.viewers += 1  # somebody is there
    return session


# --------------------------------------------------------------------------- other pages

ELSEWHERE = (
    "http://evil.example",
    "http://127.0.0.1.evil.example",
    "http://127.0.0.1:9999",  # another program of this machine
    "http://localhost",
    "null",  # a file, or a frame in a sandbox
)


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_other_pages_send_no_form(client: TestClient, visit: Session, origin: str) -> None:
    before = len(client.app.state.sessions)  # type: ignore[attr-defined]
    begin = {"data": [], "fn_index": 0, "session_hash": "x"}
    own = f"/visit/{visit.token}"
    for method, path in (
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/call/begin"),
        ("POST", "/login"),
        ("PUT", f"{own}/clip"),
        ("PUT", f"{own}/memory"),
        ("GET", f"{own}/memory"),
        ("GET", "/config"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ):
        reply = client.request(method, path, json=begin, headers={"Origin": origin})
        assert reply.status_code == 403, path
        assert "access-control-allow-origin" not in reply.headers
    assert len(client.app.state.sessions) == before  # type: ignore[attr-defined]
    assert list(visit.folder.iterdir()) == []


@pytest.mark.parametrize("origin", ELSEWHERE)
@pytest.mark.parametrize("kind", ["live", "webcam"])
def test_other_pages_open_no_socket_even_with_a_token(
    client: TestClient, visit: Session, kind: str, origin: str
) -> None:
    path = f"/visit/{visit.token}/{kind}"
    with pytest.raises(WebSocketDisconnect) as refused:
        with client.websocket_connect(path, headers={"Origin": origin, "Host": "127.0.0.1"}):
            pass
    assert refused.value.code == 1008
    assert visit.viewers == 1 and visit.player is None


def test_its_own_page_may(client: TestClient, visit: Session) -> None:
    own = {"Origin": HOME, "Host": "127.0.0.1"}
    assert client.get("/config", headers=own).status_code == 200
    with client.websocket_connect(f"/visit/{visit.token}/live", headers=own) as socket:
        assert "facts" in socket.receive_json()


def test_every_answer_keeps_the_page_to_itself(client: TestClient) -> None:
    for path in ("/", "/static/live.js", "/config", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"].split("; ")
        for rule in ("connect-src 'self'", "frame-ancestors 'none'", "form-action 'self'"):
            assert rule in policy
        assert headers["x-content-type-options"] == "nosniff"


# --------------------------------------------------------------------------- too much


def test_long_forms_are_refused_unread(client: TestClient) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/call/begin", "/login", "/gradio_api/reset"):
        long = {"Content-Length": str(LARGEST_FORM + 1)}
        assert client.post(path, content=b"{}", headers=long).status_code == 413
        endless = client.post(path, content=iter([b"{}"]))  # in pieces, of no said length
        assert endless.status_code == 411


def test_one_file_at_a_time(client: TestClient, visit: Session) -> None:
    first = visit.pack()
    assert next(first)
    with pytest.raises(VismemError, match="one"):
        next(visit.pack())
    first.close()
    assert len(b"".join(visit.pack())) > 1000 and list(visit.folder.iterdir()) == []
    visit.receiving = True
    for kind in ("clip", "memory"):
        reply = client.put(f"/visit/{visit.token}/{kind}", content=b"x")
        assert reply.status_code == 409
    assert list(visit.folder.iterdir()) == []


def flat(width: int, height: int, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "JPEG", **options)
    return file.getvalue()


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A picture whose header says another size."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def many_scans(jpeg: bytes, times: int) -> bytes:
    """A picture with its last scan so many times; each takes a look at every pixel."""
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * times + jpeg[-2:]


@pytest.mark.parametrize(
    "bomb, said",
    [
        (claiming(flat(64, 64), 60_000, 60_000), "no JPEG came"),
        (claiming(flat(64, 64), 9_000, 9_000), "a picture is too large"),
        (many_scans(flat(400, 300, progressive=True), 40_000), "a picture has too many scans"),
        (many_scans(flat(400, 300), 100), "a picture has too many scans"),
    ],
    ids=["60000x60000", "9000x9000", "progressive scans", "scans"],
)
def test_a_picture_that_would_burst_is_not_decoded(bomb: bytes, said: str) -> None:
    assert len(bomb) < 1_000_000
    with PushedStream("webcam", pixels=4096 * 2304) as stream:
        assert stream._decode(bomb) is None
        assert said in str(stream.stats.problems)
        assert stream._decode(flat(400, 300)) is not None


def test_a_clip_that_grows_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "growing.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, jpeg in enumerate([flat(64, 48)] * 3 + [flat(2000, 2000)] * 3):
            packet = av.Packet(jpeg)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 5), stream
            container.mux(packet)
    settings = DemoSettings(pixels=400 * 400)
    with open_clip(path, settings) as clip:
        assert {frame.image.shape for frame in clip} == {(48, 64, 3)}
        assert clip.stats.dropped == 3


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{}'/></svg>",
        '<?xml version="1.0"?><MPD><BaseURL>{}</BaseURL></MPD>',
    ],
    ids=["hls", "concat", "sdp", "svg", "dash"],
)
def test_a_playlist_reads_no_other_file(tmp_path: Path, text: str) -> None:
    (hidden := tmp_path / "hidden.mp4").write_bytes(b"secret")
    (clip := tmp_path / "clip.mp4").write_text(text.format(hidden))
    with pytest.raises(SourceError, match="no video"):
        open_clip(clip, DemoSettings())


# --------------------------------------------------------------------------- loaded memories


class Liar(TinyEncoder):
    """Says it is the tiny encoder, and sees what a stranger likes."""

    label_names = (*TinyEncoder.label_names, *(f"name {number}" for number in range(5000)))

    def __init__(self, **labels: object) -> None:
        super().__init__()
        self._labels = labels

    def _encode(self, image: np.ndarray) -> Encoding:
        true = super()._encode(image)
        return dataclasses.replace(true, labels=dataclasses.replace(true.labels, **self._labels))


SCRIPT = "<img src=x onerror=alert(1)>"


def forged(folder: Path, liar: Liar, step: float = 1.0) -> bytes:
    """A memory with sound digests and false content, whose stream is named like a script."""
    with VisualMemory("1MB", policy="flash", encoder=liar) as memory:
        for index in range(6):
            image = np.full((36, 64, 3), 20 * index, np.uint8)
            image[0, 0] = 1
            memory.write(Frame(image, step * (index + 1), SCRIPT, index))
        memory.flush()
        memory.copy(folder / "forged.mem")
    return b"".join(pack_memory(folder / "forged.mem"))


@pytest.mark.parametrize(
    "labels, step",
    [
        ({}, 1.0),
        ({"ids": np.array([4000])}, 1.0),
        ({"scores": np.array([np.nan])}, 1.0),
        ({"scores": np.array([1e30])}, 1.0),
        ({"counts": np.array([-5])}, 1.0),
        ({"boxes": np.full((1, 4), np.nan)}, 1.0),
        ({}, 1e15),
        ({}, -1e9),
    ],
    ids=["name", "label", "nan", "score", "count", "box", "end of time", "before time"],
)
def test_a_forged_memory_breaks_nothing(
    session: Session, tmp_path: Path, labels: dict[str, np.ndarray], step: float
) -> None:
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in labels.items()}
    (archive := tmp_path / "archive").write_bytes(forged(tmp_path, Liar(**tensors), step))
    session.load(archive)
    _, values = views.state(session, "")
    session.ask("a cat")
    session.ask("what happened in the last 20 seconds?")
    shown = str(values) + views.chat(session.turns, session.token)
    assert "<img src=x" not in shown
    assert values["map"].count("<text") <= 8, "as many times as fit"
    session.change(policy="star", budget="100kB")
    session.forget(0, 2)


class Broken(VisualMemory):
    def close(self) -> None:
        super().close()
        raise IndexError("a number that is no label's")


def test_a_memory_that_cannot_be_closed_takes_no_seat(client: TestClient, visit: Session) -> None:
    visit._memory.close()
    visit._memory = Broken("1MB", encoder=TinyEncoder())
    visit.viewers = 0  # its page is gone: whoever ends such visits must outlive this one
    until(lambda: not visit.folder.exists() and not len(client.app.state.sessions))  # type: ignore[attr-defined]
    client.app.state.sessions.open()  # type: ignore[attr-defined]
    until(lambda: not len(client.app.state.sessions))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["gzip", "zip of nothing", "tar of zeros"])
def test_a_bomb_is_no_memory(session: Session, tmp_path: Path, kind: str) -> None:
    bombs = {
        "gzip": gzip.compress(bytes(50_000_000)),
        "zip of nothing": b"PK\5\6" + bytes(18),
        "tar of zeros": bytes(100_000),
    }
    (archive := tmp_path / "archive").write_bytes(bombs[kind])
    with pytest.raises(StoreError):
        session.load(archive)
    assert list(session.folder.iterdir()) == []


# --------------------------------------------------------------------------- secrets


def test_no_password_of_a_camera_is_told(capfd: pytest.CaptureFixture) -> None:
    for url in (
        "http://me:hunter2@127.0.0.1:9/video?key=hunter2",
        "rtsp://me:hunter2@127.0.0.1:9/live",
    ):
        with pytest.raises(SourceError) as failed:
            GuardedCamera(url, allow=["127.0.0.1"], open_timeout=2, reconnect=False)
        assert "hunter2" not in str(failed.value)
    assert "hunter2" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/config"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/queue/data?session_hash=x"),
        ("GET", "/gradio_api/queue/status"),
        ("GET", "/gradio_api/call/begin/x"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/run/begin"),
        ("POST", "/gradio_api/api/begin"),
        ("POST", "/gradio_api/call/begin"),
    ],
)
def test_nothing_begins_without_the_password(models: Models, method: str, path: str) -> None:
    settings = DemoSettings(host="0.0.0.0", auth=("me", "secret-word"))
    body = {"data": [], "fn_index": 0, "session_hash": "x", "component_id": 1, "fn_name": "x"}
    with TestClient(make_app(settings, models)) as client:
        for cookie in ({}, {"access-token": "guess", "access-token-unsecure": "guess"}):
            client.cookies.update(cookie)
            reply = client.request(method, path, json=body)
            assert reply.status_code == 401 and "secret-word" not in reply.text
        form = {"username": "me", "password": "guess"}
        assert client.post("/login", data=form).status_code == 400
        assert len(client.app.state.sessions) == 0  # type: ignore[attr-defined]
