"""LMDeploy's TurboMind on the same requests: `python -m benchmarks.peers.lmdeploy --kv-cache-dtype 8 --out FILE`.

`--kv-cache-dtype` is its `quant_policy`: 0 (none), 4 or 8 bits. Not tested: LMDeploy was not at hand. Token ids go in
by `AsyncEngine.generate(input_ids=...)`, as lmdeploy/serve/async_engine.py declares it. Its share of memory is of what
is free beside the weights, unlike the other engines' share of all: give `--gpu-memory-utilization` so that the pools
are alike.
"""

import argparse
import asyncio
import sys
from itertools import count

from benchmarks.load import Job
from benchmarks.peers.common import Generate, run_peer

__all__ = ["main"]


def make(model: str, given: argparse.Namespace) -> Generate:
    from lmdeploy import (  # pyright: ignore[reportMissingImports]
        GenerationConfig,
        TurbomindEngineConfig,
        pipeline,
    )

    policy = 0 if given.kv_cache_dtype == "auto" else int(given.kv_cache_dtype)
    config = TurbomindEngineConfig(
        quant_policy=policy, cache_max_entry_count=given.gpu_memory_utilization, max_batch_size=given.max_num_seqs,
        session_len=given.max_model_len, max_prefill_token_num=given.max_num_batched_tokens,
        enable_prefix_caching=True,
    )  # fmt: skip
    engine = pipeline(model, backend_config=config)
    core, loop = getattr(engine, "async_engine", engine), asyncio.new_event_loop()
    sessions = count(1)

    async def one(tokens: list[int], job: Job) -> int:
        params = GenerationConfig(max_new_tokens=job.output_tokens, ignore_eos=True, do_sample=False)
        got, stream = 0, core.generate(None, next(sessions), params, do_preprocess=False, input_ids=tokens)
        async for output in stream:
            got = output.generate_token_len
        return got

    async def every(contents: list[list[int]], jobs: list[Job]) -> list[int]:
        return list(await asyncio.gather(*(one(*pair) for pair in zip(contents, jobs, strict=True))))

    def generate(contents: list[list[int]], jobs: list[Job]) -> list[int]:
        return loop.run_until_complete(every(contents, jobs))

    return generate


def main() -> int:
    return run_peer("lmdeploy", make, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
