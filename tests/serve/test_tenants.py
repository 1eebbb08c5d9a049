"""Whether time tells one tenant what another asked."""

import time
from pathlib import Path

import pytest
from real_server import start


@pytest.mark.slow
def test_the_prefix_of_another_key_is_as_slow_as_a_new_one(tmp_path: Path):
    keys = ("--api-key", "one", "--api-key", "two", "--prefix-cache-per-key")
    server = start(tmp_path / "log", *keys)

    def ask(key: str, prompt: list[int]) -> tuple[float, int]:
        begin = time.perf_counter()
        body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True}
        status, reply = server.post("/v1/completions", body, {"Authorization": f"Bearer {key}"})
        assert status == 200, reply
        return time.perf_counter() - begin, reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    try:
        ask("one", [7] * 1000)  # compiles and warms
        found = []
        for number in range(3):
            secret = [1000 + 17 * at + number for at in range(1100)]
            new, again, other = ask("one", secret), ask("one", secret), ask("two", secret)
            assert (new[1], other[1]) == (0, 0) and again[1] >= 1024
            found.append((new[0], again[0], other[0]))
        new, again, other = (sorted(times)[1] for times in zip(*found, strict=True))
        assert again < 0.5 * new and other > 0.6 * new, found
    finally:
        server.process.terminate()
        assert server.process.wait(15) == 0
