"""Everything that shapes an engine, frozen and checked where it is born."""

import math
from dataclasses import dataclass, fields

from octavo.base.errors import BadValue
from octavo.base.log import log
from octavo.base.table import Table
from octavo.calibrate.cache_plan import CacheOptions
from octavo.calibrate.solve import parse_budget
from octavo.engine.pool_size import parse_memory
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import Rotate, parse_dtype

__all__ = ["BALANCES", "DTYPES", "EngineOptions", "parse_threshold"]

BALANCES = ("auto", "on", "off", "smooth", "constant")

DTYPES: Table[str] = Table(
    "compute dtype",
    {"auto": "auto", "bfloat16": "bfloat16", "float16": "float16", "float32": "float32"},
    aliases={"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
)


_THRESHOLD = 0.2
"""nats per token. What a bfloat16 cache does is below 0.001 and a good 4-bit cache below 0.05; from here on every tenth
token or so of a greedy answer is another, and caches that break a model measure 1 to 10"""


def parse_threshold(option: str) -> float:
    """`auto` and `on` are the default, a number is itself. Raises BadValue."""
    if option in ("auto", "on"):
        return _THRESHOLD
    try:
        value = float(option)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise BadValue(
            f"kv_self_test: `{option}` (have auto, on, off, or the KL in nats that is allowed)", hint="0.05, say"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Names are those of the command line. `None` and `auto` are resolved from the model and the machine at start."""

    model: str
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    kv_cache_dtype: str = "auto"
    """a scheme, a K,V pair or auto:BUDGET; auto is the asset's or the checkpoint's plan, else int8"""
    kv_asset: str | None = None
    """the folder of a calibration; one beside the weights is found; `off` looks for none"""
    kv_rotate: Rotate = "auto"
    kv_bias_free: Rotate = "auto"
    """keys stored without the model's key bias (exact): auto is on for schemes below 16 bits of models that have one"""
    kv_balance: str = "auto"
    """keys and queries brought to one shape (fit.py): auto is on for keys below 8 bits; on, off, smooth, constant"""
    kv_self_test: str | float | bool = "auto"
    """bundled text through the cache before anything is served: auto (below 16 bits), on, off, or the KL allowed"""
    kv_cache_memory: str | int | float | None = None
    """a share of what is free beside weights and steps, bytes or tokens; None goes by `gpu_memory_utilization`, on a
    CPU 2 GiB or less"""
    gpu_memory_utilization: float = 0.9
    """the share of a GPU's whole memory that this process may take; `kv_cache_memory` comes before it"""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    block_size: int = PAGE_TOKENS
    enable_prefix_caching: bool = True
    seed: int = 0
    enforce_eager: bool = False
    deterministic: bool = False
    """what a request gets does not depend on what else is served, bit for bit; slower"""
    """on a GPU: launch decode steps kernel by kernel instead of replaying them as CUDA graphs (debug does so too)"""
    debug: bool = False
    """check every stored vector for NaN and infinity, and every step for leaked pages"""

    @property
    def cache(self) -> CacheOptions:
        """What is asked of the cache."""
        return CacheOptions(**{field.name: getattr(self, field.name) for field in fields(CacheOptions)})

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", DTYPES.resolve(self.dtype))
        if self.kv_cache_dtype.startswith("auto:"):
            parse_budget(self.kv_cache_dtype.removeprefix("auto:"))
        elif self.kv_cache_dtype != "auto":
            parse_dtype(self.kv_cache_dtype)
        tested = self.kv_self_test
        tested = ("on" if tested else "off") if isinstance(tested, bool) else str(tested)
        object.__setattr__(self, "kv_self_test", tested)
        if tested != "off":
            parse_threshold(tested)
        if self.kv_balance not in BALANCES:
            raise BadValue(f"kv_balance: `{self.kv_balance}` (have {', '.join(BALANCES)})")
        for name in ("kv_rotate", "kv_bias_free"):
            if getattr(self, name) not in ("auto", "on", "off"):
                raise BadValue(f"{name}: `{getattr(self, name)}` (have auto, on, off)")
        for name, low, high in (
            ("max_num_seqs", 1, 65536),
            ("max_num_batched_tokens", 1, 1 << 20),
            ("block_size", 8, 1024),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise BadValue(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        if self.block_size % 8:
            raise BadValue(f"block_size must be a multiple of 8, not {self.block_size}")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise BadValue(f"max_model_len must be at least 1, not {self.max_model_len}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            # every running sequence must be able to take its token in each step
            log.warning("at most %d sequences run at once: a step has no more tokens", self.max_num_batched_tokens)
            object.__setattr__(self, "max_num_seqs", self.max_num_batched_tokens)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise BadValue(f"gpu_memory_utilization: {self.gpu_memory_utilization} (above 0, at most 1)")
        if self.kv_cache_memory is not None:
            parse_memory(self.kv_cache_memory)
