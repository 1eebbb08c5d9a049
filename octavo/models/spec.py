"""Every size and switch of a model. Pure: no torch, so that `octavo plan` can read one from a header alone."""

from dataclasses import dataclass

__all__ = ["ModelSpec", "RopeSpec"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: `kind` is default, linear, dynamic, llama3 or yarn; the other fields are those of its formula
    (names as in Hugging Face configs)."""

    theta: float = 10000.0
    kind: str = "default"
    rotary_dim: int = 0
    """how many leading dimensions of a head are rotated"""
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    freq_factors: tuple[float, ...] = ()
    """[rotary_dim / 2] the inverse frequencies of `kind` are divided by these (GGUF's rope_freqs); empty: by nothing"""


@dataclass(frozen=True)
class ModelSpec:
    """A dense decoder: pre-norm blocks of grouped-query attention and a gated MLP, over RMS norms."""

    family: str
    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rope: RopeSpec
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    windows: tuple[int | None, ...] = ()
    """per layer, how many tokens back a query sees; None is all. Empty: None everywhere"""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    """what the checkpoint stores"""

    @property
    def has_key_bias(self) -> bool:
        """Whether K gets a bias, and nothing else, between its projection and RoPE: it can be left out of the cache."""
        return self.qkv_bias and not self.qk_norm

    @property
    def parameters(self) -> int:
        """How many weights the model has, by arithmetic."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        block = (
            self.width * (queries + 2 * keys) + queries * self.width + 3 * self.width * self.mlp_width + 2 * self.width
        )
        block += (queries + 2 * keys) * self.qkv_bias + self.width * self.out_bias
        block += (2 * self.mlp_width + self.width) * self.mlp_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * self.width * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * block + self.width

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None
