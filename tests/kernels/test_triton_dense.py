"""Chunks of prompts through decoded pages and a dense kernel, against the reference over the same pages."""

import pytest

pytest.importorskip("triton")

from dataclasses import replace

import torch
from test_triton_kernels import DEVICE, DTYPES, MIXED, WIDE, filled, make_rows, pytestmark, relative, to_device

from octavo.kernels.ahead import runs_gluon
from octavo.kernels.attention import attend, triton
from octavo.kernels.attention.triton_dense import attend_dense, takes, unpack
from octavo.kernels.attention.triton_flash import FlashCut
from octavo.kernels.attention.triton_flash_pages import flash_pages, reads_pages
from octavo.kernels.rows import Chunks, Rows
from octavo.kv.transform import SideTransform

__all__ = ["pytestmark"]

GLUON = runs_gluon(torch.device(DEVICE))
CHUNKS = [(1, 130), (1, 64), (70, 70), (33, 200), (5, 321)]


def with_chunks(chunks: list[tuple[int, int]], dtype: torch.dtype) -> Rows:
    rows = to_device(make_rows(chunks, 2))
    rest = chunks[rows.singles :]
    return replace(rows, compute=dtype, chunks=Chunks.of([n for n, _ in rest], [c for _, c in rest], DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_decoded_pages_are_what_attention_reads(dtype: str, head_dim: int):
    torch.manual_seed(3)
    layer, rows = filled(dtype, CHUNKS, 2, head_dim), with_chunks(CHUNKS, torch.float32)
    q = torch.randn(len(rows.positions), 4, head_dim, device=DEVICE)
    want = attend(q, rows, layer, "reference", head_dim**-0.5)[rows.singles :]
    keys, values = unpack(rows, layer, torch.float32)
    assert keys.isfinite().all() and values.isfinite().all()
    got, at, begin = [], 0, rows.singles
    for new, context in CHUNKS[rows.singles :]:
        k, v = (side[at : at + context].repeat_interleave(2, 1).transpose(0, 1) for side in (keys, values))
        scores = q[begin : begin + new].transpose(0, 1) @ k.mT * head_dim**-0.5
        late = torch.ones(new, context, dtype=torch.bool, device=DEVICE).triu(context - new + 1)
        got.append((scores.masked_fill(late, float("-inf")).softmax(-1) @ v).transpose(0, 1))
        at, begin = at + context, begin + new
    turned = layer.value.rotated and layer.value.matrix is None and head_dim == 64
    out = torch.cat(got)
    assert relative(out if turned else layer.value.output(out), want) < (2e-6 if dtype == "fp32" else 2e-3)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", ["bf16", "int8", "int8,int4"])
def test_mixed_steps_are_of_the_type_that_the_model_computes_in(
    dtype: str, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    """Single rows through the paged kernel and chunks through the dense one, into one tensor."""
    torch.manual_seed(3)
    layer, rows = filled(dtype, CHUNKS, 2, 64), with_chunks(CHUNKS, torch.float16)
    q = torch.randn(len(rows.positions), 4, 64, device=DEVICE)

    def dense(*args):
        return attend_dense(*args, cut=FlashCut(32, 32, 4, 2))

    monkeypatch.setattr(triton, "takes", lambda q, rows, layer, correction: rows.chunks is not None)
    monkeypatch.setattr(triton, "attend_dense", dense)
    want = attend(q, rows, layer, "reference", 0.125, window)
    got = attend(q, rows, layer, "triton", 0.125, window)
    assert got.dtype == torch.float16 and relative(got, want) < 3e-3
    alone = replace(
        rows,
        query_start=rows.query_start[2:] - 2,
        context=rows.context[2:].clone(),
        singles=0,
        block_tables=rows.block_tables[2:].clone(),
    )
    assert torch.equal(attend(q[2:], alone, layer, "triton", 0.125, window), got[2:])


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("invariant", [False, True])
def test_rounding_is_that_of_a_copy(dtype: str, invariant: bool):
    torch.manual_seed(3)
    layer, rows = filled(dtype, CHUNKS, 2, 64), replace(to_device(make_rows(CHUNKS, 2)), invariant=invariant)
    q = torch.randn(len(rows.positions), 4, 64, device=DEVICE)
    exact = attend(q, rows, layer, "triton", 0.125)
    rounded = attend(q, replace(rows, compute=torch.float16), layer, "triton", 0.125)
    assert exact.dtype == torch.float32 and torch.equal(rounded, exact.to(torch.float16))


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_where_torch_turns_values_back_the_paged_kernel_rounds_nothing(dtype: str):
    """A width that is no power of two."""
    torch.manual_seed(3)
    layer, rows = filled(dtype, CHUNKS, 2, 80), to_device(make_rows(CHUNKS, 2))
    q = torch.randn(len(rows.positions), 4, 80, device=DEVICE)
    got = attend(q, replace(rows, compute=torch.float16), layer, "triton", 0.125)
    assert got.dtype == (torch.float32 if layer.value.changes else torch.float16)
    assert relative(got, attend(q, rows, layer, "reference", 0.125)) < 3e-3


def test_short_chunks_deterministic_ones_and_exact_models_go_another_way():
    layer, rows = filled("int8", CHUNKS, 2, 64), with_chunks(CHUNKS, torch.bfloat16)
    q = torch.zeros(len(rows.positions), 4, 64, device=DEVICE)
    assert takes(q, rows, layer, None) == WIDE
    assert not takes(q, replace(rows, invariant=True), layer, None)
    assert not takes(q, replace(rows, compute=torch.float32), layer, None)
    assert not takes(q, replace(rows, max_query=63), layer, None)
    assert not takes(q, replace(rows, chunks=None), layer, None)


@pytest.mark.skipif(not WIDE, reason="torch's flash attention needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("chunks", [CHUNKS, [*MIXED[:1], (300, 1000), (65, 65)], [(300, 300), (200, 901)]])
def test_the_dense_way_gives_what_the_reference_gives(dtype: str, window: int | None, chunks: list[tuple[int, int]]):
    torch.manual_seed(5)
    layer, rows = filled(dtype, chunks, 2, 128), with_chunks(chunks, torch.bfloat16)
    q = torch.randn(len(rows.positions), 8, 128, device=DEVICE)
    assert takes(q, rows, layer, None)
    want = attend(q, rows, layer, "reference", 128**-0.5, window)
    got = attend(q, rows, layer, "triton", 128**-0.5, window)
    assert got.isfinite().all() and relative(got, want) < 6e-3


IN_PLACE = FlashCut(64, 64, 4, 2, overlapped=True)


def test_which_pages_need_no_decoding():
    def reads(dtype: str, compute: torch.dtype = torch.bfloat16, cut: FlashCut | None = IN_PLACE) -> bool:
        return reads_pages(replace(rows, compute=compute), filled(dtype, [(1, 5)], 2, 128), cut)

    rows = with_chunks([(1, 5)], torch.bfloat16)
    assert reads("bf16") and reads("fp16", torch.float16)
    assert not reads("fp16") and not reads("bf16", torch.float16) and not reads("fp32")
    assert not any(reads(dtype) for dtype in ("int8", "fp8", "int8,int4"))
    assert not reads("bf16", cut=None) and not reads("bf16", cut=FlashCut(64, 64, 4, 3))
    assert not reads("bf16", cut=replace(IN_PLACE, keys=128))
    turned = replace(filled("bf16", [(1, 5)], 2, 128), value=SideTransform(rotated=True))
    assert not reads_pages(rows, turned, IN_PLACE)
    assert reads_pages(rows, replace(turned, key=turned.value, value=SideTransform(rotated=False)), IN_PLACE)


@pytest.mark.skipif(not GLUON, reason="written for Hopper GPUs and one version of Triton, and not interpreted")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("window", [None, 50, 700])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("chunks", [CHUNKS, [(1, 9), (300, 1000), (64, 64), (65, 65)], [(300, 300), (200, 19_901)]])
def test_pages_are_read_as_they_lie(dtype: str, window: int | None, stages: int, chunks: list[tuple[int, int]]):
    """Contexts may be longer than what would be decoded at once."""
    torch.manual_seed(5)
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    layer, rows = filled(dtype, chunks, 2, 128), with_chunks(chunks, compute)
    q = torch.randn(len(rows.positions), 8, 128, device=DEVICE)
    assert takes(q, rows, layer, None) and rows.chunks is not None
    want = attend(q, rows, layer, "reference", 128**-0.5, window)[rows.singles :]
    out = torch.full((rows.chunks.tokens, 8, 128), float("nan"), dtype=compute, device=DEVICE)
    cut = replace(IN_PLACE, stages=stages)
    flash_pages(q[rows.singles :], rows, layer, out, 128**-0.5, window, cut)
    assert out.isfinite().all() and relative(out, want) < 6e-3
