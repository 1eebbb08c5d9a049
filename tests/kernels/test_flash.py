"""The dense flash kernel against attention written out in fp64: ragged chunks, windows, groups, widths."""

import pytest

pytest.importorskip("triton")

import torch
from test_triton_kernels import DEVICE, WIDE, pytestmark, relative

from octavo.kernels.attention.triton_flash import FlashCut, flash, flash_kernel
from octavo.kernels.rows import Chunks

__all__ = ["pytestmark"]

CHUNKS = [(70, 70), (1, 130), (33, 200), (64, 64), (5, 321), (129, 300)]
CUT = FlashCut(32, 32, 4, 2)
DTYPE = torch.bfloat16 if WIDE else torch.float32  # the interpreter multiplies bf16 operands by their raw bits
HOPPER = WIDE and torch.cuda.get_device_capability()[0] == 9
OVERLAPPED = [
    FlashCut(rows, keys, rows // 16, stages, overlapped=True)
    for rows, keys, stages in ((128, 64, 2), (128, 64, 3), (128, 128, 2), (64, 64, 2))
]
WITHIN = 6e-3 if WIDE else 2e-6


def written_out(q, keys, values, chunks: list[tuple[int, int]], scale: float, window: int | None) -> torch.Tensor:
    """fp64 `[tokens, H, D]`."""
    q, keys, values = q.double(), keys.double(), values.double()
    group, out, at, begin = q.shape[1] // keys.shape[1], [], 0, 0
    for new, context in chunks:
        k, v = (side[at : at + context].repeat_interleave(group, 1).transpose(0, 1) for side in (keys, values))
        position = torch.arange(context - new, context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)[None, :]
        hidden = key > position
        if window is not None:
            hidden |= key <= position - window
        scores = (q[begin : begin + new].transpose(0, 1) @ k.mT * scale).masked_fill(hidden, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        at, begin = at + context, begin + new
    return torch.cat(out)


def check_flash(
    chunks: list[tuple[int, int]], kv_heads: int, group: int, head_dim: int, window: int | None = None,
    cut: FlashCut = CUT, dtype: torch.dtype = DTYPE,
):  # fmt: skip
    torch.manual_seed(2)
    news, contexts = [new for new, _ in chunks], [context for _, context in chunks]
    q = torch.randn(sum(news), kv_heads * group, head_dim, device=DEVICE) * 2
    keys, values = (torch.randn(sum(contexts), kv_heads, head_dim, device=DEVICE).to(dtype) for _ in range(2))
    out = torch.full(q.shape, float("nan"), device=DEVICE, dtype=dtype)
    laid = Chunks.of(news, contexts, DEVICE)
    flash(q, keys, values, out, laid, max(news), head_dim**-0.5, window, cut)
    assert out.isfinite().all()
    got = relative(out, written_out(q, keys, values, chunks, head_dim**-0.5, window))
    assert got < (WITHIN if dtype is DTYPE else 6e-3)


@pytest.mark.parametrize("window", [None, 1, 50, 150])
def test_ragged_chunks(window: int | None):
    check_flash(CHUNKS, 2, 1, 64, window, FlashCut(32, 32, 4, 2))
    check_flash(CHUNKS, 3, 1, 64, window, FlashCut(64, 32, 4, 2, 1 << 10))


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("window", [None, 50])
def test_groups(group: int, window: int | None):
    check_flash(CHUNKS, 2, group, 64, window)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_widths(head_dim: int):
    check_flash([(40, 40), (9, 75)], 2, 2, head_dim, cut=FlashCut(32, 32, 4, 2))


def test_half_precision():
    check_flash(CHUNKS, 2, 2, 64, dtype=torch.float16)


def test_what_lies_behind_a_context_is_not_read():
    """Another sequence's NaN must not come in, times zero, through the tile that its keys share with ours."""
    check_nothing_behind(FlashCut(32, 32, 4, 2), 64)


def check_nothing_behind(cut: FlashCut, head_dim: int):
    torch.manual_seed(2)
    chunks, scale = [(40, 40), (40, 40)], head_dim**-0.5
    q = torch.randn(80, 2, head_dim, device=DEVICE)
    keys, values = (torch.randn(80, 2, head_dim, device=DEVICE).to(DTYPE) for _ in range(2))
    keys[40:], values[40:] = float("nan"), float("nan")
    out = torch.empty(80, 2, head_dim, device=DEVICE, dtype=DTYPE)
    flash(q, keys, values, out, Chunks.of([40, 40], [40, 40], DEVICE), 40, scale, None, cut)
    assert relative(out[:40], written_out(q, keys, values, chunks[:1], scale, None)) < WITHIN


@pytest.mark.skipif(not HOPPER, reason="scheduled for Hopper GPUs, and not interpreted")
@pytest.mark.parametrize("cut", OVERLAPPED, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_overlapped(head_dim: int, cut: FlashCut):
    if head_dim == 256 and (cut.rows * cut.keys > 128 * 64 or cut.stages > 2):
        pytest.skip("more than a multiprocessor holds")
    chunks = [*CHUNKS, (700, 700), (300, 1111)]
    for window in (None, 1, 50, 500):
        check_flash(chunks, 2, 1, head_dim, window, cut, torch.bfloat16)
    check_flash(chunks, 2, 3, head_dim, None, cut, torch.float16)
    check_nothing_behind(cut, head_dim)


@pytest.mark.skipif(not WIDE, reason="nothing is compiled")
def test_nothing_is_compiled_for_lengths():
    check_flash([(70, 70)], 2, 2, 64)
    before = [len(cache[0]) for cache in flash_kernel.device_caches.values()]
    for chunks in ([(16, 64)], [(65, 1000), (300, 300)], [(512, 512)] * 16):
        check_flash(chunks, 2, 2, 64)
    assert [len(cache[0]) for cache in flash_kernel.device_caches.values()] == before
