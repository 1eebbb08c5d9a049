"""What is told of the model and its cache: in the banner, in `/v1/models`, in `/live`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from octavo.base.units import format_bytes

if TYPE_CHECKING:
    from octavo.engine.llm import LLM

__all__ = ["banner", "facts_of"]


def facts_of(llm: "LLM") -> dict[str, Any]:
    """`{"model", "kv_cache", "limits"}`, of plain values only. `sequences_that_fit`: of the longest that are taken."""
    cache, limits = llm.cache, llm.engine.limits
    bf16_tokens = int(cache.allocated_bytes / cache.bytes_per_token_bf16)
    return {
        "model": {
            "name": llm.source.name, "device": llm.device, "dtype": llm.dtype, "max_model_len": cache.max_model_len,
            "kernels": cache.kernels,
        },
        "kv_cache": {
            **asdict(cache),
            "capacity_tokens_bf16": bf16_tokens,
            "sequences_that_fit": cache.capacity_tokens // cache.max_model_len,
            "sequences_that_fit_bf16": bf16_tokens // cache.max_model_len,
        },
        "limits": {
            "vocab_size": limits.vocab_size, "max_num_seqs": limits.max_sequences,
            "max_num_batched_tokens": limits.max_batched_tokens, "capacity_tokens": limits.capacity_tokens,
        },
    }  # fmt: skip


def banner(facts: dict[str, Any], url: str) -> str:
    """What runs, what its cache costs, how many fit, and the same for bf16."""
    model, cache = facts["model"], facts["kv_cache"]
    ratio = cache["bytes_per_token_bf16"] / cache["bytes_per_token"]
    length = cache["max_model_len"]
    rows = [
        ("model", f"{model['name']} on {model['device']} in {model['dtype']}, kernels {model['kernels']}"),
        ("cache", f"{cache['dtype']}: {cache['plan']} ({cache['plan_source']})"),
        ("self-test", _tested(cache["self_test"])),
        ("a token", f"{cache['bytes_per_token']:.0f} bytes (bf16 {cache['bytes_per_token_bf16']:.0f}, {ratio:.2f}x)"),
        ("pool", f"{format_bytes(cache['allocated_bytes'])} in {cache['pages']} pages of {cache['page_tokens']}"),
        ("holds", f"{cache['capacity_tokens']} tokens: {cache['sequences_that_fit']} x {length}"),
        ("with bf16", f"{cache['capacity_tokens_bf16']} tokens: {cache['sequences_that_fit_bf16']} x {length}"),
        ("ready", url),
    ]
    return "\n".join(f"  {name:<10} {text}" for name, text in rows)


def _tested(result: dict[str, Any]) -> str:
    if result["kl_mean"] is None:
        return f"{result['status']}: {result['reason']}"
    changes = f", after {', '.join(result['changes'])}" if result["changes"] else ""
    return (
        f"{result['status']}: KL {result['kl_mean']:.4f} nats (limit {result['threshold']}), same top token "
        f"{result['same_top']:.1%}{changes}"
    )
