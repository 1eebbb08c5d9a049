"""The memory law. Pure arithmetic: no torch, nothing is loaded.

    page(layer)     = KV heads * bytes of one head's block of a page, metadata and alignment included
    sequence(T)     = ceil(T / page_tokens) * sum of page(layer) over the layers
    total(B, T)     = fixed + B * sequence(T)                 fixed: weights and workspace
    fits(M, T)      = floor((M - fixed) / sequence(T))

`octavo plan` prints it; what the engine allocates must agree with it.
"""

from dataclasses import dataclass

from octavo.base.errors import BadValue
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import KVPlan
from octavo.models.families import weight_shapes
from octavo.models.spec import ModelSpec

__all__ = ["DTYPE_BYTES", "INT4_WEIGHT_BITS", "MemoryLaw", "int4_weight_bytes", "memory_law", "weight_bytes"]

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

INT4_WEIGHT_BITS = 4.5
"""a weight in groups of 32 or 64 that share a 16-bit scale, and a 4- or 16-bit zero point: 4.25 to 4.75 in use"""


def weight_bytes(spec: ModelSpec, dtype: str) -> int:
    """Bytes of the weights once loaded as `dtype`. Raises BadValue for a dtype that models do not run in."""
    if dtype not in DTYPE_BYTES:
        raise BadValue(f"unknown dtype: `{dtype}` (have {', '.join(DTYPE_BYTES)})")
    return spec.parameters * DTYPE_BYTES[dtype]


def int4_weight_bytes(spec: ModelSpec, dtype: str = "bfloat16") -> int:
    """Bytes of the weights with every linear layer of the blocks at 4.5 bits and all else (embedding, head, norms,
    biases) as `dtype`: what such a checkpoint would take, by arithmetic. Raises BadValue."""
    linear = sum(
        rows * columns
        for name, (rows, *others) in weight_shapes(spec).items()
        for columns in others
        if name.startswith("model.layers.")
    )
    rest = weight_bytes(spec, dtype) - linear * DTYPE_BYTES[dtype]
    return int(linear * INT4_WEIGHT_BITS / 8) + rest


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes of sequences, batches and pools under one plan."""

    layer_page_bytes: tuple[int, ...]
    """bytes of one page in each layer"""
    page_tokens: int
    numbers_per_token: int
    """how many numbers a token adds to the cache: 2 * layers * KV heads * head_dim"""
    fixed_bytes: int = 0
    """weights and workspace: what does not grow with the batch"""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers together."""
        return sum(self.layer_page_bytes)

    @property
    def bytes_per_token(self) -> float:
        """Bytes a token takes in a full page, its share of metadata and alignment included."""
        return self.page_bytes / self.page_tokens

    @property
    def bits_per_number(self) -> float:
        return 8 * self.bytes_per_token / self.numbers_per_token

    def pages(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens holds in every layer."""
        return -(-tokens // self.page_tokens)

    def sequence_bytes(self, tokens: int) -> int:
        return self.pages(tokens) * self.page_bytes

    def total_bytes(self, batch: int, tokens: int) -> int:
        return self.fixed_bytes + batch * self.sequence_bytes(tokens)

    def pages_that_fit(self, memory_bytes: int) -> int:
        """Pages for which there is room beside what is fixed; 0 if that alone does not fit."""
        return max(memory_bytes - self.fixed_bytes, 0) // self.page_bytes

    def sequences_that_fit(self, memory_bytes: int, tokens: int) -> int:
        return self.pages_that_fit(memory_bytes) // self.pages(tokens)


def memory_law(spec: ModelSpec, plan: KVPlan, page_tokens: int = PAGE_TOKENS, fixed_bytes: int = 0) -> MemoryLaw:
    """The law of a model's shape under a plan."""
    layouts = plan.layouts(spec.kv_heads, spec.head_dim, page_tokens)
    numbers = 2 * spec.layers * spec.kv_heads * spec.head_dim
    return MemoryLaw(tuple(layout.page_bytes for layout in layouts), page_tokens, numbers, fixed_bytes)
