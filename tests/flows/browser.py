"""A real Chromium without a window, driven over its own debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,1100",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    """Where a Chromium is installed, if anywhere."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser; a context manager."""

    def __init__(self, folder: Path):
        self.profile, self.number = folder / "profile", 0
        self.profile.mkdir(parents=True)
        program = executable()
        assert program is not None
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = self.profile / "DevToolsActivePort"
        self.until(lambda: port_file.exists() and "\n" in port_file.read_text(), "Chromium's port", 60)
        port = port_file.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(p for p in json.load(answer) if p["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def script(self, text: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(lambda: self.script("document.readyState") == "complete", url)

    def text(self) -> str:
        """What the page shows."""
        return self.script("document.body ? document.body.innerText : ''")

    def until(self, done: Any, what: str, seconds: float = 180) -> None:
        """Wait until `done()`; `AssertionError` names what did not come."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{what} did not come in {seconds} s, but {self.text()[:600]!r}"
            time.sleep(0.2)

    def until_text(self, text: str, seconds: float = 180) -> None:
        """Wait until the page shows the text."""
        self.until(lambda: text in self.text(), repr(text), seconds)

    def click(self, selector: str, text: str = "") -> None:
        """Press the first visible element of the selector that holds the text."""
        place = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".filter(e => e.innerText.includes({json.dumps(text)}) && e.offsetParent !== null)[0]"
        )
        self.until(lambda: self.script(f"!!{place}"), f"{selector} with {text!r}")
        self.script(f"(e => {{e.scrollIntoView({{block: 'center'}}); e.focus(); e.click()}})({place})")
        time.sleep(0.3)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def field(self, label: str) -> str:
        """JavaScript for the innermost part of a form that has that label and something to fill."""
        starts = " || ".join(f"e.innerText.startsWith({json.dumps(label + end)})" for end in (" (Optional)", "\n"))
        return (
            f"[...document.querySelectorAll('div')].filter(e => ({starts}) && "
            "e.querySelector('input, textarea, button.p-draggable-list__create-button')).pop()"
        )

    def fill(self, label: str, text: str) -> None:
        """Replace what the field of a form holds."""
        field = f"{self.field(label)}?.querySelector('input:not([type=checkbox]), textarea')"
        self.until(lambda: self.script(f"!!{field}"), label)
        self.script(f"(e => {{e.scrollIntoView({{block: 'center'}}); e.focus(); e.select()}})({field})")
        self.type(text)

    def choose(self, value: str) -> None:
        """Take that value in the list of choices that has it."""
        wanted = json.dumps(value)
        self.script(
            "[...document.querySelectorAll('select')]"
            f".filter(s => [...s.options].some(o => o.value === {wanted}))"
            f".forEach(s => {{s.value = {wanted}; s.dispatchEvent(new Event('change', {{bubbles: true}}))}})"
        )

    def add(self, label: str, items: list[str]) -> None:
        """Items to the list of that label."""
        for number, item in enumerate(items):
            self.script(f"{self.field(label)}.querySelector('button.p-draggable-list__create-button').click()")
            fields = f"{self.field(label)}.querySelectorAll('textarea, input[type=text]')"
            self.until(lambda n=number, f=fields: self.script(f"{f}.length") > n, f"a place for {item}")
            self.script(f"(e => {{e.scrollIntoView({{block: 'center'}}); e.focus()}})({fields}[{number}])")
            self.type(item)
