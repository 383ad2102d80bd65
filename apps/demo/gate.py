"""`Gate`: what every request passes before it reaches a route."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate"]

# The page may load nothing from anywhere else, and nobody may frame it.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; "
    "form-action 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
# Doors of Gradio's that this page does not use: files go through routes that know their visit.
SHUT = (
    "/openapi.json",
    "/monitoring",
    *(
        f"/gradio_api/{door}"
        for door in ("upload", "file", "proxy", "stream", "component_server", "deep_link", "dev")
    ),
)
LARGEST_FORM = 1_000_000  # bytes; Gradio holds a whole request in RAM, before it asks who sent it


class Gate:
    """Turns away other pages, long forms and doors not in use; sends the headers of the page.

    Args:
        app: What lies behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on; see the class."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        status = _refused(scope["path"], Headers(scope=scope))
        if status and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if status:
            return await Response(status_code=status)(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, answer)


def _refused(path: str, headers: Headers) -> int:
    """The status with which a request is turned away; 0 if it may go on."""
    if path.startswith(SHUT):
        return 404
    # Browsers name the page that sends a form or opens a socket. Gradio lets any page use the
    # login of a visitor, and other ports of this machine read the answers.
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return 403
    # The routes below /visit/ look at the token first and count what they take.
    if not path.startswith("/visit/"):
        if "transfer-encoding" in headers:
            return 411
        if int(headers.get("content-length", "0")) > LARGEST_FORM:
            return 413
    return 0
