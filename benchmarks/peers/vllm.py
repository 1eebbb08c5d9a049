"""vLLM on the same requests: `python -m benchmarks.peers.vllm --kv-cache-dtype fp8 --out FILE`.

Not tested: vLLM was not at hand. Calls follow its documentation of `LLM` and `SamplingParams`.
"""

import argparse
import sys

from benchmarks.load import Job
from benchmarks.peers.common import Generate, run_peer

__all__ = ["main"]


def make(model: str, given: argparse.Namespace) -> Generate:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    engine = LLM(
        model=model, skip_tokenizer_init=True, kv_cache_dtype=given.kv_cache_dtype, max_num_seqs=given.max_num_seqs,
        gpu_memory_utilization=given.gpu_memory_utilization, max_model_len=given.max_model_len,
        max_num_batched_tokens=given.max_num_batched_tokens, enable_prefix_caching=True,
    )  # fmt: skip

    def generate(contents: list[list[int]], jobs: list[Job]) -> list[int]:
        params = [
            SamplingParams(temperature=0, max_tokens=job.output_tokens, ignore_eos=True, detokenize=False)
            for job in jobs
        ]
        outputs = engine.generate([{"prompt_token_ids": tokens} for tokens in contents], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    return generate


def main() -> int:
    return run_peer("vllm", make, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
