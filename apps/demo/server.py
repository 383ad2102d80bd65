"""The server: our routes, the page, and what keeps strangers out."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: E402

from vismem.encoders import load_encoder  # noqa: E402
from vismem.heads.detect import people, person_looks  # noqa: E402

from .gate import Gate  # noqa: E402
from .media import media_routes  # noqa: E402
from .page import THEME, make_page  # noqa: E402
from .session import Models  # noqa: E402
from .sessions import Sessions  # noqa: E402
from .settings import DemoSettings  # noqa: E402

__all__ = ["load_models", "make_app", "serve"]

M_ARENA_MAX = -8  # as <malloc.h> numbers it
HEAD = (
    '<meta name="referrer" content="no-referrer">'
    '<link rel="stylesheet" href="static/style.css"><script src="static/live.js"></script>'
)


def load_models() -> Models:
    """Load the networks, and warm them up so that the first visitor does not wait."""
    import numpy as np

    torch.set_num_threads(1)
    models = Models(load_encoder("embedded"), people(), person_looks())
    blank = np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)
    models.encoder.encode([blank])
    models.encoder.query("a cat")
    boxes, _ = models.propose(blank, 0.5)
    models.look(blank, torch.tensor([[0.2, 0.2, 0.4, 0.8]]))
    return models


def make_app(settings: DemoSettings, models: Models) -> FastAPI:
    """Put the server together.

    Args:
        settings: Of the demo.
        models: What all visits share.

    Returns:
        The application; ``app.state.sessions`` are its visits, ended when it shuts down.
    """
    sessions = Sessions(settings, models)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        sessions.close()

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.sessions = sessions
    if settings.local:
        # Another page in the visitor's browser cannot pose as this one under a name of its own.
        hosts = ["localhost", "127.0.0.1", "[::1]", settings.host]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    app.add_middleware(Gate)
    app.include_router(media_routes(sessions))
    page = make_page(sessions, settings)
    page.queue(default_concurrency_limit=2 * settings.seats, max_size=8 * settings.seats)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=settings.auth,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=1,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        head=HEAD,
    )


def share_arenas() -> None:
    """Let all threads take their memory from two places, where the C library can.

    glibc gives every thread a place of its own and seldom takes back what was freed in it: a visit
    has threads of its own, and each would leave some 40 MB of holes behind.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def serve(settings: DemoSettings) -> None:
    """Serve until stopped."""
    share_arenas()
    app = make_app(settings, load_models())
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,  # addresses hold tokens
        ws_per_message_deflate=False,  # a JPEG does not shrink
        ws_max_size=2_000_000,
        timeout_graceful_shutdown=2,
    )
