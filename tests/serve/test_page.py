"""The page: what a browser is told, and that its three files fit together."""

import re
import urllib.request
from importlib import resources

import pytest
from real_server import Server

from octavo.serve.web_routes import FILES

WEB = {name: resources.files("octavo.serve").joinpath("web", name).read_text() for name in FILES}


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/static/app.js", "text/javascript"),
                                            ("/static/style.css", "text/css")])  # fmt: skip
def test_it_is_served_with_a_strict_policy(server: Server, path: str, kind: str):
    with urllib.request.urlopen(server.url + path, timeout=10) as reply:
        headers, body = reply.headers, reply.read()
    assert headers["Content-Type"].startswith(kind) and body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_comes_from_elsewhere():
    for name, text in WEB.items():
        found = re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r"//.*", "", text) if name == "app.js" else text)
        assert set(found) <= {"http://www.w3.org"}, (name, found)
    assert "innerHTML" not in WEB["app.js"] and "eval(" not in WEB["app.js"]
    assert not re.search(r"<script(?! src)|<style|\son\w+=|\sstyle=", WEB["index.html"])


def test_every_name_that_the_script_uses_is_there():
    used = set(re.findall(r'\$\("([\w-]+)"\)', WEB["app.js"])) | {"free", "cached", "held", "shared"}
    assert used <= set(re.findall(r'id="([\w-]+)"', WEB["index.html"]))


def test_what_the_script_reads_is_what_the_server_says(server: Server):
    live = server.live()
    used = set(re.findall(r"\blive\.(\w+)", WEB["app.js"])) - {"map"}
    assert used <= set(live), used - set(live)
    assert set(re.findall(r"\bcache\.(\w+)", WEB["app.js"])) <= set(live["kv_cache"])
    assert set(re.findall(r"\bmodel\.(\w+)", WEB["app.js"])) <= set(live["model"])
    assert live["pages"]["total"] == live["kv_cache"]["pages"]
