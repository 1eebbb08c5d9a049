"""Attention whose pages come through shared memory, against the reference, on a Hopper GPU: it is not interpreted."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.attention import attend
from octavo.kernels.attention.tiling import StagedTiling, Tiling
from octavo.kernels.attention.triton import _parts, _tiling
from octavo.kernels.attention.triton import attend as launch
from octavo.kernels.rows import Rope, ScoreCorrection
from octavo.kernels.store import store
from octavo.kv.pool import LayerPages
from tests.kernels.test_triton_kernels import DEVICE, MIXED, filled, make_rows, relative, to_device

HOPPER = DEVICE == "cuda" and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not HOPPER, reason="written for Hopper GPUs, and not interpreted")
STAGED = ["int8", "int4", "int8,int4", "int4,int8", "bf16", "fp16"]
CHUNKS = {
    "decode": [(1, 1), (1, 64), (1, 65), (1, 700), (1, 2000)],
    "several": [(2, 2), (1, 130), (2, 65), (0, 5)],
    "mixed": [*MIXED],
    "long": [(1, 9000), (1, 70), (1, 20000)],
}


def check(dtype: str, chunks: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int, shares: int, **more):
    torch.manual_seed(11)
    layer, rows = filled(dtype, chunks, kv_heads, head_dim), to_device(make_rows(chunks, 2))
    q = torch.randn(len(rows.positions), heads, head_dim, device=DEVICE) * 2
    window = more.pop("window", None)
    want = attend(q, rows, layer, "reference", head_dim**-0.5, window)
    for compute in (None, torch.bfloat16):
        for _ in range(2):  # the second finds the counters as the first left them
            tiling = StagedTiling.of(shares, places=more.get("places", 0), stages=more.get("stages", 1))
            got = launch(q, replace(rows, compute=compute), layer, head_dim**-0.5, window, None, tiling)
            assert got.isfinite().all()
            assert relative(got, want) < 3e-3


@pytest.mark.parametrize("shares", [0, 1, 3, 5, 64, 200])
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", STAGED)
def test_staged(dtype: str, head_dim: int, kind: str, shares: int):
    check(dtype, CHUNKS[kind], 8, 2, head_dim, shares)


@pytest.mark.parametrize("group", [1, 3, 5, 8])
@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
def test_groups(dtype: str, group: int):
    check(dtype, CHUNKS["decode"], 2 * group, 2, 128, 4)


@pytest.mark.parametrize("window", [1, 50, 700])
@pytest.mark.parametrize("shares", [0, 4, 30])
@pytest.mark.parametrize("dtype", ["int8", "int4", "fp16"])
def test_windows(dtype: str, shares: int, window: int):
    check(dtype, CHUNKS["decode"], 4, 2, 128, shares, window=window)
    check(dtype, CHUNKS["several"], 4, 2, 128, shares, window=window)
    check(dtype, [(2, 9000), (1, 70), (4, 20000)], 4, 2, 128, 8 * shares, window=10 * window)


@pytest.mark.parametrize("shares", [7, 100, 132, 400, 1000])
@pytest.mark.parametrize("contexts", ["many", "alike", "tiny"])
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_shares_of_many_contexts(dtype: str, contexts: str, shares: int):
    """More contexts than a program looks at at once; a run of pages holds many of them, or the other way round."""
    lengths = {"many": [1 + 37 * number % 1500 for number in range(300)], "alike": [1280] * 40, "tiny": [5, 1] * 80}
    check(dtype, [(1, length) for length in lengths[contexts]], 4, 1, 128, shares)


@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
def test_two_stages(dtype: str):
    check(dtype, CHUNKS["decode"], 8, 2, 128, 0, stages=2)
    check(dtype, CHUNKS["mixed"], 8, 2, 128, 5, stages=2)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("dtype", "places"), [("int8", 4), ("int8", 10), ("int4,int8", 4), ("int4", 8), ("bf16", 2)])
@pytest.mark.parametrize("shares", [0, 5])
def test_places(monkeypatch, dtype: str, places: int, head_dim: int, shares: int):
    """As many programs as there are places for find room on a multiprocessor, and no more."""
    check(dtype, CHUNKS["decode"], 8, 2, head_dim, shares, places=places)
    taken = []

    def compiled(kernel, grid, *args, **kwargs):
        taken.append(kernel.run(*args, grid=grid, warmup=True, **kwargs).metadata.shared + 1024)

    monkeypatch.setattr("octavo.kernels.attention.triton.launch", compiled)
    layer, rows = filled(dtype, [(1, 70)], 2, head_dim), to_device(make_rows([(1, 70)], 2))
    q = torch.randn(1, 8, head_dim, device=DEVICE)
    launch(q, rows, layer, head_dim**-0.5, None, None, StagedTiling.of(shares, places=places))
    there = torch.cuda.get_device_properties(0).shared_memory_per_multiprocessor
    assert [there // each for each in taken] == [places]


@pytest.mark.parametrize("shares", [0, 3])
def test_static_scales(shares: int):
    """Codes without scales: what lies behind a context is a code, too, and must not count."""
    check("int8-static", CHUNKS["decode"], 8, 2, 128, shares)


@pytest.mark.parametrize("cut", [None, StagedTiling.of(0, early=True), StagedTiling.of(0, early=True, places=4)])
@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
@pytest.mark.parametrize("kv_heads", [2, 32])
def test_it_begins_before_the_store_has_ended(dtype: str, kv_heads: int, cut: StagedTiling | None):
    """Store and attention as launches of one graph, each set up while the one before it runs: what a step stored is
    read, at the beginning of a page, within it and at its end."""
    torch.manual_seed(1)
    chunks = [(1, context) for context in (1, 64, 65, 128, 200, 1000, 1025, 1919)]
    chunks += [(3, 130), (4, 1025)]  # over the end of a page, which is fresh as well
    layer = filled(dtype, chunks, kv_heads, 128)
    rows = replace(to_device(make_rows(chunks, 2)), compute=torch.bfloat16)
    counts = 2 * kv_heads, kv_heads, kv_heads
    tokens = len(rows.positions)
    q, k, v = (torch.randn(tokens, count, 128, device=DEVICE, dtype=torch.bfloat16) for count in counts)

    def step() -> list[torch.Tensor]:
        several = []
        for scale in (1.0, -2.0, 0.5, 3.0):  # each overwrites what the one before stored
            turned = store(q * scale, k * scale, v * scale, None, rows, layer, "triton")
            several.append(launch(turned, rows, layer, 128**-0.5, None, None, cut))
        return several

    def slowly() -> list[torch.Tensor]:
        several = []
        for scale in (1.0, -2.0, 0.5, 3.0):
            turned = store(q * scale, k * scale, v * scale, None, rows, layer, "triton")
            torch.cuda.synchronize()
            several.append(launch(turned, rows, layer, 128**-0.5, None, None, cut))
            torch.cuda.synchronize()
        return several

    want = slowly()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            got = step()
    for _ in range(20):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


def chosen(layer: LayerPages, sequences: int, correction: ScoreCorrection | None = None, new: int = 1) -> Tiling:
    rows = to_device(make_rows([(new, 64)] * sequences, 2))
    q = torch.randn(new * sequences, 4 * layer.layout.kv_heads, layer.layout.head_dim, device=DEVICE)
    return _tiling(q, rows, _parts(rows)[0], layer, correction)


@pytest.mark.parametrize("dtype", ["int8", "int4", "int8,int4", "bf16"])
def test_it_is_what_runs(dtype: str):
    """Whatever the batch, for codes and for 16 bits, up to 8 rows a KV head."""
    layer = filled(dtype, [(1, 64)], 8, 128)
    assert all(isinstance(chosen(layer, sequences), StagedTiling) for sequences in (1, 32, 64, 128, 300, 500))
    assert isinstance(chosen(layer, 4, new=2), StagedTiling)
    assert not isinstance(chosen(layer, 4, new=3), StagedTiling)


def test_what_the_other_kernel_takes():
    assert not isinstance(chosen(filled("fp8", [(1, 64)], 8, 128), 4), StagedTiling)
    assert not isinstance(chosen(filled("int8", [(1, 64)], 8, 96), 4), StagedTiling)
    angles = torch.zeros(64, 64, device=DEVICE)
    correction = ScoreCorrection(angles, angles, Rope(angles, angles))
    assert not isinstance(chosen(filled("int8", [(1, 64)], 8, 128), 4, correction), StagedTiling)
