"""Store by matrices in Triton against the reference: fitted transforms, and rotations of widths other than 2^n.

As test_triton_kernels.py says, on a CPU these run only under TRITON_INTERPRET=1.
"""

import pytest

pytest.importorskip("triton")

from dataclasses import replace

import torch
from test_triton_kernels import DEVICE, DTYPES, WIDE, make_pool, make_rows, pytestmark, relative, to_device

from octavo.kernels.rows import Rope
from octavo.kernels.store import store
from octavo.kernels.store.triton import MatrixCut
from octavo.kernels.store.triton import store as launch_store
from octavo.kernels.store.triton_matrix import store_matrix_kernel
from octavo.kv.fit import balanced, rescaled
from octavo.kv.plan import SidePlan
from octavo.kv.pool import LayerPages
from octavo.kv.transform import ROTATION, SideTransform

__all__ = ["pytestmark"]

CHUNKS = [(3, 70), (1, 1), (2, 65), (14, 14)]
TOKENS, LOST = 20, 1  # the token without a slot
CUTS = [MatrixCut(16, 32, 4), MatrixCut(64, 16, 4)]
if WIDE:
    CUTS += [MatrixCut(16, 32, 8), MatrixCut(64, 32, 4), MatrixCut(128, 16, 8), MatrixCut(64, 32, 8, "tf32x3")]


def fitted_keys(kv_heads: int, dim: int, constant: bool) -> SideTransform:
    moments = torch.randn(2, kv_heads, 4 * dim, dim, device=DEVICE) * (1 + torch.arange(dim, device=DEVICE) % 5)
    side = balanced(*(moment.mT @ moment / dim for moment in moments), 0.01)
    zero = torch.randn(kv_heads, dim, device=DEVICE)
    return rescaled(side, torch.full_like(zero, 1 / 3), zero, keys=True) if constant else side


def fitted_values(kv_heads: int, dim: int) -> SideTransform:
    matrix = torch.eye(dim, device=DEVICE) + 0.3 * torch.randn(kv_heads, dim, dim, device=DEVICE) * dim**-0.5
    back = torch.linalg.inv(matrix.double()).float().contiguous()
    return SideTransform(False, matrix, back, torch.randn(kv_heads, dim, device=DEVICE))


def with_sides(layer: LayerPages, key: SideTransform | None, value: SideTransform | None) -> LayerPages:
    return replace(layer, key=key or layer.key, value=value or layer.value)


def check(
    layer: LayerPages, group: int, rope_width: int | None, cut: MatrixCut | None = None, dtype=torch.bfloat16,
    bad: bool = False,
):  # fmt: skip
    """q, k and v are slices of one fused output; pages and outputs are NaN wherever nothing was written."""
    dim, kv_heads = layer.layout.head_dim, layer.layout.kv_heads
    rows = to_device(make_rows(CHUNKS, 2))
    rows.slots[LOST] = -1
    angles = torch.rand(80, rope_width or 1, device=DEVICE) * 6
    rope = None if rope_width is None else Rope(angles.cos().contiguous(), angles.sin().contiguous())
    counts = [kv_heads * group, kv_heads, kv_heads]
    fused = torch.randn(TOKENS, sum(counts) * dim, device=DEVICE).to(dtype)
    if bad:
        fused[4, ::7] = float("nan")
    q, k, v = (part.unflatten(1, (-1, dim)) for part in fused.split([count * dim for count in counts], dim=1))
    if not bad:
        v[0, 0] = 2.5  # a constant vector
    layers = [replace(layer, pages=layer.pages.clone()) for _ in range(2)]
    before = torch.full((TOKENS, counts[0], dim), float("nan"), device=DEVICE)
    del before  # leaves NaN in the allocator's next block of this size
    got = launch_store(q, k, v, rope, rows, layers[0], cut)
    want = store(q, k, v, rope, rows, layers[1], "reference")
    fine = torch.arange(TOKENS, device=DEVICE) != (4 if bad else -1)
    assert relative(got[fine], want[fine]) < 3e-6  # tensor cores add up with less care than an fp32 product
    assert not bad or got[4].isnan().all()
    for side, slots in (("key", layer.layout.key_slots), ("value", layer.layout.value_slots)):
        check_side(getattr(layer.plan, side), [tuple(one.plane(slot) for slot in slots) for one in layers], rows, fine)


def check_side(plan: SidePlan, planes: list[tuple[torch.Tensor, ...]], rows, fine: torch.Tensor) -> None:
    written = rows.slots[(rows.slots >= 0) & fine]
    page, offset = written // 64, written % 64
    untouched = torch.ones(planes[0][0].shape[0], 64, dtype=torch.bool, device=DEVICE)
    untouched[rows.slots[rows.slots >= 0] // 64, rows.slots[rows.slots >= 0] % 64] = False
    for plane in planes[0]:
        assert (plane.contiguous().view(torch.uint8).movedim(1, 2)[untouched] == 0xFF).all()
    if not WIDE and plan.scheme.name in ("bf16", "fp8"):
        return  # the interpreter's casts to these two do not round to nearest
    ours, theirs = (plan.scheme.decode(tuple(plane[page, :, offset] for plane in each)) for each in planes)
    apart = (ours - theirs).abs() > 1e-4 + 2e-3 * theirs.abs()  # a code that fell to the other side of a tie
    assert apart.float().mean().item() < 5e-3
    step = 2 * plan.scheme.tolerance.of_range * (theirs.amax(-1, keepdim=True) - theirs.amin(-1, keepdim=True))
    assert ((ours - theirs).abs() <= 1.1 * step + theirs.abs() * 0.13 + 1e-5).all()


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_balanced_keys(dtype: str, head_dim: int, group: int):
    torch.manual_seed(5)
    layer = make_pool(dtype, CHUNKS, 2, head_dim)
    check(with_sides(layer, fitted_keys(2, head_dim, constant=group == 3), None), group, head_dim // 2)


@pytest.mark.parametrize("fitted", ["key", "value", "both"])
@pytest.mark.parametrize("dtype", [*DTYPES, "int8-static"])
def test_schemes(dtype: str, fitted: str):
    torch.manual_seed(6)
    layer = make_pool(dtype, CHUNKS, 2, 64)
    key, value = fitted_keys(2, 64, constant=True), fitted_values(2, 64)
    if dtype == "int8-static":
        tenth = torch.full((2, 64), 0.1, device=DEVICE)  # 127 of them are about the largest there is
        key, value = rescaled(key, 3 * tenth, 0 * tenth, keys=True), rescaled(value, tenth, 0 * tenth, keys=False)
    check(with_sides(layer, None if fitted == "value" else key, None if fitted == "key" else value), 2, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [80, 96, 46])
@pytest.mark.parametrize("pair", ["int8", "int4", "int8,int4", "fp16,int8"])
def test_rotations_that_are_no_butterflies(pair: str, head_dim: int, dtype: torch.dtype):
    torch.manual_seed(7)
    layer = make_pool(pair, CHUNKS, 2, head_dim)
    assert layer.value == ROTATION
    check(layer, 3, head_dim // 2, dtype=dtype)


@pytest.mark.parametrize("rope_width", [None, 24, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_positions_in_a_part_of_the_width_or_nowhere(dtype: torch.dtype, rope_width: int | None):
    torch.manual_seed(8)
    layer = make_pool("int8", CHUNKS, 2, 96)
    check(with_sides(layer, fitted_keys(2, 96, constant=False), None), 1, rope_width, dtype=dtype)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("head_dim", [128, 256])
def test_cuts(head_dim: int, cut: MatrixCut):
    torch.manual_seed(9)
    layer = make_pool("int4", CHUNKS, 2, head_dim)
    check(with_sides(layer, fitted_keys(2, head_dim, constant=True), None), 3, head_dim // 2, cut, torch.float16)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_a_token_that_is_not_a_number_stays_alone(head_dim: int):
    torch.manual_seed(10)
    layer = make_pool("int8", CHUNKS, 2, head_dim)
    check(with_sides(layer, fitted_keys(2, head_dim, constant=True), None), 2, head_dim // 2, bad=True)


@pytest.mark.skipif(not WIDE, reason="only a GPU compiles")
def test_nothing_compiles_for_a_number_of_tokens():
    layer = make_pool("int4", [(1, 2048)], 2, 128)
    layer = with_sides(layer, fitted_keys(2, 128, constant=False), None)
    counts = []
    for tokens in (1, 2, 16, 32, 33, 64, 1000, 2048):
        rows = to_device(make_rows([(tokens, tokens)], 0))
        q, k, v = (torch.randn(tokens, 2, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
        launch_store(q, k, v, None, rows, layer)
        counts.append(sum(len(cache[0]) for cache in store_matrix_kernel.device_caches.values()))
    assert counts[-1] <= counts[0] + 1  # few tokens, and many
