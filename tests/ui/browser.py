"""A headless Chromium that reaches this machine only, driven through chromedriver's own protocol.

That protocol (W3C WebDriver) is JSON over HTTP, so the standard library speaks it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with one; it opens our own pages only
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    # Whatever a page asks of another machine fails at once.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def installed() -> bool:
    """Whether Chromium and its driver are here (Debian: chromium, chromium-driver)."""
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


class Browser:
    """One window. Made by `open_browser`."""

    def __init__(self, session_url: str) -> None:
        self._url = session_url

    def open(self, address: str) -> None:
        """Goes to an address and waits until the page has loaded."""
        _ask(f"{self._url}/url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function's body in JavaScript returns."""
        return _ask(f"{self._url}/execute/sync", {"script": script, "args": arguments})

    def wait(self, script: str, *arguments: object, timeout_s: float = 60.0) -> Any:
        """Repeats a script until what it returns is true.

        Raises:
            TimeoutError: It never was; says what the page shows.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := self.run(script, *arguments):
                return found
            time.sleep(0.25)
        raise TimeoutError(f"{script} {arguments}\n{self.text()}")

    def wait_for_text(self, *texts: str, timeout_s: float = 60.0) -> None:
        """Waits until the page shows all of these."""
        script = "return [...arguments].every(text => document.body.innerText.includes(text))"
        self.wait(script, *texts, timeout_s=timeout_s)

    def text(self) -> str:
        """All the text that the page shows."""
        return str(self.run("return document.body.innerText"))

    def picture(self) -> bytes:
        """The window as a PNG."""
        with urllib.request.urlopen(f"{self._url}/screenshot", timeout=60) as answer:
            return base64.b64decode(json.load(answer)["value"])


@contextlib.contextmanager
def open_browser(*, width: int, height: int) -> Iterator[Browser]:
    """Starts Chromium with a profile of its own, and ends it.

    Args:
        width: Of the page, in pixels.
        height: Of the window, with its frame, in pixels.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        # Port 0: it chooses one and says so.
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True)
        assert driver.stdout is not None
        try:
            lines = iter(driver.stdout.readline, "")
            port = next(line.split()[-1].rstrip(".") for line in lines if "started successfully" in line)
            flags = [*FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
            wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": flags}}
            sessions = f"http://127.0.0.1:{port}/session"
            session = f"{sessions}/{_ask(sessions, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
            try:
                yield Browser(session)
            finally:
                urllib.request.urlopen(urllib.request.Request(session, method="DELETE"), timeout=30).close()
        finally:
            driver.terminate()
            driver.wait(timeout=30)


def _ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from error
