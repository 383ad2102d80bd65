"""One tab of a real browser, with the demo in it."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.request import urlopen

from demo_server import PATIENCE, Server, until


def open_for_stranger(driver: Any) -> None:
    """Open a tab that shares no cookie, storage or cache with the others.

    A driver has no command for that; the browser itself has.
    """
    from websockets.sync.client import connect

    address = driver.capabilities["goog:chromeOptions"]["debuggerAddress"]
    with urlopen(f"http://{address}/json/version", timeout=PATIENCE) as reply:
        browser = json.load(reply)["webSocketDebuggerUrl"]
    with connect(browser) as socket:

        def call(method: str, **values: Any) -> dict[str, Any]:
            socket.send(json.dumps({"id": 1, "method": method, "params": values}))
            return json.loads(socket.recv(PATIENCE))["result"]

        context = call("Target.createBrowserContext")["browserContextId"]
        call("Target.createTarget", url="about:blank", browserContextId=context)


class Page:
    """One tab, with the demo in it."""

    def __init__(self, driver: Any, url: str, *, stranger: bool = False) -> None:
        self.driver, self.url = driver, url
        if stranger:
            before = set(driver.window_handles)
            open_for_stranger(driver)
            driver.switch_to.window(
                until(lambda: set(driver.window_handles) - before, "a tab").pop()
            )
        else:
            driver.switch_to.new_window("tab")
        self.tab = driver.current_window_handle
        driver.get(url)

    def front(self) -> Page:
        self.driver.switch_to.window(self.tab)
        return self

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, script: str, what: str, *values: Any) -> Any:
        """Wait until an expression of JavaScript is true, and give it."""
        return until(lambda: self.js(f"return {script}", *values), what)

    def find(self, css: str) -> Any:
        return self.until("document.querySelector(arguments[0])", css, css)

    def click(self, css: str) -> None:
        place = self.find(css)
        self.js("arguments[0].scrollIntoView({block: 'center'})", place)
        place.click()

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def fill(self, css: str, text: str) -> None:
        place = self.find(f"{css} textarea, {css} input")
        self.js("arguments[0].scrollIntoView({block: 'center'})", place)
        place.clear()
        place.send_keys(text)

    def choose(self, group: str, value: str) -> None:
        self.click(f'{group} input[value="{value}"]')

    @property
    def token(self) -> str:
        return self.js("return window.vismem.page.token")

    @property
    def state(self) -> dict[str, Any]:
        return self.js("return window.vismem.page.state")

    def plays(self) -> Page:
        """Wait until pictures come and something is remembered."""
        self.until("window.vismem?.page.frames > 3", "pictures come")
        self.until("document.querySelector('#timeline .moment')", "a moment is there")
        return self

    def ask(self, question: str) -> Any:
        """Ask, and wait for the bubble of the answer."""
        before = self.js("return document.querySelectorAll('[data-testid=answer]').length")
        self.fill("#question", question)
        self.click("#ask")
        self.until(
            "document.querySelectorAll('[data-testid=answer]').length > arguments[0]",
            "an answer",
            before,
        )
        return self.js("return [...document.querySelectorAll('[data-testid=answer]')].at(-1)")

    def notice(self, part: str) -> str:
        """Wait for a line to the visitor that holds a text."""
        script = "(t => t.includes(arguments[0]) && t)(document.querySelector('#notice').innerText)"
        return self.until(script, f"a notice of {part!r}", part)

    def status(self, path: str, method: str = "GET") -> int:
        """The status with which the server answers this page."""
        script = """
            const [path, method, done] = arguments;
            fetch(path, {method}).then((reply) => done(reply.status), () => done(0));
        """
        return self.driver.execute_async_script(script, path, method)

    def close(self) -> None:
        if self.tab in self.driver.window_handles:
            self.front()
            self.driver.close()
        self.driver.switch_to.window(self.driver.window_handles[0])


def requests(driver: Any) -> list[str]:
    """All addresses that the pages have asked for since this was last called."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            found.append(message["params"]["url"])
    return found


def at_home(url: str, server: Server) -> bool:
    own = rf"(http|ws|blob:http)://127\.0\.0\.1:{server.port}/"
    return re.match(f"{own}|data:|about:", url) is not None
