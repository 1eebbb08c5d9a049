"""A server under load that misbehaves: `python benchmarks/serve_load.py --seconds 300 --out FILE`.

Starts `octavo serve smollm2 --deterministic`, keeps 64 streams open (some are cancelled midway, some leave at once,
some read slowly), and holds every answer, whole or cut short, against what the engine gives for the same prompt and
seed when it is asked for it alone and offline. Then: are all pages free, and did either process grow?
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

__all__ = ["main"]

WORDS = "the sea a ship of stone and light under an old house by river with seven birds that sing".split()  # noqa: SIM905
KINDS = (("whole", 60), ("cancel", 15), ("leave at once", 10), ("slow", 15))
MODEL = ["--kv-cache-dtype", "int8", "--deterministic", "--kv-self-test", "off", "--kv-cache-memory", "30000tok"]


@dataclass
class Tally:
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


def make_jobs(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of 5 to 300 words and answers of 16 to 96 tokens, half of them drawn at random with a seed."""
    dice = random.Random(seed)
    jobs = []
    for number in range(count):
        words = [dice.choice(WORDS) for _ in range(dice.choice((5, 20, 80, 300)))]
        job = {"prompt": f"Story {number}: {' '.join(words)}", "max_tokens": dice.randint(16, 96), "ignore_eos": True}
        jobs.append({**job, **({"temperature": 0.0} if number % 2 else {"temperature": 0.9, "seed": number})})
    return jobs


def answers_offline(jobs: list[dict[str, Any]]) -> list[str]:
    from octavo.engine.llm import LLM
    from octavo.engine.sampling import SamplingParams

    llm = LLM("smollm2", kv_cache_dtype="int8", deterministic=True, kv_self_test="off", kv_cache_memory="20000tok")
    params = [SamplingParams(**{k: v for k, v in job.items() if k != "prompt"}) for job in jobs]
    return [llm.generate(job["prompt"], one)[0].text for job, one in zip(jobs, params, strict=True)]


async def one_stream(port: int, job: dict[str, Any], want: str, kind: str, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({**job, "stream": True}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    text, done, last = "", False, 0.0
    stop_at = len(want) // 3 if kind == "cancel" else 0
    try:
        await writer.drain()
        if kind == "leave at once":
            return
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                done = True
                break
            chunk = json.loads(line[6:])
            if "error" in chunk:
                tally.failed.append(chunk["error"]["message"])
                return
            now = time.perf_counter()
            if last and kind == "whole":
                tally.gaps.append(now - last)
            last, tally.tokens = now, tally.tokens + 1
            text += chunk["choices"][0]["text"]
            if kind == "slow":
                await asyncio.sleep(0.2)
            if kind == "cancel" and len(text) >= stop_at:
                break
        if done and text != want:
            tally.wrong.append(f"{kind}: {text!r} is not {want!r}")
        elif not done and kind != "cancel":
            tally.failed.append(f"{kind}: the stream ended after {len(text)} characters")
        elif not want.startswith(text):
            tally.wrong.append(f"{kind}: {text!r} does not begin {want!r}")
    except OSError as error:
        tally.failed.append(f"{kind}: {error}")
    finally:
        tally.kinds[kind] += 1
        writer.close()


async def load(port: int, jobs: list[dict[str, Any]], want: list[str], streams: int, seconds: float) -> Tally:
    tally, end, dice = Tally(), time.monotonic() + seconds, random.Random(11)

    async def keep_asking() -> None:
        while time.monotonic() < end:
            at = dice.randrange(len(jobs))
            kind = dice.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
            await one_stream(port, jobs[at], want[at], kind, tally)

    await asyncio.gather(*(keep_asking() for _ in range(streams)))
    return tally


def get(port: int, path: str) -> Any:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        return json.loads(reply.read())


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of the front and of the processes it started, by name."""
    found = {"front": pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        name = Path(f"/proc/{child}/cmdline").read_text()
        found["engine" if "engine_process" in name else "renderer"] = int(child)
    return {name: _rss_mib(one) for name, one in found.items()}


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def wait_for(port: int, done: Any, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = get(port, "/live")
            if done(state):
                return state
        except OSError:
            pass
        time.sleep(0.2)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--port", type=int, default=8711)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    jobs = make_jobs(given.jobs, seed=3)
    want = answers_offline(jobs)
    print(f"{len(jobs)} answers are known", flush=True)
    command = [sys.executable, "-m", "octavo", "serve", "smollm2", "--port", str(given.port), *MODEL]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert wait_for(given.port, lambda live: live["state"] == "ready", 90), "the server did not start"
        asyncio.run(load(given.port, jobs, want, given.streams, 60))  # buffers grow to their size
        before = memory_mib(server.pid)
        begin = time.monotonic()
        tally = asyncio.run(load(given.port, jobs, want, given.streams, given.seconds))
        seconds = time.monotonic() - begin
        idle = wait_for(given.port, lambda live: live["running"] + live["waiting"] == 0, 20)
        after = memory_mib(server.pid)
    finally:
        server.terminate()
    report = {
        "command": " ".join(["python", *sys.argv]), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(), "streams": given.streams, "seconds": seconds, "answers": dict(tally.kinds),
        "wrong": len(tally.wrong), "failed": len(tally.failed), "chunks": tally.tokens,
        "gap_ms": {f"p{p}": float(np.percentile(tally.gaps, p)) * 1e3 for p in (50, 90, 99, 100)},
        "pages_held_after": idle["pages"]["held"] if idle else None, "memory_mib_before": before,
        "memory_mib_after": after, "exit": server.wait(20), "examples": (tally.wrong + tally.failed)[:5],
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
