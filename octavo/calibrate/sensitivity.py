"""What storing one layer's keys, or its values, in a scheme does to the model's predictions; and a whole plan.

Measured, not guessed: for each window, the hidden states of every layer are kept; one side of one layer is encoded and
decoded, and the layers from there on run again. The divergence is KL(exact || changed), in nats, over all positions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.calibrate.cache_plan import Transforms
from octavo.calibrate.divergence import Divergence, measure
from octavo.calibrate.forward import Vectors, attention_output, embed, finish, layer_step, project
from octavo.kv.plan import KVPlan, SidePlan
from octavo.kv.transform import SideTransform
from octavo.models.dense import DenseDecoder

__all__ = ["exact_log_probabilities", "measure_plan", "measure_sensitivity", "stored_keys", "stored_values"]

Uniform = Mapping[str, tuple[KVPlan, Transforms]]
"""scheme -> the plan that stores all layers in it, and its transforms"""


def stored_keys(vectors: Vectors, side: SidePlan, transform: SideTransform) -> Tensor:
    """What attention sees of the keys `[T, G, D]` once they were stored: decoded, with everything undone."""
    keys = vectors.k_free if side.bias_free else vectors.k
    decoded = side.scheme.decode(side.scheme.encode(transform.stored(keys)))
    if transform.shift is not None:
        decoded = decoded + transform.shift
    if transform.back is None:
        back = transform.output(decoded)  # an orthonormal matrix, or none
    else:
        back = torch.einsum("tgd,ged->tge", decoded, transform.back)  # A^-1 = B^T
    return back + (vectors.k - vectors.k_free) if side.bias_free else back


def stored_values(values: Tensor, side: SidePlan, transform: SideTransform) -> Tensor:
    """The same for values `[T, G, D]`."""
    return transform.output(side.scheme.decode(side.scheme.encode(transform.stored(values))))


@torch.inference_mode()
def measure_sensitivity(
    model: DenseDecoder, windows: Sequence[Tensor], uniform: Uniform, advance: Callable[[], None]
) -> dict[str, Any]:
    """Mean KL of every layer, side and scheme: `{"schemes", "tokens", "k": {scheme: [per layer]}, "v": ...}`.

    `advance` is called after each window and layer."""
    layers = model.spec.layers
    sums = {side: {name: [0.0] * layers for name in uniform} for side in "kv"}
    for tokens in windows:
        states, exact = _exact(model, tokens)
        weights = exact.exp()
        for layer in range(layers):
            vectors, window = project(model, layer, states[layer]), model.spec.window(layer)
            for name, (plan, transforms) in uniform.items():
                sides, turned = plan.layers[layer], transforms[layer]
                keys = stored_keys(vectors, sides.key, turned[0])
                values = stored_values(vectors.v, sides.value, turned[1])
                for side, k, v in (("k", keys, vectors.v), ("v", vectors.k, values)):
                    mixed = attention_output(vectors.q, k, v, window)
                    changed = _rest(model, layer, states[layer], mixed)
                    sums[side][name][layer] += float((weights * (exact - changed)).sum(-1).double().sum())
            advance()
    count = sum(len(tokens) for tokens in windows)
    means = {side: {name: [s / count for s in found] for name, found in sums[side].items()} for side in "kv"}
    return {"schemes": list(uniform), "tokens": count, **means}


@torch.inference_mode()
def measure_plan(
    model: DenseDecoder, windows: Sequence[Tensor], plan: KVPlan, transforms: Transforms
) -> Divergence:  # fmt: skip
    """All layers stored as planned: KL to the exact model."""

    def pair(tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, exact = _exact(model, tokens)
        hidden = embed(model, tokens)
        for layer, (sides, turned) in enumerate(zip(plan.layers, transforms, strict=True)):
            vectors = project(model, layer, hidden)
            keys = stored_keys(vectors, sides.key, turned[0])
            values = stored_values(vectors.v, sides.value, turned[1])
            mixed = attention_output(vectors.q, keys, values, model.spec.window(layer))
            hidden = layer_step(model, layer, hidden, mixed)
        return exact, finish(model, hidden)

    return measure([pair(tokens) for tokens in windows])


@torch.inference_mode()
def exact_log_probabilities(model: DenseDecoder, tokens: Tensor) -> Tensor:
    """fp32 `[T, V]` of what follows each position, with nothing stored."""
    return _exact(model, tokens)[1]


def _exact(model: DenseDecoder, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The hidden states that enter each layer, and the log-probabilities at the end."""
    states, hidden = [], embed(model, tokens)
    for layer in range(model.spec.layers):
        states.append(hidden)
        vectors = project(model, layer, hidden)
        mixed = attention_output(vectors.q, vectors.k, vectors.v, model.spec.window(layer))
        hidden = layer_step(model, layer, hidden, mixed)
    return states, finish(model, hidden)


def _rest(model: DenseDecoder, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
    """From a layer's attention output to log-probabilities."""
    hidden = layer_step(model, layer, hidden, mixed)
    for later in range(layer + 1, model.spec.layers):
        vectors = project(model, later, hidden)
        mixed = attention_output(vectors.q, vectors.k, vectors.v, model.spec.window(later))
        hidden = layer_step(model, later, hidden, mixed)
    return finish(model, hidden)
