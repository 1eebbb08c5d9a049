"""The page in a real browser: it streams, moves, stops, and complains of nothing. In Chromium where that is installed
(`apt install chromium`), else in Qt's WebEngine, which is Chromium too (`pip install PyQt6-WebEngine`).
OCTAVO_SCREENSHOTS=FOLDER keeps what was seen."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Browser:
    """What both browsers do; `run` gives a script's value, as JSON can hold it."""

    console: list[str]

    def load(self, url: str) -> None:
        raise NotImplementedError

    def run(self, script: str) -> Any:
        raise NotImplementedError

    def resize(self, width: int) -> None:
        raise NotImplementedError

    def picture(self) -> bytes:
        """A PNG of what is seen."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def wait(self, script: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still not: {script}; {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def shot(self, name: str) -> None:
        folder = os.environ.get("OCTAVO_SCREENSHOTS")
        if folder:
            (Path(folder) / name).write_bytes(self.picture())


class Chromium(Browser):
    """Spoken to by the DevTools protocol over a pipe: JSON, each message ended by a zero byte."""

    def __init__(self, program: str, profile: Path):
        ours, theirs = os.pipe(), os.pipe()

        def place() -> None:
            os.dup2(ours[0], 3)
            os.dup2(theirs[1], 4)

        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
        self._process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "about:blank"], preexec_fn=place, pass_fds=(3, 4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in, self._left, self._last = ours[1], theirs[0], b"", 0
        self.console = []
        self._session: str | None = None
        [page] = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        session = {} if self._session is None else {"sessionId": self._session}
        os.write(
            self._out, json.dumps({"id": self._last, "method": method, "params": params, **session}).encode() + b"\0"
        )
        while True:
            message = self._message()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(message["params"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._in], [], [], 30)[0], "the browser says nothing"
            piece = os.read(self._in, 1 << 16)
            assert piece, "the browser has ended"
            self._left += piece
        one, _, self._left = self._left.partition(b"\0")
        return json.loads(one)

    def load(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def resize(self, width: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)

    def dark(self) -> None:
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def picture(self) -> bytes:
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._out)
        os.close(self._in)


class Qt(Browser):
    def __init__(self) -> None:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
        os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")
        no = "no browser: apt install chromium, or pip install PyQt6-WebEngine"
        widgets = pytest.importorskip("PyQt6.QtWebEngineWidgets", reason=no)
        from PyQt6.QtCore import QUrl
        from PyQt6.QtWebEngineCore import QWebEnginePage
        from PyQt6.QtWidgets import QApplication

        self.app, self._url = QApplication.instance() or QApplication(["page"]), QUrl
        self.console = []
        said = self.console

        class Page(QWebEnginePage):
            def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:
                said.append(message)

        self.view = widgets.QWebEngineView()
        self.view.setPage(Page(self.view))
        self.view.show()

    def load(self, url: str) -> None:
        self.view.load(self._url(url))

    def run(self, script: str) -> Any:
        found: list[Any] = []
        self.view.page().runJavaScript(f"JSON.stringify({script})", found.append)
        self._until(lambda: bool(found), 10)
        return json.loads(found[0]) if found[0] else None

    def _until(self, done: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.01)

    def resize(self, width: int) -> None:
        self.view.resize(width, 900)

    def picture(self) -> bytes:
        from PyQt6.QtCore import QBuffer

        self._until(lambda: False, 0.6)
        buffer = QBuffer()
        buffer.open(QBuffer.OpenModeFlag.WriteOnly)
        self.view.grab().save(buffer, "PNG")
        return bytes(buffer.data())

    def close(self) -> None:
        self.view.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    programs = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]
    made = Chromium(programs[0], tmp_path / "profile") if programs else Qt()
    yield made
    made.close()


def send(browser: Browser, text: str) -> None:
    browser.run(f"(document.getElementById('prompt').value = {json.dumps(text)}, 1)")
    browser.run("(document.getElementById('send').click(), 1)")


def test_a_chat_streams_the_cache_moves_and_stop_stops(server: Server, browser: Browser):
    browser.resize(1280)
    browser.load(server.url + "/")
    browser.wait("document.getElementById('state') && document.getElementById('state').textContent === 'ready'")
    still = browser.run("document.getElementById('map').toDataURL()")
    browser.run(
        "(document.getElementById('temperature').value = '0', document.getElementById('most').value = '200', 1)"
    )
    send(browser, "Tell me about the sea, in a list.")
    browser.wait("document.querySelector('.turn.assistant .text').textContent.length > 20")
    length = browser.run("document.querySelector('.turn.assistant .text').textContent.length")
    browser.wait("document.getElementById('sequences').children.length === 1")
    browser.wait(f"document.querySelector('.turn.assistant .text').textContent.length > {length + 20}")
    assert browser.run("document.getElementById('map').toDataURL()") != still
    browser.shot("page-light.png")
    browser.wait("!document.getElementById('send').disabled", 60)
    meta = browser.run("document.querySelector('.turn.assistant .meta').textContent")
    assert "tokens/s" in meta and "cached" in meta and "first after" in meta, meta

    browser.run("(document.getElementById('most').value = '4000', 1)")
    send(browser, "Count from one to one thousand.")
    browser.wait("document.querySelectorAll('.turn.assistant .text')[1].textContent.length > 10")
    browser.run("(document.getElementById('stop').click(), 1)")
    browser.wait("document.querySelectorAll('.turn.assistant .meta')[1].textContent.includes('stopped')")
    server.until(lambda live: live["running"] == 0)
    body = browser.run("document.body.innerText")
    assert "NaN" not in body and "undefined" not in body and "null" not in body, body
    browser.resize(390)
    browser.wait("document.documentElement.scrollWidth <= 390")
    browser.shot("page-phone.png")
    if isinstance(browser, Chromium):
        light = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.dark()
        assert browser.run("getComputedStyle(document.body).backgroundColor") != light
        browser.shot("page-phone-dark.png")
        browser.resize(1280)
        browser.shot("page-dark.png")
    browser.run("(document.getElementById('fresh').click(), 1)")
    browser.wait("document.querySelectorAll('.turn').length === 0")
    assert browser.console == []
