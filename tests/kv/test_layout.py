"""Pages in bytes: planes are disjoint, aligned, in the drawn order, and the pool's views agree with them."""

from itertools import product

import pytest
import torch

from octavo.kv.layout import PageLayout
from octavo.kv.plan import uniform_plan
from octavo.kv.pool import PagePool
from octavo.kv.scheme import ITEM_BYTES
from octavo.kv.schemes import SCHEMES

PAIRS = list(product(SCHEMES.values(), SCHEMES.values()))
GEOMETRIES = [(1, 8, 64), (3, 64, 64), (2, 80, 64), (8, 96, 16), (4, 128, 64), (1, 256, 1), (2, 112, 7)]


@pytest.mark.parametrize(("key", "value"), PAIRS, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(("kv_heads", "head_dim", "page_tokens"), GEOMETRIES)
def test_planes_are_disjoint_and_aligned(key, value, kv_heads, head_dim, page_tokens):
    layout = PageLayout(key, value, kv_heads, head_dim, page_tokens)
    slots = [*layout.key_slots, *layout.value_slots]
    assert [slot.plane for slot in layout.key_slots] == list(key.planes)
    assert [slot.plane for slot in layout.value_slots] == list(value.planes)
    end = 0
    for slot in sorted(slots, key=lambda slot: slot.offset):
        plane_bytes = page_tokens * slot.row_bytes
        assert slot.row_bytes == slot.plane.row_bytes(head_dim)
        assert slot.offset >= end, f"{slot.plane.name} begins inside the plane before it"
        assert slot.offset % (128 if plane_bytes >= 128 else 16) == 0
        assert slot.offset % ITEM_BYTES[slot.plane.dtype] == 0
        end = slot.offset + plane_bytes
    assert end <= layout.head_bytes < end + 128
    assert layout.head_bytes % 128 == 0
    assert layout.page_bytes == kv_heads * layout.head_bytes


def test_order_is_data_then_metadata():
    layout = PageLayout(SCHEMES["int8"], SCHEMES["int4"], kv_heads=2, head_dim=128)
    (k_codes, k_scale, k_mid), (v_codes, v_scale, v_mid) = layout.key_slots, layout.value_slots
    assert [s.offset for s in (k_codes, v_codes, k_scale, k_mid, v_scale, v_mid)] == [
        0, 64 * 128, 64 * 192, 64 * 192 + 128, 64 * 192 + 256, 64 * 192 + 384,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "low_mib", "high_mib"),
    [("bf16", 1024, 1024), ("fp16", 1024, 1024), ("fp8", 512, 512), ("int8", 520, 528), ("int8,int4", 390, 400),
     ("int4", 272, 300), ("fp32", 2048, 2048)],
)  # fmt: skip
def test_llama_7b_at_2048_tokens(dtype, low_mib, high_mib):
    layouts = uniform_plan(dtype, layers=32, head_dim=128).layouts(kv_heads=32, head_dim=128)
    mib = 2048 // 64 * sum(layout.page_bytes for layout in layouts) / 2**20
    assert low_mib <= mib <= high_mib


@pytest.mark.parametrize(("key", "value"), PAIRS, ids=lambda scheme: scheme.name)
def test_pool_views_hold_what_is_written(key, value):
    """Every plane of every page, written through its view, is read back: no two views share a byte."""
    kv_heads, head_dim, page_tokens, num_pages = 3, 80, 16, 4
    plan = uniform_plan(f"{key.name},{value.name}", layers=2, head_dim=head_dim)
    pool = PagePool(plan, plan.layouts(kv_heads, head_dim, page_tokens), num_pages, "cpu", fill=0xFF)
    draw = torch.Generator().manual_seed(0)
    written = []
    for layer in pool.layers:
        for scheme, slots in ((key, layer.layout.key_slots), (value, layer.layout.value_slots)):
            vectors = torch.randn(num_pages, kv_heads, page_tokens, head_dim, generator=draw)
            for slot, encoded in zip(slots, scheme.encode(vectors), strict=True):
                layer.plane(slot).copy_(encoded)
                written.append((layer, slot, encoded))
    for layer, slot, encoded in written:
        assert torch.equal(layer.plane(slot), encoded), f"{slot.plane.name} was overwritten"


def test_pool_allocates_what_the_layout_says():
    plan = uniform_plan("int8,int4", layers=3, head_dim=64)
    layouts = plan.layouts(kv_heads=5, head_dim=64)
    pool = PagePool(plan, layouts, num_pages=7, device="cpu")
    assert pool.allocated_bytes == 7 * sum(layout.page_bytes for layout in layouts)


def test_fresh_pages_can_be_poisoned():
    plan = uniform_plan("bf16", layers=1, head_dim=64)
    pool = PagePool(plan, plan.layouts(kv_heads=1, head_dim=64), num_pages=2, device="cpu", fill=0xFF)
    assert pool.layers[0].plane(pool.layouts[0].key_slots[0]).isnan().all()
