"""A sequence's logits do not depend on chunk size, prefix hits, preemption, or who else is in the batch."""

from collections.abc import Sequence

import pytest
import torch

from octavo.engine.llm import LLM
from octavo.engine.sampling import SamplingParams
from octavo.kv.schemes import SCHEMES

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
PLANS = [*SCHEMES, "int8,int4"]


def run(llm: LLM, prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy tokens of each prompt, and the logits that chose them, `[8, V]` each."""
    seen: dict[str, dict[int, torch.Tensor]] = {}
    order: list[str] = []

    def keep(request, position, row):
        seen.setdefault(request.id, {})[position] = row.clone()

    llm.engine.on_logits = keep
    try:
        answers = llm.generate(prompts, GREEDY)
    finally:
        llm.engine.on_logits = None
    order = sorted(seen, key=lambda name: int(name.rsplit("-", 1)[1]))
    logits = [torch.stack([seen[name][at] for at in sorted(seen[name])]) for name in order]
    return [answer.token_ids for answer in answers], logits


def bound(dtype: str) -> float:
    """How far logits may be apart; they reach 2.8 here. Exact schemes: only the order of floating-point sums differs.
    Any other scheme rounds, and a K or V that differs in its last fp32 bit may round to the neighbouring code. Such a
    flip moves one element of one vector by one step, so the bound goes with the step. Measured over chunk sizes 1 to
    512, prefix hits and both kernels, largest difference: bf16 3e-4, fp16 2e-4, fp8 2e-4, int8 1.6e-3, int4 0.017,
    int8,int4 0.009; the bounds leave room for two or three flips in the same sequence.
    """
    if all(SCHEMES[name].exact for name in dtype.split(",")):
        return 1e-4
    return {"bf16": 1e-3, "fp16": 1e-3, "int8": 5e-3, "int8-static": 5e-3}.get(dtype, 0.05)


def check(dtype: str, got, want) -> None:
    for ours, theirs in zip(got[1], want[1], strict=True):
        difference = (ours - theirs).abs().max()
        assert difference <= bound(dtype), f"{dtype}: logits differ by {difference:.2e}"
    assert got[0] == want[0]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in (5, 64, 65, 150)]


@pytest.fixture(scope="module", params=PLANS)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def cache(dtype, tiny_asset) -> dict[str, str]:
    """The options of a cache of this dtype; with a calibration where it cannot be without one."""
    needs = any(SCHEMES[name].needs_scale for name in dtype.split(","))
    return {"kv_cache_dtype": dtype, "kv_asset": tiny_asset if needs else "off"}


@pytest.fixture(scope="module")
def want(tiny, prompts, cache):
    """Each prompt alone, in one chunk, nothing shared."""
    alone = tiny.with_cache(**cache, enable_prefix_caching=False)
    runs = [run(alone, [prompt]) for prompt in prompts]
    return [tokens for [tokens], _ in runs], [logits for _, [logits] in runs]


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_chunk_size(tiny, prompts, dtype, cache, want, chunk):
    llm = tiny.with_cache(**cache, max_num_batched_tokens=chunk, max_num_seqs=1, debug=True)
    check(dtype, run(llm, prompts), want)


def test_batch_of_32(tiny, prompts, dtype, cache, want):
    llm = tiny.with_cache(**cache, max_num_seqs=32, kv_cache_memory="16384tok", debug=True)
    crowd = prompts * 8
    tokens, logits = run(llm, crowd)
    reference = (want[0] * 8, want[1] * 8)
    check(dtype, (tokens, logits), reference)


def test_prefix_hit(tiny, prompts, dtype, cache, want):
    llm = tiny.with_cache(**cache, debug=True)
    run(llm, prompts)
    check(dtype, run(llm, prompts), want)
    [again] = llm.generate([prompts[-1]], GREEDY)
    assert again.cached_tokens == (len(prompts[-1]) - 1) // 64 * 64 > 0


def test_preemption(tiny, dtype, cache):
    # four prompts just short of a page boundary, and no page left for them all to grow into
    generator = torch.Generator().manual_seed(3)
    crowd = [torch.randint(3, 320, (60,), generator=generator).tolist() for _ in range(4)]
    roomy = tiny.with_cache(**cache)
    tight = tiny.with_cache(**cache, kv_cache_memory="448tok", enable_prefix_caching=False, debug=True)
    check(dtype, run(tight, crowd), run(roomy, crowd))
    starved = tiny.with_cache(**cache, kv_cache_memory="128tok", enable_prefix_caching=False, debug=True)
    check(dtype, run(starved, crowd), run(roomy, crowd))
    assert tight.engine.scheduler.preemptions + starved.engine.scheduler.preemptions > 0


@pytest.mark.parametrize("kernels", ["reference"])
def test_kernels_agree(tiny, prompts, dtype, cache, want, kernels):
    llm = tiny.with_cache(**cache, kernels=kernels)
    check(dtype, run(llm, prompts), want)
