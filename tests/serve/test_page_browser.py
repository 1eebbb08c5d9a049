"""The page in a real browser engine (Chromium, as Qt's WebEngine brings it): it streams, moves, stops, and complains of
nothing. `pip install PyQt6-WebEngine`; OCTAVO_SCREENSHOTS=FOLDER keeps what was seen."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from real_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Browser:
    def __init__(self, width: int):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
        os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")
        widgets = pytest.importorskip("PyQt6.QtWebEngineWidgets", reason="no browser: pip install PyQt6-WebEngine")
        from PyQt6.QtWebEngineCore import QWebEnginePage
        from PyQt6.QtWidgets import QApplication

        self.app = QApplication.instance() or QApplication(["page"])
        self.console: list[str] = []
        said = self.console

        class Page(QWebEnginePage):
            def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:
                said.append(message)

        self.view = widgets.QWebEngineView()
        self.view.setPage(Page(self.view))
        self.view.resize(width, 900)
        self.view.show()

    def run(self, script: str) -> Any:
        found: list[Any] = []
        self.view.page().runJavaScript(f"JSON.stringify({script})", found.append)
        self._until(lambda: bool(found), 10)
        return json.loads(found[0]) if found[0] else None

    def wait(self, script: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still not: {script}; {self.run('document.body.innerText')}"
            self._until(lambda: False, 0.1)

    def _until(self, done: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.01)

    def shot(self, name: str) -> None:
        folder = os.environ.get("OCTAVO_SCREENSHOTS")
        if folder:
            self._until(lambda: False, 0.6)
            self.view.grab().save(str(Path(folder) / name))


def send(browser: Browser, text: str) -> None:
    browser.run(f"(document.getElementById('prompt').value = {json.dumps(text)}, 1)")
    browser.run("(document.getElementById('send').click(), 1)")


def test_a_chat_streams_the_cache_moves_and_stop_stops(server: Server):
    from PyQt6.QtCore import QUrl

    browser = Browser(1280)
    browser.view.load(QUrl(server.url + "/"))
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
    browser.view.resize(390, 900)
    browser.wait("document.documentElement.scrollWidth <= 390")
    browser.shot("page-phone.png")
    browser.run("(document.getElementById('fresh').click(), 1)")
    browser.wait("document.querySelectorAll('.turn').length === 0")
    assert browser.console == []
