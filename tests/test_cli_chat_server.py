"""`octavo chat URL`: a conversation with a server."""

import json
import os
import signal
import threading
import time

import pytest

from octavo.cli import main
from octavo.cli.chat_server import _Shown
from tests.serve.fake_server import Fake, serving


@pytest.fixture
def says(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def speak(*lines: str) -> None:
        left = iter([*lines, "/exit"])
        monkeypatch.setattr("builtins.input", lambda prompt="": next(left))

    return speak


def test_a_conversation(says, tmp_path, capsys):
    says("Hello", "And?", "/reset", "Again")
    fake, target = Fake(kv_cache={"dtype": "int8"}), tmp_path / "chat.json"
    with serving(fake) as url:
        words = ["--max-tokens", "2", "--system", "Be brief.", "--api-key", "secret", "--min-p", "0.1"]
        assert main(["chat", url, *words, "--json", str(target)]) == 0
    assert capsys.readouterr().out == " w0 w1\n" * 3
    found = json.loads(target.read_text())
    said = [[message["content"] for message in body["messages"]] for body in fake.bodies]
    assert said == [["Be brief.", "Hello"], ["Be brief.", "Hello", " w0 w1", "And?"], ["Be brief.", "Again"]]
    assert found["messages"][-1] == {"role": "assistant", "content": " w0 w1"}
    assert found["turns"][1] == {"prompt_tokens": 4, "cached_tokens": 3, "completion_tokens": 2}
    assert found["server"]["model"] == "toy" and found["kv_cache"] == {"dtype": "int8"}
    sent = fake.bodies[0]
    assert (sent["max_tokens"], sent["top_p"], sent["min_p"]) == (2, 0.95, 0.1) and "top_k" not in sent
    assert fake.headers[-1]["authorization"] == "Bearer secret"


def test_ctrl_c_ends_the_answer_on_the_server_too(says, tmp_path, capsys, monkeypatch):
    says("Tell me everything", "Shorter")
    fake, target = Fake(pause=0.01), tmp_path / "chat.json"
    three_shown, show = threading.Event(), _Shown.__call__

    def spy(shown: _Shown, data: bytes, at: float) -> None:
        show(shown, data, at)
        if shown.text.endswith(" w2"):
            three_shown.set()

    monkeypatch.setattr(_Shown, "__call__", spy)
    with serving(fake) as url:

        def piece(number: int) -> str:
            if number == 3 and len(fake.bodies) == 1:
                assert three_shown.wait(5)
                os.kill(os.getpid(), signal.SIGINT)
            return f" w{number}"

        fake.pieces = piece
        fake.refuse = lambda body: body.update(max_tokens=900 if len(fake.bodies) == 1 else 2)
        assert threading.current_thread() is threading.main_thread()
        assert main(["chat", url, "--json", str(target)]) == 0
        assert fake.left.wait(5)
        deadline = time.monotonic() + 5
        while fake.at_once and time.monotonic() < deadline:  # the second answer's handler ends after its last byte
            time.sleep(0.01)
        assert fake.at_once == 0
    stopped, whole = capsys.readouterr().out.splitlines()
    assert stopped.startswith(" w0 w1 w2") and stopped.endswith(" [stopped]") and whole == " w0 w1"
    found = json.loads(target.read_text())
    assert found["turns"][0] == dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"))
    assert found["messages"][1]["content"] + " [stopped]" == stopped


def test_a_turn_that_is_refused_is_taken_back(says, capsys):
    says("long", "short")
    fake = Fake()
    fake.refuse = lambda body: (413, "too long") if body["messages"][-1]["content"] == "long" else None
    with serving(fake) as url:
        assert main(["chat", url, "--max-tokens", "1"]) == 0
    shown = capsys.readouterr()
    assert "refused: HTTP 413: too long" in shown.err and shown.out == " w0\n"
    assert [message["content"] for message in fake.bodies[-1]["messages"]] == ["short"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["http://a", "--kv-cache-dtype", "int8", "--seed", "1"], "--kv-cache-dtype, --seed are flags of an engine"),
        (["http://a,http://b"], "one server to talk to"),
        (["http://127.0.0.1:9"], "no connection to http://127.0.0.1:9"),
        (["smollm2", "--api-key", "x"], "go with a URL"),
    ],
)
def test_wrong_use(words, said, says, capsys):
    says()
    assert main(["chat", *words]) == 2
    assert said in capsys.readouterr().err
