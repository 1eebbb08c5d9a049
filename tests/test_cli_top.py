"""`octavo top`: frames of what a server says, a terminal that is left as it was, a server that goes away."""

import base64
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from octavo.cli import main
from octavo.cli.top_view import cells_of, frame, sparkline
from tests.serve.fake_server import Fake, serving

LIVE = {
    "state": "ready", "uptime_seconds": 3723.0,
    "model": {"id": "smollm2", "name": "SmolLM2", "device": "cpu", "dtype": "bfloat16", "max_model_len": 8192},
    "kv_cache": {"dtype": "int8", "bytes_per_token": 12240.0, "bytes_per_token_bf16": 23040.0, "capacity_tokens": 6400,
                 "allocated_bytes": 78336000},
    "running": 3, "waiting": 7, "preemptions": 1, "steps": 1234, "prefix_queries": 200, "prefix_hits": 50,
    "tokens_per_second": 123.4, "prompt_tokens_per_second": 50.0, "time_to_first_token_ms": 120.0,
    "inter_token_latency_ms": None, "pages": {"total": 100, "free": 60, "cached": 20, "held": 15, "shared": 5},
    "map": base64.b64encode(bytes([3] * 5 + [2] * 15 + [1] * 20 + [0] * 60)).decode(), "pages_per_cell": 1,
    "sequences": [{"id": n, "status": "decoding", "prompt_tokens": 40 + n, "output_tokens": 9, "pages": 1} for n in
                  range(14)],
}  # fmt: skip


def shown(live: dict, **options) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as text:
        console.print(frame(live, "http://here:8000", **options))
    return text.get()


def test_a_frame_shows_what_the_server_said():
    text = shown(LIVE, history=[0, 50, 100])
    for part in ("http://here:8000  ready  up 1h02m", "12,240 bytes a token, 1.88x less than bf16", "running", "123.4",
                 "25% of 200", " ▄█", "held 15", "and 2 more", "█" * 5 + "▒" * 15 + "░" * 20 + "·" * 60):  # fmt: skip
        assert part in text
    assert text.count("█" * 5 + "▒" * 15) == 2  # the bar, and a map that is in order


@pytest.mark.parametrize("state", ["loading", "restarting"])
def test_a_server_without_an_engine_has_a_frame(state):
    text = shown({"state": state, "model": None, "kv_cache": None, "pages": None, "map": "", "sequences": []})
    assert state in text and "cache" not in text


def test_an_unreachable_server_keeps_its_last_frame():
    text = shown(LIVE, lost="the connection was lost")
    assert "unreachable" in text and "the connection was lost; trying again" in text and "smollm2" in text
    assert "unreachable" in shown({}, lost="no")


def test_names_cannot_steer_the_terminal():
    text = shown({**LIVE, "model": {"id": "\x1b[2J[red]x", "name": "y"}})
    assert "\x1b" not in text and "[red]x" in text


def test_the_map_is_joined_by_the_strongest_state():
    live = {"map": base64.b64encode(bytes([0, 0, 3, 0, 1, 2, 0])).decode(), "pages_per_cell": 4}
    assert cells_of(live, most=4) == (bytes([0, 3, 2, 0]), 8)
    assert cells_of(live, most=7) == (bytes([0, 0, 3, 0, 1, 2, 0]), 4)
    assert cells_of({"map": "?", "pages_per_cell": 4}) == (b"", 4)


def test_sparkline():
    assert sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█" and sparkline([0, 0]) == "  " and sparkline([]) == ""


def test_once_and_json(tmp_path, capsys):
    target = tmp_path / "live.json"
    fake = Fake(live=LIVE)
    with serving(fake) as url:
        assert main(["top", url, "--once", "--api-key", "secret"]) == 0
        assert "running" in capsys.readouterr().out
        assert main(["top", url, "--json", str(target)]) == 0
    assert json.loads(target.read_text()) == LIVE
    assert fake.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["http://127.0.0.1:9"], "no connection to http://127.0.0.1:9"),
        (["localhost"], "no URL of a server"),
        (["http://a,http://b"], "one server to watch"),
        (["http://a", "--interval", "0"], "interval: 0"),
    ],
)
def test_wrong_use(words, said, capsys):
    assert main(["top", *words]) == 2
    assert said in capsys.readouterr().err


def test_another_engines_server(capsys):
    with serving(Fake()) as url:
        assert main(["top", url, "--once"]) == 2
    assert "has no /live" in capsys.readouterr().err


def test_in_a_terminal_through_a_restart_until_q():
    import termios

    ours, theirs = pty.openpty()
    seen = b""

    def until(part: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while part not in seen:
            assert time.monotonic() < deadline, seen[-2000:]
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        seen = b""

    environment = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    with serving(Fake(live=LIVE)) as url:
        before = termios.tcgetattr(theirs)
        words = [sys.executable, "-m", "octavo", "top", url, "--interval", "0.05"]
        process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        until(b"decoding")
    until(b"trying again")
    with serving(Fake(live={**LIVE, "state": "loading"}), port=int(url.rsplit(":")[-1])):
        until(b"loading")
        os.write(ours, b"q")
        until(b"\x1b[?1049l")  # the screen of before
        assert process.wait(10) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
