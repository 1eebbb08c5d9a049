"""Many arrays, one buffer: what comes out is what went in, at addresses that kernels take."""

import numpy as np
import torch

from octavo.engine.transfer import Readback, to_device


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
