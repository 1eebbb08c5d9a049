"""CPU attention against the reference over the same encoded pages: only arithmetic may differ."""

import pytest
import torch

from octavo.kernels.attention import attend
from octavo.kernels.rows import ScoreCorrection
from tests.kernels.kernel_cases import PAIRS, fill, make_rope, make_sequences, random_vectors

CLOSE = {"rtol": 2e-5, "atol": 5e-5}  # of values up to 30: fp32 sums in another order
CONTEXTS = (1, 70, 300, 64, 1100)
NEW = (1, 70, 0, 3, 40)


def _both(sequences, heads, new, window=None, corrected=False):
    rows, dim = sequences.rows(new), sequences.layer.layout.head_dim
    q = random_vectors(sum(new), heads, dim, 7) / 16  # scores of a few units: larger ones lose digits in any order
    correction = None
    if corrected:
        width = dim // 4
        a, b = (random_vectors(sum(new), heads, width, seed) / 16 for seed in (8, 9))
        correction = ScoreCorrection(a, b, make_rope(rows.max_context, width))
    return [attend(q, rows, sequences.layer, impl, dim**-0.5, window, correction) for impl in ("cpu", "reference")]


@pytest.mark.parametrize("rotate", ["on", "off"])
@pytest.mark.parametrize("dtype", PAIRS)
@pytest.mark.parametrize(("head_dim", "kv_heads", "group"), [(64, 3, 3), (128, 2, 1), (80, 1, 4), (256, 1, 16)])
def test_shapes(dtype, rotate, head_dim, kv_heads, group):
    sequences = make_sequences(dtype, CONTEXTS, kv_heads, head_dim, rotate)
    fill(sequences)
    torch.testing.assert_close(*_both(sequences, kv_heads * group, NEW), **CLOSE)


@pytest.mark.parametrize("window", [None, 1, 100, 700])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("new", [NEW, CONTEXTS, (1,) * 5], ids=["ragged", "prefill", "decode"])
def test_window_and_correction(window, corrected, new):
    sequences = make_sequences(PAIRS[0], CONTEXTS, 2, 96)
    fill(sequences)
    torch.testing.assert_close(*_both(sequences, 10, new, window, corrected), **CLOSE)


@pytest.mark.parametrize("page_tokens", [16, 48, 128, 1024])
@pytest.mark.parametrize("head_dim", [18, 46])
def test_odd_pages_and_widths(page_tokens, head_dim):
    sequences = make_sequences(PAIRS[0], CONTEXTS, 2, head_dim, page_tokens=page_tokens)
    fill(sequences)
    torch.testing.assert_close(*_both(sequences, 6, NEW), **CLOSE)


def test_long_context():
    sequences = make_sequences(PAIRS[0], (20000, 1), 1, 64)
    fill(sequences)
    torch.testing.assert_close(*_both(sequences, 2, (2, 1)), **CLOSE)


@pytest.mark.parametrize("window", [None, 600])
def test_chunks_change_no_bit(window):
    sequences = make_sequences(PAIRS[0], (1300,), 3, 64)
    fill(sequences)
    q = random_vectors(1300, 9, 64, 5)
    whole = attend(q, sequences.rows((1300,)), sequences.layer, "cpu", 0.125, window)
    for chunk in (1, 7, 64, 512):
        for end in {chunk, 517, 1290, 1300}:
            rows = sequences.rows((chunk,), back=1300 - end) if end >= chunk else None
            if rows is not None:
                part = attend(q[end - chunk : end], rows, sequences.layer, "cpu", 0.125, window)
                assert torch.equal(part, whole[end - chunk : end]), (chunk, end)


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_the_batch_changes_no_bit(new_tokens):
    contexts = tuple(5 + 61 * row for row in range(32))
    sequences = make_sequences(PAIRS[0], contexts, 3, 64)
    fill(sequences)
    q = random_vectors(32 * new_tokens, 9, 64, 5)
    together = attend(q, sequences.rows((new_tokens,) * 32), sequences.layer, "cpu", 0.125).split(new_tokens)
    for row, (part, want) in enumerate(zip(q.split(new_tokens), together, strict=True)):
        alone = attend(part, sequences.rows((new_tokens,), which=(row,)), sequences.layer, "cpu", 0.125)
        assert torch.equal(alone, want), row


def test_threads_change_no_bit():
    sequences = make_sequences(PAIRS[0], CONTEXTS, 3, 64)
    fill(sequences)
    threads, outs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outs.append(_both(sequences, 9, NEW)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_a_query_that_is_not_a_number_stays_alone():
    sequences = make_sequences(PAIRS[0], (70, 70), 1, 64)
    fill(sequences)
    q = random_vectors(2, 2, 64, 1)
    q[0] = float("nan")
    out = attend(q, sequences.rows((1, 1)), sequences.layer, "cpu", 0.125)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
