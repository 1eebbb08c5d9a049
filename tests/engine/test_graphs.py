"""What CUDA graphs need and a CPU can check: which sizes are recorded, and that padding a batch changes nothing."""

import pytest
import torch

from octavo.engine.batch import Batch
from octavo.engine.graphs import DecodeBuffers, GraphSet, ladder
from octavo.engine.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 8, 20, 64, 65, 300, 512, 5000])
def test_the_ladder_holds_every_batch(most):
    sizes = ladder(most)
    assert list(sizes) == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == min(most, 512)
    graphs = GraphSet(sizes, DecodeBuffers(sizes[-1], 64, 64, "cpu", "reference"))
    for rows in range(1, sizes[-1] + 1):
        size = graphs.size_for(rows)
        assert size is not None and rows <= size <= max(rows + 7, rows * 9 / 7)
    assert graphs.size_for(sizes[-1] + 1) is None


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_padding_changes_nothing(tiny, prompts, kernels, dtype):
    """Each decode step again as a padded one: the same logits, and no other page is touched."""
    llm = tiny.with_cache(kernels=kernels, kv_cache_dtype=dtype, max_model_len=512)
    runner = llm.engine.runner
    graphs = GraphSet((8, 16), DecodeBuffers(16, 512, llm.cache.page_tokens, "cpu", "reference"))
    plain, seen = runner.run, []

    @torch.inference_mode()
    def both(batch: Batch) -> torch.Tensor:
        want = plain(batch)
        if graphs.takes(batch):
            before = [layer.pages.clone() for layer in runner.pool.layers]
            size = graphs.size_for(len(batch.tokens))
            assert size is not None
            graphs.buffers.fill(batch, size)
            got = plain(graphs.buffers.batch(size))[: len(want)]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
            written = set((batch.rows.slots // llm.cache.page_tokens).tolist())
            for old, layer in zip(before, runner.pool.layers, strict=True):
                changed = (old != layer.pages).any(1).nonzero().flatten().tolist()
                assert set(changed) <= written  # a product of more rows may round its own tokens' vectors otherwise
            seen.append(len(batch.tokens))
        return want

    runner.run = both
    each = [SamplingParams(max_tokens=2 + i, temperature=0, ignore_eos=True) for i in range(len(prompts))]
    llm.generate(prompts, each)
    assert set(seen) >= {1, 2, 3, 6}, "decode steps of many sizes were checked"


def test_only_decode_steps_are_taken(tiny, prompts):
    graphs = GraphSet((1, 2), DecodeBuffers(2, 512, 64, "cpu", "reference"))
    llm = tiny.with_cache()
    plain, taken = llm.engine.runner.run, []
    llm.engine.runner.run = lambda batch: taken.append((graphs.takes(batch), batch)) or plain(batch)
    llm.generate(prompts[:3], PARAMS)
    assert not any(took for took, batch in taken)  # prompts, then three rows
    llm.generate(prompts[1:3], PARAMS)
    assert [took for took, batch in taken[-5:]] == [True] * 5
