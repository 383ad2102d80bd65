"""What a visitor does with the demo, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from demo_page import Page
from demo_server import Server, until

pytestmark = pytest.mark.slow


def pixels(page: Page) -> str:
    return page.js("return document.getElementById('live').toDataURL()")


def keys(page: Page) -> list[str]:
    """What the cards of the timeline are known by, without the version of their pictures."""
    script = (
        "return [...document.querySelectorAll('#timeline [data-key]')].map((c) => c.dataset.key)"
    )
    return page.js(script)


def count(page: Page, fact: str) -> int:
    return int(page.text(f"[data-fact={fact}]").replace(",", ""))


def pause(page: Page) -> None:
    page.click("#pause")
    page.until("document.querySelector('#stage').dataset.status === 'paused'", "it pauses")


def settled(page: Page) -> int:
    """How many frames are held once those on their way have come, for a page that is paused."""
    seen = -1
    while seen != (seen := count(page, "frames")):
        time.sleep(3)
    return seen


def write_clip(path: Path, seconds: int = 60) -> Path:
    """A clip of one colour a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index in range(5 * seconds):
            image = np.full((180, 320, 3), 4 * (index // 5), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_it_plays_remembers_and_answers_while_it_plays(page: Page, capsys: Any) -> None:
    first = pixels(page)
    until(lambda: pixels(page) != first, "the picture changes")
    held = len(keys(page))
    until(lambda: len(keys(page)) > held, "the timeline grows")
    page.until("document.querySelector('#map svg .bar')", "the map shows what is held")
    began, frames = time.perf_counter(), page.js("return window.vismem.page.frames")
    answer = page.ask("when does the cat appear?")
    seconds = time.perf_counter() - began
    page.until("window.vismem.page.frames > arguments[0]", "it plays on", frames)
    with capsys.disabled():
        fps, told = page.js("return window.vismem.fps()"), answer.get_attribute("data-seconds")
        print(f"\nlive picture: {fps:.1f} fps; answer: {seconds:.2f} s from typing the question to")
        print(f"its last word on the page, {told} s of it in the memory")
    assert answer.text.startswith("Cat: 0:0")

    page.click("[data-testid=answer] [data-testid=chip]")
    page.until("document.querySelector('#viewer').open", "the moment opens")
    page.until("document.querySelector('#viewer-picture').naturalWidth > 0", "with its picture")
    assert "cat" in page.text("#viewer-title")
    assert page.text("#viewer-when").startswith("0:0")
    width = page.js("return document.querySelector('#viewer-picture').clientWidth")
    assert width > 400, "it is shown large"
    page.click("#viewer-close")
    page.until("!document.querySelector('#viewer').open", "it closes")
    page.click("#timeline .moment")
    page.until("document.querySelector('#viewer').open", "a card opens too")


def test_an_example_asks_and_what_was_not_seen_is_said(page: Page) -> None:
    page.click("#example-3")
    page.until("document.querySelector('.answer.abstained')", "an answer that says no")
    assert page.text("[data-testid=question]") == "an elephant"
    assert not page.js("return document.querySelector('.answer.abstained .chip')")


def test_pause_holds_the_picture_and_start_again_forgets(page: Page) -> None:
    pause(page)
    time.sleep(0.5)  # pictures on their way
    held = page.js("return window.vismem.page.frames")
    time.sleep(1)
    assert page.js("return window.vismem.page.frames") == held
    number = page.state["number"]
    page.click("#again")
    page.until("window.vismem.page.state.number > arguments[0]", "another memory", number)
    page.until("window.vismem.page.frames > arguments[0] + 3", "it plays", held)


def test_a_second_visitor_sees_nothing_of_the_first(opened: Callable[..., Page]) -> None:
    first = opened().plays()
    first.ask("when does the cat appear?")
    token = first.token
    second = opened(stranger=True).plays()
    assert len(token) >= 43 and second.token != token, "256 bits each"
    assert not second.js("return document.querySelector('[data-testid=answer]')")
    mine, theirs = f"visit/{second.token}/moment/", f"visit/{token[:-1]}x/moment/"
    assert second.status(mine + "m0.0.jpg") == 200
    assert second.status(mine + "a1.0.jpg") == 404, "an answer of the first visitor"
    assert second.status(theirs + "m0.0.jpg") == 404
    assert second.status(f"visit/{token[:-1]}x/memory") == 404
    assert second.status(f"visit/{token[:-1]}x/clip", "PUT") == 404
    script = """
        const [path, done] = arguments;
        new WebSocket(new URL(path, document.baseURI.replace("http", "ws"))).onclose =
            (event) => done(event.code);
    """
    for door in ("live", "webcam"):
        path = f"visit/{token[:-1]}x/{door}"
        assert second.driver.execute_async_script(script, path) == 4404
    logged = second.driver.get_log("browser")  # four routes that were not there
    assert len(logged) == 4 and all("404" in entry["message"] for entry in logged)


def test_a_closed_tab_leaves_nothing(
    opened: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    page = opened().plays()
    (folder,) = server.visits
    page.choose("#source", "Your clip")
    page.find("#clip-file").send_keys(str(write_clip(tmp_path / "mine.mp4")))
    page.until("window.vismem.page.state.live.source === 'upload'", "the clip plays")
    assert list(folder.iterdir()) and folder.stat().st_mode & 0o077 == 0
    assert server.players() == 1
    other = opened().plays()
    assert server.players() == 2 and len(server.visits) == 2
    page.close()
    until(lambda: folder not in server.visits, "the folder goes")
    until(lambda: server.players() == 1, "the thread goes")
    frames = other.front().js("return window.vismem.page.frames")
    other.until("window.vismem.page.frames > arguments[0]", "the other one plays on", frames)
    other.close()
    until(lambda: not server.visits and not server.players(), "all is gone")
    assert not [path for path in server.folder.rglob("*") if path.suffix in (".mp4", ".jpg")]


def test_a_webcam_reaches_the_memory(page: Page) -> None:
    page.choose("#source", "Webcam")
    page.until("window.vismem.page.state.live.source === 'webcam'", "the webcam plays")
    page.until(
        "document.querySelector('#timeline .moment img')?.naturalWidth > 0", "a moment of it"
    )
    frames = page.js("return window.vismem.page.frames")
    page.until("window.vismem.page.frames > arguments[0] + 5", "pictures come", frames)
    until(lambda: count(page, "frames") > 1, "it is remembered")
    page.click("#webcam-button")
    page.until("document.querySelector('#stage').dataset.status === 'ended'", "it stops")


def test_dials_act_at_once(page: Page) -> None:
    page.choose("#policy", "flash")
    page.until("/[1-9]/.test(document.querySelector('#scenes').textContent)", "scenes are kept")
    page.until("document.querySelector('#map .levels').textContent", "the map shows their levels")
    until(lambda: count(page, "moments") > 4, "some moments")
    page.choose("#budget", "100kB")
    page.until(
        "document.querySelector('[data-fact=budget]').textContent === '100 kB'", "the budget"
    )
    unit = page.text("[data-fact=bytes]").split()
    assert unit[1] == "B" or (unit[1] == "kB" and float(unit[0]) <= 100)
    assert page.text("#notice") == ""


def test_forget_takes_moments_off_the_page(page: Page) -> None:
    page.ask("when does the cat appear?")
    until(lambda: len(keys(page)) > 4, "some moments")
    pause(page)
    before = keys(page)
    page.fill("#forget-from", "0:00")
    page.fill("#forget-to", "0:02")
    page.click("#forget")
    until(lambda: count(page, "forgotten") > 0, "it forgets")
    page.notice("forgotten")
    until(lambda: len(keys(page)) < len(before), "cards go")
    assert set(keys(page)) < set(before)
    gone = (set(before) - set(keys(page))).pop()
    page.until(
        "document.querySelector('[data-testid=answer]').innerText.includes('forgotten')",
        "the answer that told of it goes too",
    )
    assert page.status(f"visit/{page.token}/moment/{gone}.jpg") == 404
    assert page.status(f"visit/{page.token}/moment/a1.0.jpg") == 404
    assert len(page.driver.get_log("browser")) == 2


def test_a_saved_memory_is_loaded_by_another_visit(opened: Callable[..., Page]) -> None:
    page = opened().plays()
    until(lambda: len(keys(page)) > 4, "some moments")
    pause(page)
    frames, held = settled(page), keys(page)
    page.click("#memory-save")
    folder: Path = page.driver.downloads
    saved = until(lambda: list(folder.glob("*.vismem")), "a file")[0]
    page.close()
    other = opened().plays()
    other.find("#memory-file").send_keys(str(saved))
    other.until("window.vismem.page.state.live.status === 'idle'", "it takes the other's place")
    until(lambda: count(other, "frames") == frames, "what was seen is there")
    until(lambda: keys(other) == held, "with the same moments")
    other.until(
        "[...document.querySelectorAll('#timeline img')].every((i) => i.naturalWidth > 0)",
        "and their pictures",
    )
    assert other.ask("when does the cat appear?").text.startswith("Cat: 0:0")


CONTROLS = (
    "#source", "#pause", "#again", "#timeline .moment", "#map svg", "#example-0", "#question",
    "#ask", "#budget", "#policy", "#forget-from", "#forget-to", "#forget", "#memory-save",
    ".saved label", "#stage",
)  # fmt: skip


def test_it_fits_a_phone(opened: Callable[..., Page]) -> None:
    page = opened()
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.plays()
    page.ask("when does the cat appear?")
    assert page.js("return document.documentElement.scrollWidth") <= 390, "it scrolls sideways"
    inside = """
        const place = document.querySelector(arguments[0]);
        place.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
        const {left, right, top, bottom, width, height} = place.getBoundingClientRect();
        const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
        return left >= -1 && right <= 391 && width > 20 && height > 12
            && (place.contains(hit) || hit.contains(place));
    """
    lost = [control for control in CONTROLS if not page.js(inside, control)]
    assert not lost, "these cannot be reached"
    for name, part in (
        ("Webcam", "#webcam-button"),
        ("Camera", "#connect"),
        ("Your clip", ".drop"),
    ):
        page.choose("#source", name)
        page.until(f"document.querySelector('{part}').offsetHeight > 0", part)
        if name == "Webcam":  # a socket that is closed before it is open is an error in the console
            page.until("window.vismem.page.state.live.source === 'webcam'", "the webcam plays")
        assert page.js(inside, part), part
        assert page.js("return document.documentElement.scrollWidth") <= 390, name
