"""What the demo is like: pictures a second, time to an answer while it streams, what is left over.

    python benchmarks/demo.py [--minutes 5] [--visits 3] [--browser]

Starts ``vismem demo`` in a process of its own, visits it over HTTP as a page does (its live socket,
Gradio's queue for questions), and leaves again. Memory, files and threads of the server are read
from /proc before the visits and after them. With ``--browser`` a headless Chromium counts the
pictures that were drawn. Needs the extra ``demo``; the browser also selenium and chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from gradio_client import Client
from websockets.sync.client import connect

QUESTIONS = ("when does the cat appear?", "how many people?", "a red cup", "an elephant")
EVERY = 5.0  # seconds between two questions of a visit


class Server:
    """The demo in a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "vismem.cli", "demo", "--port", str(self.port)]
        self.folder = tempfile.TemporaryDirectory()  # where visits make theirs
        place = {**os.environ, "TMPDIR": self.folder.name}
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=place)
        self.url = f"http://127.0.0.1:{self.port}"
        for _ in range(1200):
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit("the demo did not start")

    def facts(self) -> tuple[float, int, int, int]:
        """Resident megabytes, open files, threads, folders of visits."""
        place = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        folders = len(list(Path(self.folder.name).glob("vismem-demo-*")))
        return (
            int(status["VmRSS"].split()[0]) / 1000,
            len(list((place / "fd").iterdir())),
            int(status["Threads"]),
            folders,
        )


class Visit(threading.Thread):
    """One page: watches, and asks now and then."""

    def __init__(self, server: Server, seconds: float) -> None:
        super().__init__()
        self.server, self.seconds = server, seconds
        self.rate, self.first, self.whole = 0.0, [], []

    def run(self) -> None:
        """Watch until the time is over, then leave."""
        client = Client(self.server.url, verbose=False)
        token, notice = client.predict(api_name="/begin")
        assert token and not notice, notice
        asker = threading.Thread(target=self.ask, args=(client, token))
        pictures, began, end = 0, 0.0, time.monotonic() + self.seconds
        address = f"ws://127.0.0.1:{self.server.port}/visit/{token}/live"
        with connect(address, compression=None, max_size=None) as live:
            asker.start()
            while time.monotonic() < end:
                if isinstance(live.recv(), bytes):
                    began = began or time.monotonic()
                    pictures += 1
                    live.send("shown")
            self.rate = (pictures - 1) / (time.monotonic() - began)
            asker.join()
            live.close(4001)  # as the page does when it is left
        client.close()

    def ask(self, client: Client, token: str) -> None:
        """Ask one question after the other."""
        end = time.monotonic() + self.seconds - EVERY
        number = 0
        while time.monotonic() < end:
            began, first = time.perf_counter(), 0.0
            job = client.submit(token, QUESTIONS[number % len(QUESTIONS)], api_name="/ask")
            for _, speaking, *_ in job:
                if not first and isinstance(speaking, str) and " <i class" in speaking:
                    first = time.perf_counter() - began
            self.whole.append(time.perf_counter() - began)
            self.first.append(first or self.whole[-1])
            number += 1
            time.sleep(EVERY)


def visit(server: Server, count: int, seconds: float) -> list[Visit]:
    visits = [Visit(server, seconds) for _ in range(count)]
    for one in visits:
        one.start()
    for one in visits:
        one.join()
    return visits


def in_browser(server: Server, seconds: float) -> float:
    """Pictures a second that a headless Chromium has drawn."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,900"):
        options.add_argument(option)
    # Found here: selenium would look for a browser on the network.
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(server.url)
        drawn = "return window.vismem ? window.vismem.page.frames : 0"
        while not driver.execute_script(drawn):
            time.sleep(0.1)
        before, began = driver.execute_script(drawn), time.monotonic()
        time.sleep(seconds)
        return (driver.execute_script(drawn) - before) / (time.monotonic() - began)
    finally:
        driver.quit()


def told(name: str, facts: tuple[float, int, int, int]) -> None:
    rss, files, threads, folders = facts
    print(f"{name:<28} {rss:7.0f} MB {files:4d} files {threads:4d} threads {folders:3d} folders")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    server = Server()
    try:
        visit(server, options.visits, 10.0)  # pools of threads and buffers fill up once
        time.sleep(3.0)
        before = server.facts()
        told("before", before)
        if options.browser:
            print(f"one visit in Chromium: {in_browser(server, 20.0):.1f} pictures a second drawn")
            time.sleep(3.0)
        for count, seconds in ((1, 40.0), (options.visits, 60.0 * options.minutes)):
            visits = visit(server, count, seconds)
            rates = ", ".join(f"{one.rate:.1f}" for one in visits)
            print(f"{count} at once for {seconds:.0f} s: {rates} pictures a second", end="; ")
            for name, times in (
                ("first words", [t for one in visits for t in one.first]),
                ("whole answer", [t for one in visits for t in one.whole]),
            ):
                p50, p95 = np.percentile(times, [50, 95])
                print(f"{name} p50 {p50:.2f} s, p95 {p95:.2f} s ({len(times)})", end="; ")
            print(f"load {os.getloadavg()[0]:.1f}")
            time.sleep(3.0)
            told(f"after {count} left", server.facts())
        after = server.facts()
        print(
            f"left over: {after[0] - before[0]:+.0f} MB, {after[1] - before[1]:+d} files, "
            f"{after[2] - before[2]:+d} threads, {after[3] - before[3]:+d} folders"
        )
    finally:
        server.process.terminate()
        server.process.wait()
        server.folder.cleanup()


if __name__ == "__main__":
    main()
