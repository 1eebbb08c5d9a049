"""The flags that every verb with an engine shares, and the facts it reports about its cache."""

from dataclasses import KW_ONLY, asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from octavo.base.units import format_bytes
from octavo.kv.plan import Rotate

if TYPE_CHECKING:
    from octavo.engine.llm import LLM

__all__ = ["EngineFlags", "SamplingFlags", "banner", "cache_json", "load", "warn_of_clipping"]

_CLIPPED = 0.01


@Parameter(name="*")
@dataclass(frozen=True)
class EngineFlags:
    model: str
    """A Hugging Face folder, a GGUF file, a hub id, or `smollm2` for the packaged default."""
    _: KW_ONLY
    tokenizer: str | None = None
    """Where the tokenizer is, if not with the model."""
    dtype: str = "auto"
    """What the model computes in: auto, bfloat16, float16 or float32."""
    device: str = "auto"
    kernels: str = "auto"
    """Which kernels run: auto, or one by name (an error if it cannot)."""
    kv_cache_dtype: str = "auto"
    """How the cache is stored: a scheme, a K,V pair such as int8,int4, or auto:24GiB, auto:5.5bit, auto:kl<0.01."""
    kv_asset: str | None = None
    """The folder of a calibration; one that lies beside the weights is found; `off` looks for none."""
    kv_rotate: Rotate = "auto"
    """Hadamard rotation of K and V before they are stored: auto (each scheme's default), on or off."""
    kv_bias_free: Rotate = "auto"
    """Keys stored without the model's key bias, which attention adds back exactly: auto (below 16 bits), on or off."""
    kv_balance: str = "auto"
    """Keys and queries brought to one shape: auto (on for keys below 8 bits), on, off, smooth or constant."""
    kv_self_test: str = "auto"
    """Some bundled text through the cache first: auto (below 16 bits), on, off, or the KL in nats that is allowed."""
    kv_cache_memory: str | None = None
    """What the cache may take: a share of what is free (0.5), bytes (2GiB) or tokens (20000tok)."""
    gpu_memory_utilization: float = 0.9
    """On a GPU: the share of its whole memory for weights, steps and cache, if --kv-cache-memory does not say."""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    block_size: int = 64
    enable_prefix_caching: bool = True
    seed: int = 0
    enforce_eager: bool = False
    """On a GPU: launch decode steps kernel by kernel instead of replaying them as CUDA graphs."""
    deterministic: bool = False
    """Answers that do not depend on what else is served, bit for bit; slower."""
    debug: bool = False
    """Check every stored vector for NaN and infinity, and every step for leaked pages."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    max_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    """Text that ends the answer; may be repeated."""
    min_tokens: int = 0
    ignore_eos: bool = False


def load(flags: EngineFlags) -> "LLM":
    """The model with its cache; the facts of the cache go to the log."""
    import logging

    from octavo.engine.llm import LLM

    llm = LLM(**asdict(flags))
    logging.getLogger("octavo").info("%s", banner(llm))
    return llm


def banner(llm: "LLM") -> str:
    """What runs and what its cache costs, beside bf16: two lines."""
    cache = llm.cache
    ratio = cache.bytes_per_token_bf16 / cache.bytes_per_token
    return (
        f"{llm.source.name} on {llm.device} in {llm.dtype}, kernels {cache.kernels}; "
        f"cache {cache.dtype}: {cache.plan}\n"
        f"{cache.bytes_per_token:.0f} bytes a token (bf16 {cache.bytes_per_token_bf16:.0f}, {ratio:.2f}x less), "
        f"{cache.pages} pages hold {cache.capacity_tokens} tokens in {format_bytes(cache.allocated_bytes)}; "
        f"sequences of up to {cache.max_model_len} tokens"
    )


def cache_json(llm: "LLM") -> dict[str, Any]:
    """The facts of the cache, and what its static scales clipped until now."""
    return {**asdict(llm.cache), "clipped": [{**asdict(count), "share": count.share} for count in llm.clipped]}


def warn_of_clipping(llm: "LLM") -> None:
    """Say it where static scales do not fit the text that was served."""
    import logging

    worst = max(llm.clipped, key=lambda count: count.share, default=None)
    if worst is not None and worst.share > _CLIPPED:
        logging.getLogger("octavo").warning(
            "%.1f %% of the numbers in layer %d's %s were out of their calibrated range: calibrate on such text, or "
            "with a larger --margin", 100 * worst.share, worst.layer, {"k": "keys", "v": "values"}[worst.side],
        )  # fmt: skip
