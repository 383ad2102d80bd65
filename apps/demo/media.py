"""Routes beside Gradio's: the live socket, the webcam's, stored pictures, files in and out.

Every route under ``/visit/{token}/`` needs the token of a visit; with another one it does not
exist. Nothing that belongs to a visit may be kept by a browser or a proxy.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from itertools import chain
from pathlib import Path

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from vismem.errors import StoreError, VismemError

from .session import Session
from .sessions import Sessions
from .sources import open_clip
from .views import state
from .webcam import PushedStream

__all__ = ["media_routes"]

AHEAD = 2  # pictures on their way that the page has not shown yet; more would only be late
STATE_SECONDS = 0.5  # between two looks at the memory
LARGEST_SHOT = 1_000_000  # bytes of one picture of a webcam
UNKNOWN_VISIT = 4404  # closes a socket whose token is nobody's
LEFT = (1001, 4001)  # what a browser, or our page, says when its tab is closed or reloaded
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
STATIC = {"live.js": "text/javascript", "style.css": "text/css"}


def media_routes(sessions: Sessions) -> APIRouter:
    """Make the routes.

    Args:
        sessions: All visits.
    """
    router = APIRouter()

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            return Response(status_code=404)
        body = (files("vismem.apps.demo") / name).read_bytes()
        return Response(body, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    @router.get("/visit/{token}/moment/{key}.jpg")
    def thumbnail(token: str, key: str) -> Response:
        session = sessions.of(token)
        jpeg = session.thumbnail(key) if session else b""
        if not jpeg:
            return Response(status_code=404, headers=PRIVATE)
        return Response(jpeg, media_type="image/jpeg", headers=PRIVATE)

    @router.put("/visit/{token}/clip")
    async def clip(token: str, request: Request) -> Response:
        session = sessions.of(token)
        if session is None:
            return _told("this visit has ended; load the page again", 404)

        def play(path: Path) -> None:
            session.watch(lambda: open_clip(path, session.settings))

        return await _received(request, session, "clip-", play)

    @router.put("/visit/{token}/memory")
    async def load(token: str, request: Request) -> Response:
        session = sessions.of(token)
        if session is None:
            return _told("this visit has ended; load the page again", 404)
        loaded = session.load

        def take(path: Path) -> None:
            loaded(path)
            path.unlink()

        return await _received(request, session, "memory-", take)

    @router.get("/visit/{token}/memory")
    def save(token: str) -> Response:
        session = sessions.of(token)
        if session is None:
            return Response(status_code=404, headers=PRIVATE)
        pieces = session.pack()
        try:
            first = next(pieces)  # what goes wrong goes wrong before the answer begins
        except VismemError as error:
            return _told(str(error), 507 if isinstance(error, StoreError) else 409)
        named = {"Content-Disposition": 'attachment; filename="memory.vismem"'}
        return StreamingResponse(
            chain([first], pieces), media_type="application/x-tar", headers=PRIVATE | named
        )

    @router.websocket("/visit/{token}/live")
    async def live(socket: WebSocket, token: str) -> None:
        session = sessions.of(token)
        await socket.accept()
        if session is None:
            await socket.close(UNKNOWN_VISIT)
            return
        session.viewers += 1
        code = 0
        try:
            code = await _live(socket, session)
        finally:
            session.viewers -= 1
            session.last_seen = time.monotonic()
            # A tab that is closed says so; a line that breaks does not, and may come back.
            if code in LEFT and not session.viewers:
                await asyncio.to_thread(sessions.end, session)

    @router.websocket("/visit/{token}/webcam")
    async def webcam(socket: WebSocket, token: str) -> None:
        session = sessions.of(token)
        await socket.accept()
        if session is None:
            await socket.close(UNKNOWN_VISIT)
            return
        stream = PushedStream("webcam", pixels=session.settings.pixels)
        try:
            await asyncio.to_thread(session.watch, lambda: stream)
            await _shots(socket, stream)
        except (VismemError, WebSocketDisconnect):
            pass
        finally:
            stream.close()

    return router


async def _live(socket: WebSocket, session: Session) -> int:
    """Send pictures and what is remembered until the page goes; gives the socket's last word."""
    shown = asyncio.Event()
    on_the_way = 0

    async def listen() -> int:
        nonlocal on_the_way
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or 0)
            on_the_way = max(0, on_the_way - 1)
            shown.set()

    async def send() -> int:
        nonlocal on_the_way
        number, told, next_state = 0, "", 0.0
        while not session.closed:
            picture = session.picture
            if picture.number != number and picture.jpeg and on_the_way < AHEAD:
                number, on_the_way = picture.number, on_the_way + 1
                await socket.send_bytes(picture.jpeg)
            if time.monotonic() >= next_state:
                next_state = time.monotonic() + STATE_SECONDS
                told, values = await asyncio.to_thread(state, session, told)
                await socket.send_json(values)
            await asyncio.sleep(0.01)
        await socket.close(UNKNOWN_VISIT)
        return 0

    listening, _ = tasks = asyncio.create_task(listen()), asyncio.create_task(send())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Where sending failed, what the page said last may still be on its way.
        await asyncio.wait([listening], timeout=1.0)
        return listening.result() if listening.done() and not listening.exception() else 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _shots(socket: WebSocket, stream: PushedStream) -> None:
    """Take pictures of a webcam, the next one when the last one was taken up."""
    await socket.send_text("next")
    while True:
        jpeg = await socket.receive_bytes()
        if len(jpeg) > LARGEST_SHOT:
            await socket.close(1009)
            return
        stream.push(jpeg)
        for _ in range(200):
            if not stream.waiting:
                break
            await asyncio.sleep(0.01)
        await socket.send_text("next")


async def _received(
    request: Request, session: Session, prefix: str, use: Callable[[Path], None]
) -> Response:
    """Write a request's body to a file of the visit, then use it; earlier ones of its kind go."""
    limit = session.settings.upload_bytes
    too_large = _told(f"a file may have at most {limit // 10**6} MB", 413)
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdecimal() or int(claimed) > limit:
        return too_large
    if session.receiving:
        return _told("one file after the other", 409)
    size, kept = 0, False
    try:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=session.folder)
        path = Path(name)
    except OSError:
        return _told("there is no room for the file", 507)
    session.receiving = True
    try:
        with open(handle, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    return too_large
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(use, path)
        kept = True
    except VismemError as error:
        # The visitor knows nothing of the folder that the file lies in.
        told = re.sub(rf"{re.escape(str(session.folder))}\S*", "this file", str(error))
        return _told(told, 400)
    except (OSError, ClientDisconnect):
        return _told("the file could not be received", 400)
    finally:
        session.receiving = False
        for old in session.folder.glob(f"{prefix}*"):
            if old.is_file() and (old == path) != kept:
                old.unlink(missing_ok=True)
    return _told("", 200)


def _told(problem: str, status: int) -> JSONResponse:
    return JSONResponse({"problem": problem}, status, headers=PRIVATE)
