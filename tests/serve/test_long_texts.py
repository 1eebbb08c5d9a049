"""Texts that are far too long hold nobody up and take no more work than shows that they are."""

import threading
import time

import pytest
from fake_engine import fake_app
from starlette.testclient import TestClient

from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.bpe import BPEBackend
from octavo.checkpoint.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_other_threads_run_while_a_text_is_cut_up():
    tokenizer = open_checkpoint("smollm2").tokenizer()
    assert tokenizer is not None
    work = threading.Thread(target=tokenizer.encode, args=("hello world " * 200_000,), daemon=True)
    ticks, begin = 0, time.perf_counter()
    work.start()
    while work.is_alive():
        time.sleep(0.002)
        ticks += 1
    assert ticks > 10, f"{ticks} in {time.perf_counter() - begin:.2f} s"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", lambda text: {"prompt": text}),
        ("/v1/completions", lambda text: {"prompt": ["a", text]}),
        ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}),
        ("/tokenize", lambda text: {"prompt": text}),
    ],
)
def test_what_is_too_long_is_not_cut_up_whole(path: str, body, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = BPEBackend.encode

    def encode(self: BPEBackend, text: str, add_special_tokens: bool) -> list[int]:
        seen.append(len(text))
        return real(self, text, add_special_tokens)

    monkeypatch.setattr("octavo.serve.info_routes._MOST_TOKENS", 4096)
    monkeypatch.setattr(BPEBackend, "encode", encode)
    text = "hello world " * 100_000
    with TestClient(fake_app()[0]) as client:
        reply = client.post(path, json=body(text))
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded", reply.text
    assert sum(seen) < len(text) // 20, seen


def test_one_that_fits_is_taken_whole_however_long_its_words():
    with TestClient(fake_app()[0]) as client:
        text = " " * 3000 + "hello" + " " * 3000  # a run of spaces is one token of many characters
        ids = Tokenizer.encode(open_checkpoint("smollm2").tokenizer(), text)
        assert len(ids) < 200
        assert client.post("/v1/completions", json={"prompt": text}).status_code == 200
