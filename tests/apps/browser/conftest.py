"""The demo and a headless Chromium to look at it with; both are started once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from demo_page import Page, at_home, requests
from demo_server import PATIENCE, Server, until

GONE = r"/moment/[ms][\d.]+\.jpg\?\S* - Failed .* 404"  # merged before its picture was fetched


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for module in ("gradio", "fastapi", "uvicorn", "websockets"):
        pytest.importorskip(module, reason="pip install 'vismem[demo]'")
    running = Server(tmp_path_factory.mktemp("demo"))
    yield running
    running.close()
    assert not running.visits, "a visit's folder outlived the server"


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser; what is saved lands in its `downloads`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(paths):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",  # CI runs as root in a container
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,1000",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--disable-background-timer-throttling",
        "--disable-renderer-backgrounding",
        "--disable-backgrounding-occluded-windows",
    ):
        options.add_argument(argument)
    folder = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    driver.downloads = folder
    driver.set_script_timeout(PATIENCE)
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium: Any, server: Server) -> Iterator[Callable[..., Page]]:
    """Opens tabs, and closes those that are left at the end.

    Whatever a test does, its pages may load nothing from elsewhere, nothing may break in them, and
    their visits must end with them.
    """
    pages: list[Page] = []

    def open_page(**options: Any) -> Page:
        pages.append(Page(chromium, server.url, **options))
        return pages[-1]

    yield open_page
    elsewhere = [url for url in requests(chromium) if not at_home(url, server)]
    errors = [entry["message"] for entry in chromium.get_log("browser")]
    errors = [error for error in errors if not re.search(GONE, error)]
    for page in pages:
        page.close()
    until(lambda: not server.visits, "the visits end with their tabs")
    assert not elsewhere, "the page asked for something elsewhere"
    assert not errors, "the console is not empty"
    assert "Traceback" not in server.log, server.log


@pytest.fixture
def page(opened: Callable[..., Page]) -> Page:
    return opened().plays()
