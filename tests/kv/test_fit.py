"""Fitted transforms: exact whatever their numbers; balance is the best there is; static scales hold all that was seen.

T tokens · G kv heads · D head width
"""

import pytest
import torch
from torch import Tensor

from octavo.base.errors import BadValue
from octavo.kv.fit import balanced, rescaled, smoothed
from octavo.kv.statistics import StaticRule, static_scale
from octavo.kv.transform import PLAIN, ROTATION, SideTransform, hadamard

WIDTHS = [16, 64, 80]
PEAK = 127.0


def vectors(tokens: int, heads: int, dim: int, seed: int) -> Tensor:
    """fp32 `[T, G, D]`, correlated, with a constant, and with channels of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(heads, dim, dim, generator=draw) * dim**-0.5
    size = torch.randn(heads, dim, generator=draw).exp()
    white = torch.randn(tokens, heads, dim, generator=draw)
    return torch.einsum("tgd,gde->tge", white, mix) * size + torch.randn(heads, dim, generator=draw)


def moment(heads: int, dim: int, seed: int) -> Tensor:
    """`[G, D, D]` of what is drawn by that seed."""
    drawn = vectors(4 * dim, heads, dim, seed).double()
    return torch.einsum("tgd,tge->gde", drawn, drawn) / len(drawn)


def fitted(heads: int, dim: int) -> dict[str, SideTransform]:
    """Every way to make a transform of keys."""
    keys, queries = moment(heads, dim, 1), moment(heads, dim, 2)
    draw = torch.Generator().manual_seed(3)
    scale, zero = torch.rand(heads, dim, generator=draw) + 0.1, torch.randn(heads, dim, generator=draw)
    made = {
        "balanced": balanced(keys, queries, 0.001),
        "smoothed": smoothed(keys, queries, dim),
        "smoothed, half of it turned by RoPE": smoothed(keys, queries, dim // 2),
    }
    bases = {"plain": PLAIN, "rotation": ROTATION, "balanced": made["balanced"]}
    static = {name: rescaled(base, scale, zero, keys=True) for name, base in bases.items()}
    twice = rescaled(static["balanced"], scale.flip(0), zero.flip(1), keys=True)
    return made | {f"{name}, rescaled": side for name, side in static.items()} | {"rescaled twice": twice}


# exact


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (3, 1), (2, 4)])
def test_what_attention_weighs_does_not_change(dim, kv_heads, group):
    keys, queries = vectors(40, kv_heads, dim, 1), vectors(9, kv_heads * group, dim, 4) / dim**0.5

    def weights(q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("qhd,khd->hqk", q.double(), k.double().repeat_interleave(group, dim=1)).softmax(-1)

    want = weights(queries, keys)
    assert want.amax(-1).mean() < 0.9  # of a score that is all that counts, nothing would show
    for name, side in fitted(kv_heads, dim).items():
        got = weights(side.query(queries), side.stored(keys))
        torch.testing.assert_close(got, want, rtol=3e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (2, 4)])
def test_values_come_back(dim, kv_heads, group):
    values = vectors(40, kv_heads, dim, 1)
    weights = torch.rand(kv_heads * group, 9, 40, generator=torch.Generator().manual_seed(5)).softmax(-1)
    draw = torch.Generator().manual_seed(3)
    scale, zero = torch.rand(kv_heads, dim, generator=draw) + 0.1, torch.randn(kv_heads, dim, generator=draw)

    def mixed(side: Tensor) -> Tensor:
        return torch.einsum("hqk,khd->qhd", weights, side.repeat_interleave(group, dim=1))

    balance = balanced(moment(kv_heads, dim, 1), moment(kv_heads, dim, 2), 0.03)
    assert balance.back is not None
    undone = SideTransform(True, balance.matrix, balance.back.mT.contiguous())  # B of values is A^-1, of keys A^-T
    for base in (PLAIN, ROTATION, undone):
        side = rescaled(base, scale, zero, keys=False)
        torch.testing.assert_close(side.output(mixed(side.stored(values))), mixed(values), rtol=1e-4, atol=1e-4)


# balance


def loss(transform: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """`[G]`: what a quantizer's error costs with keys times `transform` stored (octavo/kv/fit.py)."""
    inverse = torch.linalg.inv(transform)
    stored = (transform.mT @ keys @ transform).diagonal(dim1=-2, dim2=-1).sum(-1)
    return stored * (inverse @ queries @ inverse.mT).diagonal(dim1=-2, dim2=-1).sum(-1)


@pytest.mark.parametrize("dim", WIDTHS)
def test_balance_is_the_least_of_all(dim):
    keys, queries = moment(3, dim, 1), moment(3, dim, 2)
    side = balanced(keys, queries, 0.0)
    assert side.matrix is not None
    best = side.matrix.double()
    least = loss(best, keys, queries)
    # the bound of Cauchy and Schwarz: the square of the trace of (keys queries)^1/2, whose eigenvalues are real
    bound = torch.linalg.eigvals(keys @ queries).real.clamp_min(0).sqrt().sum(-1).square()
    torch.testing.assert_close(least, bound, rtol=1e-4, atol=0)

    smooth = smoothed(keys, queries, dim)
    assert smooth.matrix is not None
    turn = torch.from_numpy(hadamard(dim)).double()
    for other in (torch.eye(dim).double().expand_as(best), turn.expand_as(best), smooth.matrix.double()):
        assert (least < 0.99 * loss(other, keys, queries)).all()
    draw = torch.Generator().manual_seed(dim)
    for size in (0.01, 0.1, 1.0, 10.0):
        nudge = torch.eye(dim) + size * torch.randn(8, 1, dim, dim, generator=draw) * dim**-0.5
        assert (least <= loss(best @ nudge.double(), keys, queries) * (1 + 1e-6)).all(), f"beaten by a nudge of {size}"


@pytest.mark.parametrize("turned", [64, 32])
def test_smoothing_is_the_least_of_its_kind(turned):
    """Of all diagonals that leave the two dimensions of a RoPE pair alike."""
    keys, queries = moment(3, 64, 1), moment(3, 64, 2)
    side = smoothed(keys, queries, turned)
    assert side.matrix is not None
    least = loss(side.matrix.double(), keys, queries)
    draw = torch.Generator().manual_seed(turned)
    for size in (0.01, 0.1, 1.0):
        factors = (size * torch.randn(50, 1, 64, generator=draw)).exp().double()
        factors[..., turned // 2 : turned] = factors[..., : turned // 2]
        others = loss(factors[..., None] * side.matrix.double(), keys, queries)
        assert (least <= others * (1 + 1e-5)).all(), f"beaten by a nudge of {size}"


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_stored_keys_keep_their_mean_square(dim, scale):
    keys, queries = moment(2, dim, 1) * scale, moment(2, dim, 2)
    side = balanced(keys, queries, 0.0)
    assert side.matrix is not None
    stored = side.matrix.double().mT @ keys @ side.matrix.double()
    both = [each.diagonal(dim1=-2, dim2=-1).sum(-1) for each in (stored, keys)]
    torch.testing.assert_close(*both, rtol=1e-5, atol=0)


def test_keys_and_queries_are_stored_with_one_shape():
    keys, queries = moment(2, 64, 1), moment(2, 64, 2)
    side = balanced(keys, queries, 0.0)
    assert side.matrix is not None and side.back is not None
    stored, asked = (a.double().mT @ c @ a.double() for a, c in ((side.matrix, keys), (side.back, queries)))
    ratio = stored.diagonal(dim1=-2, dim2=-1).sum(-1) / asked.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(asked * ratio[:, None, None], stored, rtol=1e-3, atol=1e-3 * float(stored.abs().max()))


HARD = {
    "nothing seen": lambda m: m * 0,
    "one direction": lambda m: torch.ones_like(m),
    "a dead channel": lambda m: m * (torch.arange(m.shape[-1]) != 5) * (torch.arange(m.shape[-1]) != 5)[:, None],
    "tiny": lambda m: m * 1e-20,
    "huge": lambda m: m * 1e20,
    "one channel a million times the rest": lambda m: m + 1e12 * torch.diag(torch.arange(m.shape[-1]) == 3),
    "not quite symmetric": lambda m: m + 1e-5 * torch.randn_like(m).triu(),
    "slightly negative": lambda m: m - 1e-4 * torch.linalg.eigvalsh(m).amin() * torch.eye(m.shape[-1]),
}


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["keys", "queries", "both"])
@pytest.mark.parametrize("spoil", HARD.values(), ids=HARD)
def test_hard_moments_stay_finite_and_exact(spoil, which):
    torch.manual_seed(0)
    given = [moment(2, 64, seed) for seed in (1, 2)]
    keys, queries = (spoil(each) if number in which else each for number, each in enumerate(given))
    for side in (balanced(keys, queries, 0.001), smoothed(keys, queries, 64)):
        assert side.matrix is not None and side.back is not None
        assert side.matrix.isfinite().all() and side.back.isfinite().all()
        rest = side.matrix.double().mT @ side.back.double() - torch.eye(64)
        assert rest.abs().max() < 1e-3


# static scales


@pytest.mark.parametrize("margin", [1.0, 1.5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["layer", "head", "channel"])
@pytest.mark.parametrize("base", [PLAIN, ROTATION], ids=["plain", "rotation"])
def test_all_that_was_seen_fits(base, granularity, symmetric, margin):
    seen = vectors(200, 3, 80, 1) + 2  # off the middle, so that symmetric ranges waste some
    turned = base.stored(seen)
    scale, zero = static_scale(turned.amin(0), turned.amax(0), PEAK, StaticRule(granularity, symmetric, margin))
    counts = {"layer": (1, 1), "head": (3, 1), "channel": (240, 80)}
    assert (len(scale.unique()), len(scale[0].unique())) == counts[granularity]
    assert symmetric == (not zero.any())
    for keys in (True, False):
        stored = rescaled(base, scale, zero, keys=keys).stored(seen)
        torch.testing.assert_close(stored, (turned - zero) / scale, rtol=1e-4, atol=1e-3)
        reached = stored.abs().amax() * margin / PEAK
        assert 0.9999 < reached < 1.0001, f"the largest stored number is {float(reached):.5f} of what is allowed"


@pytest.mark.parametrize("keys", [True, False])
def test_a_scale_on_top_of_a_scale(keys):
    """Stored is (what was stored before - zero) / scale, whatever that was."""
    seen, draw = vectors(50, 2, 16, 1), torch.Generator().manual_seed(3)
    side = ROTATION
    for _ in range(3):
        scale, zero = torch.rand(2, 16, generator=draw) + 0.5, torch.randn(2, 16, generator=draw)
        before, side = side.stored(seen), rescaled(side, scale, zero, keys=keys)
        torch.testing.assert_close(side.stored(seen), (before - zero) / scale, rtol=1e-4, atol=1e-4)


def test_one_constant_channel_has_a_scale():
    low = torch.tensor([[-1.0, 0.0, 3.0]])
    for symmetric in (True, False):
        scale, zero = static_scale(low, low, PEAK, StaticRule("channel", symmetric))
        assert (scale > 0).all() and ((low - zero) / scale).abs().le(PEAK * 1.0001).all()


@pytest.mark.parametrize(("granularity", "margin"), [("token", 1.0), ("", 1.0), ("head", 0.0), ("head", 17.0)])
def test_rules_that_cannot_be(granularity, margin):
    with pytest.raises(BadValue, match=r"granularity: |margin: "):
        StaticRule(granularity, True, margin)
    with pytest.raises(BadValue, match="margin: nan"):
        StaticRule(margin=float("nan"))
