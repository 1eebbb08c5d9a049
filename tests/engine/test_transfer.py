"""Many arrays, one buffer: what comes out is what went in, at addresses that kernels take."""

import numpy as np
import torch

from octavo.engine import batch
from octavo.engine.batch import most_bytes
from octavo.engine.sampling import SamplingParams
from octavo.engine.transfer import Readback, blocks_for, to_device


def test_arrays_come_back_whole_and_aligned():
    arrays = [
        np.arange(7, dtype=np.int32), np.arange(6, dtype=np.int64).reshape(2, 3), np.array([], dtype=np.int64),
        np.linspace(0, 1, 5), np.ones((3, 1), dtype=np.float32), np.zeros((0, 4), dtype=np.int32),
    ]  # fmt: skip
    got = to_device(arrays, "cpu")
    base = min(tensor.data_ptr() for tensor in got if tensor.numel())
    for array, tensor in zip(arrays, got, strict=True):
        assert tensor.is_contiguous() and tensor.shape == array.shape
        assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype
        assert tensor.numel() == 0 or (tensor.data_ptr() - base) % 64 == 0
    got[0][:] = -1
    assert arrays[0][3] == 3 and got[1][0, 1] == 1, "nothing is shared"


def test_what_is_read_back_is_there_after_waiting():
    one, two = torch.arange(3), torch.tensor(0.5)
    assert [tensor.tolist() for tensor in Readback([one, two]).wait()] == [[0, 1, 2], 0.5]
    assert Readback([]).wait() == []


def test_blocks_of_every_size_are_at_hand():
    sizes = blocks_for(100_000)
    assert set(sizes) == {1 << power for power in range(6, 18)}
    assert sizes.count(64) == sizes.count(1 << 16) > sizes.count(1 << 17) >= 3  # a step launched, one run, one read
    assert max(blocks_for(1 << 17)) == 1 << 17
    assert set(blocks_for(0)) == {64}


def test_no_step_sends_more_than_was_said(tiny, prompts, monkeypatch):
    sent = []

    def watched(arrays, device):
        sent.append(sum(-(-array.nbytes // 64) * 64 for array in arrays))
        return to_device(arrays, device)

    monkeypatch.setattr(batch, "to_device", watched)
    llm = tiny.with_cache(max_num_batched_tokens=40, max_num_seqs=8, max_model_len=256)
    greedy = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm.generate(prompts, greedy)
    llm.score(prompts[0])
    pages = 256 // llm.cache.page_tokens
    assert 0 < max(sent) <= most_bytes(40, 8, pages) <= 3 * max(sent)
