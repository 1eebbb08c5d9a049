"""Time from the start of a process to its first token, by phases: `python benchmarks/start.py --shape 7b --out FILE`.

A checkpoint of random numbers (bf16, safetensors in shards of 2 GB, a tokenizer of 256 bytes for the self-test) is
written to a temporary folder, where the page cache still has it; then fresh processes open it, one after the other.
The first one compiles the kernels, and later ones find them on disk: `--cold-cache` gives each its own Triton cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

__all__ = ["main", "write_checkpoint"]

_SHARD_BYTES = 2 << 30
_MARK = "phases: "


def write_checkpoint(folder: Path, shape: str, longest: int = 4096, shard_bytes: int = _SHARD_BYTES) -> int:
    """A checkpoint of a shape of benchmarks/made_up.py; its bytes. One shard is in memory at a time."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.made_up import config_of
    from octavo.models.families import spec_of_config, weight_shapes

    config = config_of(shape, longest)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shards, held, total = [{}], 0, 0
    for name, sizes in weight_shapes(spec_of_config(config)).items():
        count = 2 * torch.Size(sizes).numel()
        if held and held + count > shard_bytes:
            shards, held = [*shards, {}], 0
        shards[-1][name], held, total = sizes, held + count, total + count
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {name: torch.empty(sizes, dtype=torch.bfloat16, device=device) for name, sizes in shard.items()}
        for weight in weights.values():
            weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0.0, 0.02)
        save_file({name: weight.cpu() for name, weight in weights.items()}, folder / file)
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return total


def _byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose tokens are the 256 bytes, as byte-level BPE writes them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    symbols = [chr(byte) for byte in plain] + [chr(256 + at) for at in range(len(others))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {symbol: at for at, symbol in enumerate(symbols)}, "merges": []},
    }  # fmt: skip


class Phases:
    """Seconds by phase; where one is called within another, each has its own time only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        plain = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self.timed(phase, lambda: plain(*args, **kwargs)))

    def timed(self, phase: str, act: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        self._inner.append(0.0)
        try:
            return act()
        finally:
            whole = time.perf_counter() - begin
            own = whole - self._inner.pop()
            self._inner[-1] += whole
            self.seconds[phase] = self.seconds.get(phase, 0.0) + own


def _start(folder: str, dtype: str, born: float, options: dict[str, Any]) -> None:
    """In the fresh process: an engine, one token, and a line of JSON."""
    phases = Phases()
    phases.seconds["interpreter"] = time.time() - born
    phases.timed("imports", _imports)
    from octavo.engine import build, prepare
    from octavo.engine.llm import LLM
    from octavo.engine.runner import Runner
    from octavo.engine.sampling import SamplingParams

    for owner, name, phase in (
        (build, "open_checkpoint", "open"), (build, "DenseDecoder", "weights"), (build, "_tokenizer", "tokenizer"),
        (build, "self_test", "self-test"), (build, "make_transforms", "transforms"), (build, "PagePool", "pool"),
        (prepare, "warm_up", "warm-up"), (prepare, "measure_room", "memory"), (Runner, "record", "graphs"),
        (prepare, "run_largest", "largest step"),
    ):  # fmt: skip
        phases.wrap(owner, name, phase)
    llm = phases.timed("the rest", lambda: LLM(folder, kv_cache_dtype=dtype, **options))
    ready = time.time() - born
    phases.timed("first token", lambda: llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, temperature=0)))
    found = {"ready_s": ready, "first_token_s": time.time() - born, "phases_s": phases.seconds,
             "pool_tokens": llm.cache.capacity_tokens, "self_test": llm.cache.self_test.status}  # fmt: skip
    print(_MARK + json.dumps(found), flush=True)


def _imports() -> None:
    import torch

    import octavo.engine.llm  # noqa: F401

    if torch.cuda.is_available():
        torch.cuda.init()


def measure(folder: Path, dtype: str, options: dict[str, Any], cache: Path | None, timeout: float) -> dict[str, Any]:
    """One start in a process of its own; `cache`: where Triton keeps what it compiles."""
    environment = os.environ | ({"TRITON_CACHE_DIR": str(cache)} if cache else {})
    command = [sys.executable, __file__, "--child", str(folder), "--cache", dtype, "--options", json.dumps(options)]
    try:
        done = subprocess.run(
            [*command, "--born", str(time.time())], env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"not ready after {timeout:.0f} s"}
    line = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    return json.loads(line.removeprefix(_MARK)) if line else {"skipped": done.stderr[-2000:]}


def _caches(text: str) -> tuple[str, ...]:
    from benchmarks.arguments import caches  # imports torch, which a process that is timed has yet to do

    return caches(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=("7b", "8b", "tiny"))
    parser.add_argument("--dtypes", type=_caches, help="int8,bf16,int4 by default; a K,V pair as int8/int4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", help="where to write the checkpoint; a temporary folder that goes without it")
    parser.add_argument("--cold-cache", action="store_true", help="compile the kernels in every start")
    parser.add_argument("--seconds", type=float, default=280, help="no start is begun after this long")
    parser.add_argument("--options", type=json.loads, default={}, help="of the engine, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--born", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    if given.child:
        _start(given.child, given.cache, given.born, given.options)
        return
    import torch

    from benchmarks.report import machine

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.folder, ignore_cleanup_errors=True) as home:
        folder = Path(home, "model")
        folder.mkdir()
        size = write_checkpoint(folder, given.shape)
        report: dict[str, Any] = {
            "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
            "command": " ".join(["python", *sys.argv]), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": given.shape, "weight_bytes": size, "written_s": time.perf_counter() - begin, "results": [],
        }  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        starts = [(name, turn) for name in given.dtypes or ("int8", "bf16", "int4") for turn in (1, 2)]
        for number, (name, turn) in enumerate(starts):
            left = given.seconds - (time.perf_counter() - begin)
            cache = Path(home, f"triton-{number}" if given.cold_cache else "triton")
            found = measure(folder, name, given.options, cache, left) if left > 0 else {"skipped": "out of time"}
            report["results"].append({"kv_cache_dtype": name, "start": turn, **found})
            print(_line(report["results"][-1]), flush=True)
            if given.out:
                given.out.write_text(json.dumps(report, indent=1) + "\n")


def _line(row: dict[str, Any]) -> str:
    head = f"{row['kv_cache_dtype']:5} start {row['start']}"
    if "skipped" in row:
        return f"{head}  {row['skipped']}"
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["phases_s"].items() if seconds >= 0.05)
    return f"{head}  ready {row['ready_s']:.1f} s, first token {row['first_token_s']:.1f} s: {phases}"


if __name__ == "__main__":
    main()
