"""The answer of `octavo plan`: a value first (`as_dict` is its JSON), a table for people second."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from octavo.base.errors import BadValue
from octavo.kv.layout import PAGE_TOKENS
from octavo.kv.plan import KVPlan, Rotate, uniform_plan
from octavo.kv.schemes import SCHEMES
from octavo.memory.law import MemoryLaw, memory_law, weight_bytes
from octavo.models.spec import ModelSpec

__all__ = [
    "BASELINE", "GivenPlan", "Givens", "MemoryReport", "PlanQuestion", "SchemeRow", "default_dtypes", "memory_report",
]  # fmt: skip

BASELINE = "bf16"
"""the scheme that ratios compare with"""


@dataclass(frozen=True)
class PlanQuestion:
    """What is asked of the memory law. Raises BadValue where it cannot be asked."""

    tokens: int | None = None
    """length of one sequence; None is 2048, or the model's limit if that is less"""
    max_model_len: int | None = None
    """None is what the model was made for"""
    memory_bytes: int = 24 * 2**30
    batch_sizes: tuple[int, ...] = (8, 16, 32, 48)
    dtypes: tuple[str, ...] = ()
    """cache schemes or K,V pairs; empty is all of them"""
    rotate: Rotate = "auto"
    weights_dtype: str = "bfloat16"
    page_tokens: int = PAGE_TOKENS

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("max model length", self.max_model_len)):
            if value is not None and value < 1:
                raise BadValue(f"{name}: {value} (at least 1)")
        if not 1 <= self.page_tokens <= 65536:
            raise BadValue(f"tokens per page: {self.page_tokens} (from 1 to 65536)", hint="the engine's default is 64")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise BadValue(f"batch sizes: {','.join(map(str, self.batch_sizes))} (whole numbers from 1)")

    def lengths(self, spec: ModelSpec) -> tuple[int, int]:
        """`(tokens, max_model_len)` for a model. Raises BadValue for more than the model can do."""
        limit = self.max_model_len or spec.max_position
        if limit > spec.max_position:
            raise BadValue(f"max model length {limit} is more than the model's own {spec.max_position}")
        tokens = self.tokens or min(2048, limit)
        if tokens > limit:
            raise BadValue(f"a sequence of {tokens} tokens is longer than the max model length {limit}")
        return tokens, limit


@dataclass(frozen=True)
class GivenPlan:
    """A plan that is not the same in every layer, and what is known of its divergence from the exact cache."""

    plan: KVPlan
    kl_measured: float | None = None
    kl_predicted: float | None = None


@dataclass(frozen=True)
class Givens:
    """Plans by the name they go under, and the asset they come from: its path, model and text of measurement."""

    plans: Mapping[str, GivenPlan] = field(default_factory=dict)
    asset: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SchemeRow:
    """What one choice of cache costs."""

    dtype: str
    plan: str
    bits_per_number: float
    page_bytes: int
    bytes_per_token: float
    bytes_per_sequence: int
    bytes_at_max_model_len: int
    sequences_that_fit: int
    tokens_that_fit: int
    ratio_to_bf16: float
    """bytes per token over the baseline's: 0.5 is half"""
    total_bytes: dict[str, int]
    """batch size -> weights + that many sequences"""
    kl_measured: float | None = None
    kl_predicted: float | None = None


@dataclass(frozen=True)
class MemoryReport:
    """Everything `octavo plan` prints."""

    model: dict[str, Any]
    weights: dict[str, Any]
    tokens: int
    max_model_len: int
    memory_bytes: int
    page_tokens: int
    schemes: tuple[SchemeRow, ...]
    asset: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_dtypes(head_dim: int) -> tuple[str, ...]:
    """Every scheme, and K,V pairs of those that rotate with the keys the wider; widest first."""
    width = {name: scheme.vector_bytes(head_dim) for name, scheme in SCHEMES.items()}
    folded = [name for name, scheme in SCHEMES.items() if scheme.rotates and not scheme.needs_scale]
    pairs = [(key, value) for key in folded for value in folded if width[key] > width[value]]
    sizes = {name: 2 * width[name] for name in SCHEMES}
    sizes |= {f"{key},{value}": width[key] + width[value] for key, value in pairs}
    return tuple(sorted(sizes, key=lambda name: -sizes[name]))


def memory_report(
    name: str, spec: ModelSpec, question: PlanQuestion, stored_bytes: int | None = None, givens: Givens | None = None
) -> MemoryReport:  # fmt: skip
    """The memory law of `spec` for every scheme asked about. `stored_bytes`: the checkpoint's size on disk if known.
    `givens`: plans that the question may name; those that it does not come last."""
    tokens, limit = question.lengths(spec)
    weights, givens = weight_bytes(spec, question.weights_dtype), givens or Givens()
    baseline = memory_law(spec, uniform_plan(BASELINE, spec.layers, spec.head_dim), question.page_tokens)
    rows = []
    for dtype in dict.fromkeys([*(question.dtypes or _possible(spec)), *givens.plans]):
        given = givens.plans.get(dtype)
        plan = given.plan if given else uniform_plan(dtype, spec.layers, spec.head_dim, question.rotate)
        law = memory_law(spec, plan, question.page_tokens, fixed_bytes=weights)
        ratio = law.bytes_per_token / baseline.bytes_per_token
        row = _row(dtype if given else plan.name, plan.describe(), law, ratio, question, (tokens, limit))
        known = (given.kl_measured, given.kl_predicted) if given else (None, None)
        rows.append(replace(row, kl_measured=known[0], kl_predicted=known[1]))
    shape = {"name": name, **{field: getattr(spec, field) for field in _SHAPE_FIELDS}}
    stored = {"dtype": question.weights_dtype, "bytes": weights, "stored_bytes": stored_bytes}
    return MemoryReport(
        shape, stored, tokens, limit, question.memory_bytes, question.page_tokens, tuple(rows), givens.asset
    )


_SHAPE_FIELDS = (
    "family", "layers", "width", "mlp_width", "heads", "kv_heads", "head_dim", "vocab_size", "max_position",
    "parameters",
)  # fmt: skip


def _possible(spec: ModelSpec) -> Iterable[str]:
    """The default choices that this model's head width allows."""
    for dtype in default_dtypes(spec.head_dim):
        try:
            uniform_plan(dtype, spec.layers, spec.head_dim)
        except BadValue:
            continue
        yield dtype


def _row(
    dtype: str, plan: str, law: MemoryLaw, ratio: float, question: PlanQuestion, lengths: Sequence[int]
) -> SchemeRow:  # fmt: skip
    tokens, limit = lengths
    return SchemeRow(
        dtype=dtype,
        plan=plan,
        bits_per_number=law.bits_per_number,
        page_bytes=law.page_bytes,
        bytes_per_token=law.bytes_per_token,
        bytes_per_sequence=law.sequence_bytes(tokens),
        bytes_at_max_model_len=law.sequence_bytes(limit),
        sequences_that_fit=law.sequences_that_fit(question.memory_bytes, tokens),
        tokens_that_fit=law.pages_that_fit(question.memory_bytes) * law.page_tokens,
        ratio_to_bf16=ratio,
        total_bytes={str(batch): law.total_bytes(batch, tokens) for batch in question.batch_sizes},
    )
