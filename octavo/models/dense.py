"""One dense decoder for every family that differs by a switch: Llama, Mistral, Qwen2, Qwen3.

T tokens · H query heads · G kv heads · D head width
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels.attention import attend
from octavo.kernels.norm import add_norm, norm
from octavo.kernels.norm.reference import rms_norm
from octavo.kernels.rows import Rope, Rows
from octavo.kernels.store import check_finite, store
from octavo.kv.pool import PagePool
from octavo.models.bias_free import bias_correction
from octavo.models.linear import Linear, pad_rows
from octavo.models.rope import rope_tables
from octavo.models.spec import ModelSpec

__all__ = ["Attention", "DenseDecoder", "Mlp", "StepContext", "rms_norm"]

Load = Callable[[str], Tensor]
"""canonical weight name -> tensor, already on the device and in the compute dtype"""


@dataclass(frozen=True)
class StepContext:
    """What one step hands to every layer: its rows, the cache, and which kernels run."""

    rows: Rows
    pool: PagePool
    impl: str
    check_finite: bool = False
    """debug mode: a non-finite K or V is an error that names its layer and head"""


class Attention:
    """Grouped-query attention through the cache: project, store and attend (`mix`), project (`out`)."""

    def __init__(self, spec: ModelSpec, layer: int, load: Load):
        name = f"model.layers.{layer}.self_attn."
        self.spec, self.layer = spec, layer
        biases = [load(f"{name}{side}_proj.bias") for side in "qkv"] if spec.qkv_bias else None
        self.key_bias: Tensor | None = None
        if biases is not None and spec.has_key_bias:  # kept apart, in fp32: the cache decides whether it is stored
            self.key_bias = biases[1].float().view(spec.kv_heads, spec.head_dim)
            biases[1] = torch.zeros_like(biases[1])
        weights = [load(f"{name}{side}_proj.weight") for side in "qkv"]
        self.qkv = Linear(torch.cat(weights), None if biases is None else torch.cat(biases))
        self.out = Linear(load(f"{name}o_proj.weight"), load(f"{name}o_proj.bias") if spec.out_bias else None)
        self.norms = [load(f"{name}{side}_norm.weight") for side in "qk"] if spec.qk_norm else None
        self.sizes = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]

    def project(self, hidden: Tensor, impl: str = "reference") -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states `[T, width]` -> q `[T, H, D]`, k and v `[T, G, D]` before RoPE; k without `key_bias`."""
        sides = self.qkv(hidden, impl).split(self.sizes, dim=1)
        q, k, v = (side.unflatten(1, (-1, self.spec.head_dim)) for side in sides)
        if self.norms is not None:
            q, k = (norm(x, weight, self.spec.norm_eps, impl) for x, weight in zip((q, k), self.norms, strict=True))
        return q, k, v

    def mix(self, hidden: Tensor, step: StepContext, rope: Rope) -> Tensor:
        """What `out` takes, `[T, H * D]`; the new K and V are stored."""
        q, k, v = self.project(hidden, step.impl)
        pages = step.pool.layers[self.layer]
        if step.check_finite:
            check_finite(k, v, self.layer)
        scale, correction = self.spec.head_dim**-0.5, None
        if self.key_bias is not None and pages.plan.key.bias_free:
            correction = bias_correction(q, self.key_bias, rope, step.rows.positions, scale)
        elif self.key_bias is not None:
            k = k.float() + self.key_bias
        q = store(q, k, v, rope, step.rows, pages, step.impl)
        mixed = attend(q, step.rows, pages, step.impl, scale, self.spec.window(self.layer), correction)
        return mixed.flatten(1).to(hidden.dtype)


class Mlp:
    """SwiGLU: `down(silu(gate(x)) * up(x))`, gate and up in one matrix. By Triton it may come in parts, for `add_norm`
    to add up."""

    def __init__(self, spec: ModelSpec, layer: int, load: Load):
        name = f"model.layers.{layer}.mlp."

        def biases(*sides: str) -> Tensor | None:
            return torch.cat([load(f"{name}{side}_proj.bias") for side in sides]) if spec.mlp_bias else None

        self.gate_up = Linear(
            torch.cat([load(f"{name}{side}_proj.weight") for side in ("gate", "up")]), biases("gate", "up")
        )
        self.down = Linear(load(f"{name}down_proj.weight"), biases("down"))

    def __call__(self, hidden: Tensor, impl: str = "reference") -> Tensor:
        return self.down.in_parts(self.gate_up.gated(hidden, impl), impl)


class DenseDecoder:
    """The whole model. `max_positions` sizes the rotary tables; `load` gives weights by canonical name."""

    def __init__(self, spec: ModelSpec, load: Load, max_positions: int, device: str):
        self.spec = spec
        self.rope = rope_tables(spec.rope, max_positions, device)
        self.embedding = load("model.embed_tokens.weight")
        head = pad_rows(self.embedding if spec.tied_embeddings else load("lm_head.weight"))
        if spec.tied_embeddings:  # one tensor still where the head is padded: the embedding is the rows that are real
            self.embedding = head[: spec.vocab_size]
        self.head = Linear(head, out_features=spec.vocab_size)
        self.blocks = [
            (
                load(f"model.layers.{layer}.input_layernorm.weight"),
                Attention(spec, layer, load),
                load(f"model.layers.{layer}.post_attention_layernorm.weight"),
                Mlp(spec, layer, load),
            )
            for layer in range(spec.layers)
        ]
        self.norm = load("model.norm.weight")

    def make_invariant(self) -> None:
        """From now on what a token gets does not depend on how many others a step has."""
        for _, attention, _, mlp in self.blocks:
            for linear in (attention.qkv, attention.out, mlp.gate_up, mlp.down):
                linear.invariant = True
        self.head.invariant = True

    def try_products(self, rows: int, impl: str, head: bool) -> None:
        """What a layer does around its attention once, for so many rows, and the head if `head`: each product is met;
        nothing comes of it."""
        _, attention, _, mlp = self.blocks[0]
        hidden = self.embedding.new_zeros(rows, self.embedding.shape[1])
        attention.project(hidden, impl)
        attention.out.in_parts(hidden.new_zeros(rows, attention.out.in_features), impl)
        mlp(hidden, impl)
        if head:
            self.head(hidden, impl)

    def __call__(self, tokens: Tensor, step: StepContext, wanted: Tensor) -> Tensor:
        """Tokens int64 `[T]` as laid out by `step.rows` -> logits `[len(wanted), vocab]` at the wanted indices, of
        the model's own type. `wanted` int64 in ascending order, none twice.

        Every layer stores its new K and V before it attends, so the step's effect on the cache is complete even
        where no logits are wanted. Once the last layer has attended, nothing but the wanted rows is computed: of
        a prompt that is one.
        """
        eps, impl = self.spec.norm_eps, step.impl
        hidden, delta = functional.embedding(tokens, self.embedding), None  # what a block adds, the next norm adds
        step = replace(step, rows=replace(step.rows, compute=hidden.dtype))
        for attention_norm, attention, mlp_norm, mlp in self.blocks:
            hidden, normed = add_norm(hidden, delta, attention_norm, eps, impl)
            mixed = attention.mix(normed, step, self.rope)
            if attention is self.blocks[-1][1] and len(wanted) < len(tokens):
                hidden, mixed = hidden[wanted], mixed[wanted]
            hidden, normed = add_norm(hidden, attention.out.in_parts(mixed, impl), mlp_norm, eps, impl)
            delta = mlp(normed, impl)
        _, normed = add_norm(hidden, delta, self.norm, eps, impl)
        return self.head(normed, impl)
