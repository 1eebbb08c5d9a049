"""Moments guessed from the weights alone, against keys and queries of random hidden states."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.calibrate.forward import project
from octavo.kernels.store.reference import apply_rope
from octavo.models.moments import rope_average, weight_moments
from octavo.models.rope import rope_tables
from octavo.models.spec import RopeSpec
from tests.calibrate.random_decoder import SPEC, random_decoder

POSITIONS = 1024  # what the guess averages over
HALF_TURNED = {"rope": RopeSpec(rotary_dim=8)}
YARN = {"rope": RopeSpec(kind="yarn", rotary_dim=16, factor=4.0, original_max_position=256)}
MODELS = {
    "plain": {},
    "one head each": {"kv_heads": 4},
    "wide heads": {"head_dim": 80, "heads": 2, "kv_heads": 1, "rope": RopeSpec(rotary_dim=80)},
    "half of a head turned": HALF_TURNED,
    "a quarter of a head left": {"rope": RopeSpec(rotary_dim=12)},
    "yarn": YARN,
    "bias": {"qkv_bias": True},
    "bias, half turned": {"qkv_bias": True} | HALF_TURNED,
    "norms": {"qk_norm": True, "width": 192},
    "norms and bias": {"qk_norm": True, "qkv_bias": True, "width": 192},
}


def off(got: Tensor, want: Tensor) -> float:
    """How far the worst head's matrix is from what it should be, by its size."""
    return float(((got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)).max())


def sampled(switches: dict, layer: int, biased: bool, windows: int = 24) -> tuple[Tensor, Tensor]:
    """Moments of keys and queries of the model itself, for hidden states of independent normal numbers."""
    model, _ = random_decoder(POSITIONS, **switches)
    draw = torch.Generator().manual_seed(1)
    keys, queries = torch.tensor(0.0), torch.tensor(0.0)
    for _ in range(windows):
        found = project(model, layer, torch.randn(POSITIONS, model.spec.width, generator=draw))
        k, q = found.k if biased else found.k_free, found.q.unflatten(1, (model.spec.kv_heads, -1))
        keys = keys + torch.einsum("tgd,tge->gde", k, k) / (POSITIONS * windows)
        queries = queries + torch.einsum("tghd,tghe->gde", q, q) / (POSITIONS * windows * q.shape[2])
    return keys.double(), queries.double()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("switches", MODELS.values(), ids=MODELS)
def test_they_are_those_of_white_hidden_states(switches, layer):
    model, load = random_decoder(POSITIONS, **switches)
    for biased in (True, False) if model.spec.has_key_bias else (True,):
        got = weight_moments(model.spec, layer, load, model.rope, biased)
        want = sampled(switches, layer, biased)
        for name, guess, truth in zip(("keys", "queries"), got, want, strict=True):
            assert guess.shape == (model.spec.kv_heads, model.spec.head_dim, model.spec.head_dim)
            assert off(guess, truth) < 0.06, f"{name}, with bias {biased}: off by {off(guess, truth):.3f}"


@pytest.mark.parametrize("switches", MODELS.values(), ids=MODELS)
def test_they_are_moments(switches):
    model, load = random_decoder(POSITIONS, **switches)
    for moment in weight_moments(model.spec, 0, load, model.rope, True):
        assert moment.dtype == torch.float64
        torch.testing.assert_close(moment, moment.mT, rtol=0, atol=1e-12 * float(moment.abs().max()))
        values = torch.linalg.eigvalsh(moment)
        assert (values.amin(-1) >= -1e-12 * values.amax(-1)).all()


def test_without_rope_there_is_no_average():
    spec, (_, load) = replace(SPEC, qkv_bias=True), random_decoder(16, qkv_bias=True)
    keys, _ = weight_moments(spec, 0, load, None, True)
    free, _ = weight_moments(spec, 0, load, None, False)
    bias = load("model.layers.0.self_attn.k_proj.bias").double().view(spec.kv_heads, -1)
    torch.testing.assert_close(keys - free, bias[:, :, None] * bias[:, None, :])
    weight = load("model.layers.0.self_attn.k_proj.weight") * load("model.layers.0.input_layernorm.weight")
    heads = weight.double().view(spec.kv_heads, spec.head_dim, spec.width)
    torch.testing.assert_close(free, heads @ heads.mT)


@pytest.mark.parametrize(("dim", "turned"), [(16, 16), (16, 8), (20, 12), (8, 2)])
def test_the_average_over_positions(dim, turned):
    """One vector at each position, one position after the other."""
    rope = rope_tables(RopeSpec(rotary_dim=turned), 3 * POSITIONS)
    vector = torch.randn(2, dim, generator=torch.Generator().manual_seed(2))
    moved = apply_rope(vector.expand(POSITIONS, 2, dim), rope, torch.arange(POSITIONS)).double()
    want = torch.einsum("tgd,tge->gde", moved, moved) / POSITIONS
    got = rope_average(vector.double()[:, :, None] * vector.double()[:, None, :], rope)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    left = slice(turned, dim)  # what RoPE leaves alone stays as it was
    torch.testing.assert_close(got[:, left, left], vector.double()[:, left, None] * vector.double()[:, None, left])
