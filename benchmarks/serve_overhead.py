"""What HTTP costs: the same requests given to the engine itself, and streamed by a server, in turns.

    python -m benchmarks.serve_overhead --streams 32 --rounds 5 --out runs/serve_overhead.json

A round is `2 x streams` requests of random tokens, `streams` of them at a time. The client is in this process and its
work counts as the server's cost: on two cores it takes time from the engine, as a client on another machine would not.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.serve_load import wait_for
from octavo.base.device import cpu_model
from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams

__all__ = ["main"]


def prompts_of(round_number: int, count: int, length: int) -> list[list[int]]:
    dice = random.Random(round_number)
    return [[dice.randrange(30_000) for _ in range(length)] for _ in range(count)]


def offline(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    """Generated tokens a second."""
    begin = time.perf_counter()
    found = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    assert all(len(one.token_ids) == tokens for one in found)
    return len(prompts) * tokens / (time.perf_counter() - begin)


async def over_http(port: int, prompts: list[list[int]], tokens: int, streams: int) -> float:
    """Generated tokens a second, each token an event of a stream."""
    left = list(prompts)

    async def keep_asking() -> None:
        while left:
            body = {"prompt": left.pop(), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            data = json.dumps(body).encode()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            events = (await reader.read()).count(b"data: ")
            assert events >= tokens // 2, f"only {events} events"
            writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(keep_asking() for _ in range(streams)))
    return len(prompts) * tokens / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--port", type=int, default=8712)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    flags = {"kv_cache_dtype": "int8", "kv_self_test": "off", "kv_cache_memory": "30000tok",
             "max_num_seqs": given.streams}  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "octavo", "serve", "smollm2", "--port", str(given.port), *words]
    llm = LLM("smollm2", **flags)
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    rounds: list[dict[str, float]] = []
    try:
        assert wait_for(given.port, lambda live: live["state"] == "ready", 90), "the server did not start"
        for number in range(given.rounds + 1):
            prompts = prompts_of(number, 2 * given.streams, given.input_len)
            alone = offline(llm, prompts, given.output_len)
            served = asyncio.run(over_http(given.port, prompts, given.output_len, given.streams))
            if number:  # the first compiles and fills buffers
                rounds.append({"offline": alone, "http": served, "ratio": served / alone})
                print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    finally:
        server.terminate()
        server.wait(20)
    report = {
        "command": " ".join(["python -m benchmarks.serve_overhead", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "streams": given.streams, "input_len": given.input_len, "output_len": given.output_len, "rounds": rounds,
        "tokens_per_second": {name: statistics.median(one[name] for one in rounds) for name in ("offline", "http")},
        "ratio": statistics.median(one["ratio"] for one in rounds),
    }  # fmt: skip
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}, indent=1))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
