"""The page: Gradio's controls around what `live.js` draws.

A callback looks up the visit by its token, calls it, and shows what it said; nothing is decided
here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from vismem.errors import UsageError, VismemError
from vismem.heads.answer import clock
from vismem.memory.base import Budget
from vismem.memory.policies import POLICIES
from vismem.streams import Stream
from vismem.streams.guard import GuardedCamera

from . import skeleton
from .session import Session
from .sessions import Sessions
from .settings import BUDGETS, DemoSettings
from .sources import first_clip
from .views import chat, speaking

__all__ = ["THEME", "make_page"]

EXAMPLES = (
    "when does the cat appear?",
    "how many people?",
    "what happened in the last 20 seconds?",
    "an elephant",
)
GALLERY, OWN, WEBCAM, CAMERA = "Gallery", "Your clip", "Webcam", "Camera"
WORD_SECONDS = 0.04
FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# The machine's own fonts: the page loads nothing from elsewhere.
THEME = gr.themes.Base(font=FONTS, font_mono=MONO, primary_hue="orange", neutral_hue="stone")
ENDED = "This visit has ended. Load the page again."

html = partial(gr.HTML, apply_default_css=False)
Said = str  # a line for the visitor; empty where there is nothing to say


def make_page(sessions: Sessions, settings: DemoSettings) -> gr.Blocks:
    """Build the page.

    Args:
        sessions: All visits.
        settings: Of the demo.
    """

    def begin() -> tuple[str, Said]:
        session = sessions.open()
        if session is None:
            return "", "Every seat is taken at the moment. Try again in a minute."
        return session.token, _tried(lambda: _gallery(session, settings))

    def of(act: Callable[..., Any]) -> Callable[..., Said]:
        """Make a callback of what is done with a visit."""

        def callback(token: str, *values: Any) -> Said:
            session = sessions.of(token)
            return _tried(lambda: act(session, *values)) if session else ENDED

        return callback

    def choose(session: Session, source: str) -> None:
        if source == GALLERY:
            _gallery(session, settings)

    def ask(token: str, question: str) -> Iterator[tuple[Any, str, Any, Said]]:
        session = sessions.of(token)
        if session is None:
            yield gr.skip(), "", gr.skip(), ENDED
            return
        yield gr.skip(), speaking(question, ""), "", ""
        try:
            turn = session.ask(question)
        except (VismemError, ValueError) as error:
            yield gr.skip(), "", gr.skip(), str(error)
            return
        words = turn.answer.text.split()
        for said in range(1, len(words) + 1, 1 + len(words) // 12):
            yield gr.skip(), speaking(question, " ".join(words[:said])), gr.skip(), ""
            time.sleep(WORD_SECONDS)
        yield chat(session.turns, session.token), "", gr.skip(), ""

    def forget(token: str, start: str, end: str) -> tuple[Any, Said]:
        session = sessions.of(token)
        if session is None:
            return gr.skip(), ENDED
        try:
            gone = session.forget(_seconds(start), _seconds(end))
        except (VismemError, ValueError) as error:
            return gr.skip(), str(error)
        told = f"{gone} moment{'s' * (gone != 1)} between {start} and {end} forgotten."
        return _log(session), told

    def sync(token: str) -> tuple[str, Any, Any]:
        session = sessions.of(token)
        if session is None:
            return "", gr.skip(), gr.skip()
        held = session.memory.budget.bytes
        known = [text for text in BUDGETS if Budget.parse(text).bytes == held]
        return _log(session), gr.update(value=known[0] if known else None), session.memory.policy

    with gr.Blocks(title="vismem", analytics_enabled=False, fill_width=True) as page:
        token = gr.Textbox(visible="hidden", elem_id="token")
        notice = gr.Textbox(visible="hidden", elem_id="said")
        newer = gr.Button(visible="hidden", elem_id="sync")
        html(skeleton.HEADER)
        with gr.Row(elem_id="room"):
            with gr.Column(scale=12, elem_id="seen", min_width=300):
                html(skeleton.STAGE)
                with gr.Row(elem_id="watch"):
                    source = gr.Radio(
                        [GALLERY, OWN, WEBCAM, CAMERA],
                        value=GALLERY,
                        show_label=False,
                        container=False,
                        elem_id="source",
                    )
                    pause = gr.Button("Pause", elem_id="pause", size="sm", min_width=80)
                    again = gr.Button("Start again", elem_id="again", size="sm", min_width=80)
                with gr.Column(elem_id="from-own", elem_classes="source-panel"):
                    html(skeleton.OWN_CLIP)
                with gr.Column(elem_id="from-webcam", elem_classes="source-panel"):
                    html(skeleton.WEBCAM)
                with gr.Row(elem_id="from-camera", elem_classes="source-panel"):
                    address = gr.Textbox(
                        placeholder="rtsp://user:password@camera.example/stream",
                        show_label=False,
                        container=False,
                        elem_id="address",
                        scale=5,
                        max_lines=1,
                    )
                    connect = gr.Button("Connect", elem_id="connect", size="sm", scale=1)
                html(skeleton.MEMORY)
                html(skeleton.GIVEN_UP)
            with gr.Column(scale=8, elem_id="asked", min_width=300):
                html('<div class="head"><h2>Ask it</h2><p>while it watches</p></div>')
                with gr.Column(elem_id="chat", elem_classes="scroll"):
                    log = html(skeleton.HINT, elem_id="chat-log")
                    now = html(elem_id="chat-now")
                with gr.Row(elem_id="examples"):
                    examples = [
                        gr.Button(text, size="sm", elem_id=f"example-{place}", min_width=40)
                        for place, text in enumerate(EXAMPLES)
                    ]
                with gr.Row(elem_id="ask-row"):
                    question = gr.Textbox(
                        placeholder="What do you want to know?",
                        show_label=False,
                        container=False,
                        elem_id="question",
                        max_length=300,
                        max_lines=1,
                        scale=6,
                    )
                    send = gr.Button("Ask", variant="primary", elem_id="ask", min_width=70)
                with gr.Column(elem_id="dials"):
                    budget = gr.Radio(
                        list(BUDGETS), value=settings.budget, label="Budget", elem_id="budget"
                    )
                    policy = gr.Radio(
                        ["moments", *POLICIES],
                        value="moments",
                        label="Pictures beside the moments",
                        elem_id="policy",
                    )
                    with gr.Row(elem_id="forget-row"):
                        start = gr.Textbox(
                            value="0:00", label="Forget from", elem_id="forget-from", min_width=70
                        )
                        end = gr.Textbox(
                            value="0:10", label="to", elem_id="forget-to", min_width=70
                        )
                        drop = gr.Button("Forget", elem_id="forget", size="sm", min_width=80)
                    html(skeleton.SAVED)
        html(skeleton.VIEWER)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def said(event: Any) -> None:
            event.then(
                None, [notice], js="(said) => { if (said) window.vismem.say(said); }", **quiet
            )

        begun = page.load(begin, None, [token, notice], api_name="begin", show_progress="hidden")
        begun.then(None, [token], js="(token) => window.vismem.open(token)", **quiet)
        said(begun)
        chosen = "(token, source) => (window.vismem.source(source), [token, source])"
        said(source.input(of(choose), [token, source], [notice], js=chosen, **quiet))
        url = of(lambda session, url: _camera(session, url, settings))
        said(gr.on([connect.click, address.submit], url, [token, address], [notice], **quiet))
        said(pause.click(of(_pause), [token], [notice], **quiet))
        said(again.click(of(lambda session: session.again()), [token], [notice], **quiet))
        bytes_ = of(lambda session, value: session.change(budget=value))
        said(budget.input(bytes_, [token, budget], [notice], **quiet))
        bank = of(lambda session, value: session.change(policy=value))
        said(policy.input(bank, [token, policy], [notice], **quiet))
        newer.click(sync, [token], [log, budget, policy], **quiet)
        said(drop.click(forget, [token, start, end], [log, notice], **quiet))
        asked: dict[str, Any] = {
            "outputs": [log, now, question, notice],
            "show_progress": "hidden",
            "concurrency_limit": 2 * settings.seats,
            "concurrency_id": "ask",
        }
        said(gr.on([question.submit, send.click], ask, [token, question], api_name="ask", **asked))
        for example in examples:
            said(example.click(ask, [token, example], api_visibility="private", **asked))
    return page


def _log(session: Session) -> str:
    return chat(session.turns, session.token) or skeleton.HINT


def _tried(act: Callable[[], None]) -> Said:
    """Do it; gives what went wrong, for the visitor."""
    try:
        act()
    except (VismemError, ValueError) as error:
        return str(error)
    return ""


def _gallery(session: Session, settings: DemoSettings) -> None:
    session.watch(lambda: first_clip(settings), again=True)


def _camera(session: Session, url: str, settings: DemoSettings) -> None:
    """Watch a camera whose address a stranger gave: nothing in this machine's own network."""

    def source() -> Stream:
        allow, fps = settings.allow_hosts, settings.watch_fps
        return GuardedCamera(url.strip(), allow=allow, fps=fps, name="camera")

    session.watch(source)


def _pause(session: Session) -> None:
    player = session.player
    if player is not None:
        session.pause(not player.paused)


def _seconds(text: str) -> float:
    """Seconds of a time as the page writes it.

    Example:
        >>> _seconds("1:05"), _seconds("12.5"), _seconds("1:00:00")
        (65.0, 12.5, 3600.0)
    """
    if not re.fullmatch(r"\s*(\d{1,3}:)?(\d{1,4}:)?\d{1,6}(\.\d{1,3})?\s*", text):
        raise UsageError(f"write a time like {clock(10)}")
    value = 0.0
    for part in text.strip().split(":"):
        value = 60 * value + float(part)
    return value
