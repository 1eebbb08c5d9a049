"""Clip counters against a count by hand."""

import torch

from octavo.kv.clips import ClipMeter
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan, uniform_plan
from octavo.kv.pool import PagePool
from octavo.kv.schemes import SCHEMES
from octavo.kv.transform import PLAIN


def test_numbers_at_the_end_of_the_range_are_counted():
    static = SidePlan(SCHEMES["int8-static"], False, fitted=("static",))
    plan = KVPlan("test", (LayerPlan(static, SidePlan(SCHEMES["bf16"], False)), LayerPlan(static, static)))
    pool = PagePool(plan, plan.layouts(2, 8), 3, "cpu", fill=0, transforms=[(PLAIN, PLAIN)] * 2)
    pages = [layer.plane(layer.layout.key_slots[0]) for layer in pool.layers]
    pages[0][1, 0, 5, :3] = torch.tensor([127, -127, 126], dtype=torch.int8)
    pages[0][2, 1, 0, :] = 127  # in a slot that no step below stores
    pages[1][0, 1, 63, 7] = -127
    meter = ClipMeter(pool, every=2)
    assert meter.needed
    slots = torch.tensor([64 + 5, 63])
    meter.watch(slots, prompt=True)
    counts = {(count.layer, count.side): (count.clipped, count.numbers) for count in meter.report()}
    assert counts == {(0, "k"): (2, 32), (1, "k"): (1, 32), (1, "v"): (0, 32)}
    meter.watch(slots[:1], prompt=False)  # the second step: looked at
    meter.watch(slots[:1], prompt=False)  # the third: not
    assert [(count.clipped, count.numbers) for count in meter.report()] == [(4, 48), (1, 48), (0, 48)]


def test_without_static_scales_there_is_nothing_to_count():
    plan = uniform_plan("int8", 2, 8)
    assert not ClipMeter(PagePool(plan, plan.layouts(2, 8), 1, "cpu")).needed
