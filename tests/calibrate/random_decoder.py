"""A small decoder of random weights in memory: a spec with switches, and the weights it implies."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.models.dense import DenseDecoder
from octavo.models.families import weight_shapes
from octavo.models.spec import ModelSpec, RopeSpec

SPEC = ModelSpec(
    family="llama", layers=2, width=48, mlp_width=64, heads=4, kv_heads=2, head_dim=16, vocab_size=64,
    max_position=2048, rope=RopeSpec(rotary_dim=16),
)  # fmt: skip


def random_weights(spec: ModelSpec, seed: int = 0) -> Callable[[str], Tensor]:
    """Norms about 1, biases of three times what the projections bring, matrices that keep sizes."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in weight_shapes(spec).items():
        numbers = torch.randn(shape, generator=draw)
        if "norm" in name:
            made[name] = 1 + 0.3 * numbers
        else:
            made[name] = 3 * numbers if name.endswith("bias") else 2 * numbers / math.sqrt(shape[-1])
    return made.__getitem__


def random_decoder(positions: int, **switches: Any) -> tuple[DenseDecoder, Callable[[str], Tensor]]:
    """A decoder with room for `positions`, and its weights by name."""
    spec = replace(SPEC, **switches)
    load = random_weights(spec)
    return DenseDecoder(spec, load, positions, "cpu"), load
