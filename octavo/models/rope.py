"""Rotary tables from a RopeSpec. Formulas: RoPE (Su et al. 2021), linear interpolation (Chen et al. 2023), dynamic
NTK (as in Transformers), llama3 (Llama 3.1's model code), YaRN (Peng et al. 2023)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.base.table import Table
from octavo.kernels.rows import Rope
from octavo.models.spec import RopeSpec

__all__ = ["inverse_frequencies", "rope_tables"]


def _base(spec: RopeSpec, theta: float) -> Tensor:
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    return 1.0 / (theta**exponents)


def _default(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    return _base(spec, spec.theta), 1.0


def _linear(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    return _base(spec, spec.theta) / spec.factor, 1.0


def _dynamic(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    """The base grows with the length. A cache must not change what it stored, so the length is the longest that the
    engine admits, once: sequences within the original length see the unscaled base only if that is all it admits."""
    longest = max(length, spec.original_max_position)
    stretch = spec.factor * longest / spec.original_max_position - (spec.factor - 1)
    return _base(spec, spec.theta * stretch ** (spec.rotary_dim / (spec.rotary_dim - 2))), 1.0


def _llama3(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    frequencies = _base(spec, spec.theta)
    wavelengths = 2 * math.pi / frequencies
    low, high = spec.low_freq_factor, spec.high_freq_factor
    smooth = (spec.original_max_position / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / spec.factor + smooth * frequencies
    scaled = torch.where(wavelengths > spec.original_max_position / low, frequencies / spec.factor, frequencies)
    between = (wavelengths <= spec.original_max_position / low) & (wavelengths >= spec.original_max_position / high)
    return torch.where(between, blended, scaled), 1.0


def _yarn(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    def dimension_of(rotations: float) -> float:
        span = spec.original_max_position / (rotations * 2 * math.pi)
        return spec.rotary_dim * math.log(span) / (2 * math.log(spec.theta))

    low, high = dimension_of(spec.beta_fast), dimension_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    ramp = (torch.arange(spec.rotary_dim // 2).float() - low) / ((high - low) or 0.001)
    extrapolated = 1 - ramp.clamp(0, 1)
    frequencies = _base(spec, spec.theta)
    blended = frequencies / spec.factor * (1 - extrapolated) + frequencies * extrapolated
    return blended, _yarn_attention_factor(spec)


def _yarn_attention_factor(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor

    def temperature(mscale: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * mscale * math.log(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return temperature(spec.mscale) / temperature(spec.mscale_all_dim)
    return temperature(1.0)


_KINDS: Table[Callable[[RopeSpec, int], tuple[Tensor, float]]] = Table(
    "rope scaling",
    {"default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn},
)


def inverse_frequencies(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    """fp32 `[rotary_dim / 2]` and the factor that cos and sin are multiplied by, for sequences of up to `length`."""
    frequencies, attention_factor = _KINDS[spec.kind](spec, length)
    if spec.freq_factors:
        frequencies = frequencies / torch.tensor(spec.freq_factors)
    return frequencies, attention_factor


def rope_tables(spec: RopeSpec, length: int, device: str = "cpu") -> Rope:
    """cos and sin for positions `[0, length)`, fp32 `[length, rotary_dim / 2]`."""
    frequencies, attention_factor = inverse_frequencies(spec, length)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return Rope((angles.cos() * attention_factor).to(device), (angles.sin() * attention_factor).to(device))
