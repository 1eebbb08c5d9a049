"""Shapes of well-known models, so that `octavo plan` can speak of them without their files."""

from octavo.base.table import Table
from octavo.models.spec import ModelSpec, RopeSpec

__all__ = ["SHAPES"]


def _llama_7b(vocab_size: int) -> ModelSpec:
    return ModelSpec(
        family="llama", layers=32, width=4096, mlp_width=11008, heads=32, kv_heads=32, head_dim=128,
        vocab_size=vocab_size, max_position=2048, rope=RopeSpec(rotary_dim=128), dtype="float16",
    )  # fmt: skip


SHAPES: Table[ModelSpec] = Table(
    "model shape",
    {
        "llama-7b": _llama_7b(vocab_size=32000),
        "chinese-llama-alpaca-7b": _llama_7b(vocab_size=49954),
        "llama-3-8b": ModelSpec(
            family="llama", layers=32, width=4096, mlp_width=14336, heads=32, kv_heads=8, head_dim=128,
            vocab_size=128256, max_position=8192, rope=RopeSpec(theta=500000.0, rotary_dim=128), norm_eps=1e-5,
        ),
        "qwen2.5-7b": ModelSpec(
            family="qwen2", layers=28, width=3584, mlp_width=18944, heads=28, kv_heads=4, head_dim=128,
            vocab_size=152064, max_position=32768, rope=RopeSpec(theta=1e6, rotary_dim=128), qkv_bias=True,
        ),
    },
)  # fmt: skip
