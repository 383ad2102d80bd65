"""What the page shows: escaped whatever it is, within bounds, true to the memory."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, every, until
from vismem.apps.demo.map import memory_map
from vismem.apps.demo.session import Session, Turn
from vismem.apps.demo.views import MOST_CARDS, chat, size, speaking, state, timeline

from vismem.heads.answer import Answer, Moment
from vismem.live import MomentView, SceneView

ALLOWED = {"button", "img", "span", "i", "b", "div", "svg", "defs", "pattern", "line", "rect"}
ALLOWED |= {"title", "text", "circle"}


class Tags(HTMLParser):
    """Which tags and attributes a text has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.names += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</button></div><iframe src=//evil>",
    "&lt;b&gt; javascript:alert(1) \u202e {{7*7}} ${7*7}",
]


def safe(html: str) -> Tags:
    found = Tags(html)
    assert set(found.tags) <= ALLOWED, found.tags
    assert not [name for name in found.names if name.startswith("on")]
    return found


def turn(text: str, label: str, question: str) -> Turn:
    moment = Moment(1.0, 2.0, 0.9, label, stream=label, time=1.5, thumbnail=b"x")
    return Turn(1, Answer(question, text, (moment,), False), 0.1)


@pytest.mark.parametrize("bad", HOSTILE)
def test_words_of_strangers_stay_words(bad: str) -> None:
    found = safe(chat([turn(bad, bad, bad)], "token"))
    assert found.text.count(bad) == 2  # question and answer, as they were written
    assert safe(speaking(bad, bad)).text.count(bad) == 2
    view = MomentView("m0.0", bad, 0.0, 1.0, 0.5, 3, bad, 0.9)
    ((_, card),) = timeline([view], "token")
    assert bad in safe(card).text
    scene = SceneView("s0.0", bad, 0.0, 0.0, 1.0, 2, bad, 4, bad)
    safe(memory_map([view], [scene]))


@given(st.text(), st.text())
def test_no_text_makes_a_tag(text: str, label: str) -> None:
    plain = safe(chat([turn("a", "b", "c")], "token")).tags
    assert safe(chat([turn(text, label, text)], "token")).tags == plain


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 100), st.integers(1, 1000)), max_size=30),
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(1, 1000)), max_size=30),
)
def test_the_map_is_sound_and_inside_its_width(
    spans: list[tuple[float, float, int]], dots: list[tuple[float, int]]
) -> None:
    moments, at = [], 0.0
    for number, (gap, length, frames) in enumerate(spans):
        at += gap
        moments.append(MomentView(f"m0.{number}", "s", at, at + length, at, frames, "", 0.0))
        at += length
    scenes = [SceneView(f"s0.{n}", "s", t, t, t, w, "gist", 1, "") for n, (t, w) in enumerate(dots)]
    drawn = memory_map(moments, sorted(scenes, key=lambda scene: scene.time))
    picture = ET.fromstring(drawn[: drawn.index("</svg>") + 6])
    bars = [bar for bar in picture.iter("rect") if bar.get("class") == "bar"]
    assert len(bars) == len(moments) and len(list(picture.iter("circle"))) == len(scenes)
    for bar in bars:
        left, width = (float((bar.get(name) or "")[:-1]) for name in ("x", "width"))
        assert -0.01 <= left <= 100.01 and 0 < width and left + width <= 100.3


def test_many_moments_are_drawn_in_groups() -> None:
    many = [MomentView(f"m0.{n}", "s", n, n + 0.5, n, 1, "", 0.0) for n in range(7000)]
    assert 250 <= memory_map(many, []).count('class="bar"') <= 300


def test_a_gap_is_left_bare_and_none_is_made_up() -> None:
    held = [(0.0, 4.5), (5.0, 9.5), (20.0, 24.5)]
    views = [MomentView(f"m0.{n}", "s", a, b, a, 9, "", 0.0) for n, (a, b) in enumerate(held)]
    drawn = memory_map(views, [])
    picture = ET.fromstring(drawn[: drawn.index("</svg>") + 6])
    bars = [bar for bar in picture.iter("rect") if bar.get("class") == "bar"]
    ends = [float(b.get("x", "")[:-1]) + float(b.get("width", "")[:-1]) for b in bars]
    starts = [float(b.get("x", "")[:-1]) for b in bars]
    assert abs(ends[0] - starts[1]) < 0.01  # half a second between two looks is no gap
    assert starts[2] - ends[1] > 40


def test_the_state_sends_what_changed_and_only_that(session: Session) -> None:
    session.watch(lambda: Scripted(every(0.1, 20)))
    until(lambda: session.player and session.player.ended)
    session.memory.flush()
    version, values = state(session, "")
    json.dumps(values)
    assert values["moments"] and values["facts"]["frames"] == "4"
    assert values["live"]["status"] == "ended"
    again, fewer = state(session, version)
    assert again == version and "moments" not in fewer and "map" not in fewer
    session.forget(0.0, 10.0)
    _, after = state(session, version)
    assert after["moments"] == [] and after["facts"]["forgotten"] != "0"
    session.watch(lambda: Scripted([0.0]))
    assert state(session, version)[1]["number"] == values["number"] + 1


def test_two_memories_share_no_card_and_no_address() -> None:
    view = MomentView("m0.0", "s", 0.0, 1.0, 0.0, 2, "", 0.0)
    (one,), (other,) = timeline([view], "t", 1), timeline([view], "t", 2)
    assert one[0] != other[0] and one[1] != other[1]


def test_the_timeline_is_bounded(session: Session) -> None:
    views = [MomentView(f"m0.{n}", "s", n, n, n, 1, "", 0.0) for n in range(100)]
    assert len(timeline(views[-MOST_CARDS:], "t")) == MOST_CARDS


@pytest.mark.parametrize(
    ("nbytes", "text"), [(999, "999 B"), (1000, "1 kB"), (64_000_000, "64 MB"), (1234, "1.23 kB")]
)
def test_sizes_read_as_budgets_do(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
