"""CPU kernels with a matrix, and a constant, of each KV head's own: against the reference, and against no cache at all.

T tokens · H query heads · G kv heads · D head width
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.kernels.attention import attend
from octavo.kernels.store import store
from octavo.kernels.store.reference import apply_rope
from octavo.kv.fit import balanced, rescaled
from octavo.kv.statistics import StaticRule, static_scale
from octavo.kv.transform import SideTransform
from tests.kernels.kernel_cases import fitted, make_rope, make_sequences, random_vectors

CONTEXTS = NEW = (70, 1, 300)
KV_HEADS = 2
NEAR = {"int8": 0.02, "int8-static": 0.04, "int4": 0.25}
"""how far attention through the cache may be from attention without one, by root mean squares"""


def uneven(tokens: int, dim: int, seed: int) -> Tensor:
    """Keys or values with a constant, and with heads that are not alike."""
    heads = torch.arange(1.0, KV_HEADS + 1)[:, None]
    return random_vectors(tokens, KV_HEADS, dim, seed) * heads + heads * torch.arange(dim) / dim


def moment(vectors: Tensor) -> Tensor:
    grouped = vectors.unflatten(1, (KV_HEADS, -1)).double()
    return torch.einsum("tghd,tghe->gde", grouped, grouped) / grouped.shape[0]


def dense(dim: int) -> SideTransform:
    """An invertible matrix for the values of each head."""
    noise = torch.randn(KV_HEADS, dim, dim, generator=torch.Generator().manual_seed(5))
    matrix = torch.eye(dim) + 0.3 * noise * dim**-0.5
    return SideTransform(False, matrix, torch.linalg.inv(matrix.double()).float().contiguous())


def finished(side: SideTransform, seen: Tensor, peak: float | None, constant: bool, keys: bool) -> SideTransform:
    """`side`, with the mean of what was seen taken off if `constant`; in the range of a scheme that ends at `peak`."""
    turned = side.stored(seen)
    if peak is not None:
        rule = StaticRule("head", symmetric=not constant)
        made = rescaled(side, *static_scale(turned.amin(0), turned.amax(0), peak, rule), keys=keys)
    else:
        made = rescaled(side, torch.ones_like(turned[0]), turned.mean(0), keys=keys)
    return made if constant else replace(made, shift=None)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the vectors themselves, fp64."""
    group, parts = q.shape[1] // KV_HEADS, []
    for a, b, c in zip(*(side.double().split(NEW) for side in (q, k, v)), strict=True):
        k_all, v_all = (side.repeat_interleave(group, dim=1) for side in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, k_all) * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[1:]).triu(1).bool()
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v_all))
    return torch.cat(parts).float()


@pytest.mark.parametrize("constant", [False, True], ids=["matrix", "matrix and constant"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("dtype", NEAR)
def test_fitted_transforms(dtype, head_dim, group, constant):
    tokens, rope = sum(NEW), make_rope(max(CONTEXTS), head_dim // 2)
    q, k = random_vectors(tokens, KV_HEADS * group, head_dim, 7) / 8, uneven(tokens, head_dim, 1)
    v = uneven(tokens, head_dim, 2)
    plain = {impl: make_sequences(dtype, CONTEXTS, KV_HEADS, head_dim) for impl in ("cpu", "reference")}
    rows, peak = plain["cpu"].rows(NEW), plain["cpu"].layer.plan.key.scheme.peak
    asks, stays = (apply_rope(side, rope, rows.positions) for side in (q, k))
    key = finished(balanced(moment(stays), moment(asks), 0.001), stays, peak, constant, keys=True)
    value = finished(dense(head_dim), v, peak, constant, keys=False)
    layers = {impl: fitted(sequences, key, value).layer for impl, sequences in plain.items()}

    asked = {impl: store(q, k, v, rope, rows, layer, impl) for impl, layer in layers.items()}
    largest = float(asked["reference"].abs().max())
    torch.testing.assert_close(asked["cpu"], asked["reference"], rtol=2e-5, atol=2e-6 * largest)
    got, want = layers["cpu"], layers["reference"]
    for slot in (*got.layout.key_slots, *got.layout.value_slots):
        equal = (got.plane(slot).view(torch.uint8) == want.plane(slot).view(torch.uint8)).float().mean()
        assert equal >= 0.985, f"{slot.plane.name}: {equal:.5f} equal"

    ours, theirs = (attend(asked["reference"], rows, want, impl, head_dim**-0.5) for impl in ("cpu", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-4)
    true = exact(asks, stays, v)
    off = float((ours - true).square().mean().sqrt() / true.square().mean().sqrt())
    assert off <= NEAR[dtype], f"{off:.4f} from attention without a cache"
