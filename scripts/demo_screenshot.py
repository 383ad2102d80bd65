"""Take the picture of the demo for the README: ``python scripts/demo_screenshot.py docs/demo.png``.

Starts the demo, lets it watch for a while, asks two questions, and photographs the page in headless
Chromium. Needs the extra ``demo``, selenium, chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

QUESTIONS = ("when does the cat appear?", "an elephant")
WATCHED = 40.2  # seconds of the clip: somebody is in the picture then


def photograph(url: str, width: int, height: int) -> Image.Image:
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    # Found here: selenium would look for a browser on the network.
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(url)
        state = "return window.vismem?.page.state?.facts.span"
        answers = "return document.querySelectorAll('#chat-log [data-testid=answer]').length"
        while float((driver.execute_script(state) or "0 s").split()[0]) < WATCHED - 8:
            time.sleep(0.3)
        for number, question in enumerate(QUESTIONS):
            box = driver.find_element(By.CSS_SELECTOR, "#question textarea, #question input")
            box.send_keys(question, Keys.ENTER)
            while driver.execute_script(answers) <= number:
                time.sleep(0.1)
        driver.execute_script("document.activeElement.blur()")
        while float((driver.execute_script(state) or "0 s").split()[0]) < WATCHED - 1:
            time.sleep(0.1)
        somebody = "return document.querySelector('[data-testid=people]').textContent"
        patience = time.monotonic() + 5
        while not driver.execute_script(somebody) and time.monotonic() < patience:
            time.sleep(0.05)
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        return Image.open(io.BytesIO(base64.b64decode(shot["data"])))
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=980)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "vismem.cli", "demo", "--port", str(port)])
    try:
        while True:
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        picture = photograph(f"http://127.0.0.1:{port}", options.width, options.height)
        # 256 colours are enough for a page, and a third of the bytes.
        picture.convert("RGB").quantize(256, kmeans=3).save(options.out, optimize=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
