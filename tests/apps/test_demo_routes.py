"""The server's own routes: what a token opens, and that nothing opens without one."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from scripted import Scripted, every, until
from starlette.websockets import WebSocketDisconnect
from vismem.apps.demo.media import LARGEST_SHOT, UNKNOWN_VISIT
from vismem.apps.demo.server import make_app
from vismem.apps.demo.session import Models, Session
from vismem.apps.demo.sessions import Sessions
from vismem.apps.demo.settings import DemoSettings


@pytest.fixture
def client(settings: DemoSettings, models: Models) -> Iterator[TestClient]:
    app = make_app(settings, models)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def visit(client: TestClient) -> Session:
    sessions: Sessions = client.app.state.sessions  # type: ignore[attr-defined]
    session = sessions.open()
    assert session is not None
    session.viewers += 1  # somebody is there
    return session


def jpeg(width: int = 64, height: int = 36, seen: int = 1) -> bytes:
    image = np.full((height, width, 3), 40, np.uint8)
    image[..., 2] = seen
    return cv2.imencode(".jpg", image)[1].tobytes()


def clip(path: Path, width: int = 64, height: int = 48, frames: int = 10) -> bytes:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for number in range(frames):
        writer.write(np.full((height, width, 3), 20 * number, np.uint8))
    writer.release()
    return path.read_bytes()


PATHS = [
    ("GET", "/visit/{}/moment/m0.0.jpg"),
    ("GET", "/visit/{}/memory"),
    ("PUT", "/visit/{}/memory"),
    ("PUT", "/visit/{}/clip"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_route_opens_without_its_token(
    client: TestClient, visit: Session, method: str, path: str
) -> None:
    for wrong in ("guess", visit.token[:-1], visit.token + "A", "..", "%00"):
        assert client.request(method, path.format(wrong), content=b"x").status_code == 404


@pytest.mark.parametrize("kind", ["live", "webcam"])
def test_no_socket_opens_without_its_token(client: TestClient, kind: str) -> None:
    with client.websocket_connect(f"ws://127.0.0.1/visit/guess/{kind}") as socket:
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_bytes()
        assert closed.value.code == UNKNOWN_VISIT


def test_one_visit_sees_nothing_of_another(client: TestClient, visit: Session) -> None:
    visit.watch(lambda: Scripted(every(0.1, 20)))
    until(lambda: visit.memory.describe()["frames"] > 1)
    other = client.app.state.sessions.open()  # type: ignore[attr-defined]
    path = "/visit/{}/moment/m0.0.jpg"
    assert client.get(path.format(visit.token)).status_code == 200
    assert client.get(path.format(other.token)).status_code == 404
    own, others = (len(client.get(f"/visit/{s.token}/memory").content) for s in (visit, other))
    assert others < own


def test_pictures_and_facts_come_over_one_socket(client: TestClient, visit: Session) -> None:
    visit.watch(lambda: Scripted(every(0.05, 100)))
    pictures = states = 0
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/live") as socket:
        while pictures < 5 or states < 2:
            message = socket.receive()
            if "bytes" in message and message["bytes"]:
                pictures += 1
                assert message["bytes"][:2] == b"\xff\xd8"
                socket.send_text("shown")
            else:
                states += 1
        assert visit.viewers == 2


def test_a_page_that_shows_nothing_gets_no_more_pictures(
    client: TestClient, visit: Session
) -> None:
    visit.watch(lambda: Scripted(every(0.02, 200)))
    pictures = 0
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/live") as socket:
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            pictures += bool(socket.receive().get("bytes"))
    assert pictures == 2


@pytest.mark.parametrize(("code", "ends"), [(1001, True), (4001, True), (1006, False)])
def test_a_tab_that_leaves_ends_its_visit_a_broken_line_does_not(
    client: TestClient, visit: Session, code: int, ends: bool
) -> None:
    visit.settings = replace(visit.settings, patience=3.0)
    visit.viewers, client.app.state.sessions.settings = 0, visit.settings  # type: ignore[attr-defined]
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/live") as socket:
        socket.receive()
        assert visit.viewers == 1
        socket.close(code)
        until(lambda: visit.viewers == 0)
        assert ends or not visit.closed
        until(lambda: visit.closed)  # in the end for want of a page
        if ends:
            assert time.monotonic() - visit.last_seen < visit.settings.patience


def test_a_webcam_reaches_the_memory(client: TestClient, visit: Session) -> None:
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/webcam") as socket:
        for _ in range(4):
            assert socket.receive_text() == "next"
            socket.send_bytes(jpeg())
        until(lambda: visit.memory.describe()["frames"] > 0)
    until(lambda: visit.player is not None and visit.player.ended)


@pytest.mark.parametrize("shot", [b"", b"no jpeg", jpeg()[:200], jpeg(4000, 3000)])
def test_a_strange_webcam_picture_is_left_out(
    client: TestClient, visit: Session, shot: bytes
) -> None:
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/webcam") as socket:
        for content in (shot, jpeg()):
            assert socket.receive_text() == "next"
            socket.send_bytes(content)
        until(lambda: visit.picture.jpeg)
    assert visit.picture.number == 1


def test_a_huge_webcam_picture_closes_the_socket(client: TestClient, visit: Session) -> None:
    with client.websocket_connect(f"ws://127.0.0.1/visit/{visit.token}/webcam") as socket:
        socket.receive_text()
        socket.send_bytes(b"x" * (LARGEST_SHOT + 1))
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1009


def test_an_uploaded_clip_plays_and_goes_with_the_visit(
    client: TestClient, visit: Session, tmp_path: Path
) -> None:
    for _ in range(2):
        reply = client.put(f"/visit/{visit.token}/clip", content=clip(tmp_path / "a.avi"))
        assert (reply.status_code, reply.json()) == (200, {"problem": ""})
    until(lambda: visit.picture.number > 2)
    assert len(list(visit.folder.iterdir())) == 1  # the earlier one is gone
    client.app.state.sessions.end(visit)  # type: ignore[attr-defined]
    assert not visit.folder.exists()


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"no video" * 100, PLAYLIST, b"ffconcat version 1.0\nfile /etc/passwd\n", b"<svg/>"],
)
def test_what_is_no_video_is_refused_and_deleted(
    client: TestClient, visit: Session, content: bytes
) -> None:
    reply = client.put(f"/visit/{visit.token}/clip", content=content)
    assert reply.status_code == 400 and reply.json()["problem"]
    assert str(visit.folder) not in reply.text
    assert list(visit.folder.iterdir()) == [] and visit.player is None


def test_a_clip_that_is_too_large_is_refused(
    client: TestClient, visit: Session, tmp_path: Path
) -> None:
    wide = client.put(f"/visit/{visit.token}/clip", content=clip(tmp_path / "a.avi", 640, 480, 2))
    assert wide.status_code == 400 and "640x480" in wide.json()["problem"]
    path = f"/visit/{visit.token}/clip"
    assert client.put(path, content=b"x" * 2_000_001).status_code == 413
    assert client.put(path, content=iter([b"x" * 1_000_000] * 3)).status_code == 413  # no length
    lies = {"Content-Length": "-1"}
    assert client.put(path, content=iter([b"x"]), headers=lies).status_code in (400, 413)
    assert list(visit.folder.iterdir()) == []


def test_a_memory_goes_out_and_in(client: TestClient, visit: Session) -> None:
    visit.watch(lambda: Scripted(every(0.1, 20)))
    until(lambda: visit.player is not None and visit.player.ended)
    visit.memory.flush()
    reply = client.get(f"/visit/{visit.token}/memory")
    assert reply.headers["content-disposition"].startswith("attachment")
    other = client.app.state.sessions.open()  # type: ignore[attr-defined]
    other.viewers += 1
    back = client.put(f"/visit/{other.token}/memory", content=reply.content)
    assert back.status_code == 200
    assert other.ask("a cat").answer.moments == visit.ask("a cat").answer.moments
    refused = client.put(f"/visit/{other.token}/memory", content=io.BytesIO(b"\0" * 5000))
    assert refused.status_code == 400 and str(other.folder) not in refused.text
    assert other.ask("a cat").answer.moments


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/static/../server.py",
        "/static/server.py",
        "/static/%2e%2e/server.py",
        "/docs",
        "/openapi.json",
    ],
)
def test_doors_that_are_not_used_are_shut(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        reply = client.request(method, path)
        assert reply.status_code in (403, 404, 405) and "root:" not in reply.text


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    for name in ("live.js", "style.css"):
        text = client.get(f"/static/{name}").text
        assert "https://" not in text.replace("https:// or localhost", "") and "http://" not in text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "169.254.169.254"])
def test_another_name_does_not_reach_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 400


def test_what_belongs_to_a_visit_is_kept_by_no_browser(client: TestClient, visit: Session) -> None:
    visit.watch(lambda: Scripted([0.0, 0.5]))
    until(lambda: visit.memory.describe()["frames"] > 0)
    for path in ("moment/m0.0.jpg", "memory"):
        reply = client.get(f"/visit/{visit.token}/{path}")
        assert reply.status_code == 200 and reply.headers["cache-control"] == "no-store"


def test_a_password_is_asked_for(models: Models) -> None:
    settings = DemoSettings(host="0.0.0.0", auth=("me", "secret"))
    with TestClient(make_app(settings, models)) as client:
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.get("/config").status_code == 401
