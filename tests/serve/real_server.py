"""A real server on the packaged model, as tests start and ask it."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ENGINE", "Server", "start"]

ENGINE = (
    *("--kv-cache-dtype", "int8", "--kv-cache-memory", "20000tok", "--kv-self-test", "off", "--max-num-seqs", "8"),
    "--deterministic",
)


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str, timeout: float = 10) -> tuple[int, Any]:
        return _answer(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        return _answer(urllib.request.Request(self.url + path, given, headers), 60)

    def live(self) -> dict[str, Any]:
        return self.get("/live")[1]

    def until(self, done: Any, seconds: float = 20) -> dict[str, Any]:
        """The first `/live` for which `done` holds."""
        end = time.monotonic() + seconds
        while not done(state := self.live()):
            assert time.monotonic() < end, f"still {state['state']}: {state['running']} running, pages {state['pages']}"
            time.sleep(0.05)
        return state


def _answer(request: urllib.request.Request, timeout: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            body = reply.read()
            return reply.status, json.loads(body) if "json" in reply.headers["Content-Type"] else body
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def start(log: Path, *flags: str, engine: tuple[str, ...] = ENGINE) -> Server:
    """Returns when it serves."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    command = [sys.executable, "-m", "octavo", "serve", "smollm2", "--port", str(port), *engine, *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stderr=out, stdout=out)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    end = time.monotonic() + 90
    while True:
        try:
            if server.get("/health")[0] == 200:
                return server
        except OSError:
            pass
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
