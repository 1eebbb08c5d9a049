"""Small files as the verbs write them, with names that try to be more than names."""

import copy
from typing import Any

HOSTILE = "</script><img src=x onerror=alert('1')>\"&$a_b$|`\x00\ud800\u202e"
"""what no page may take as anything but text"""


def pair(b: str, gained: int, lost: int, wrong: int, **more: Any) -> dict[str, Any]:
    return {
        "a": "bf16", "b": b, "n": 40, "gained": gained, "lost": lost, "changed_wrong": wrong,
        "changed": gained + lost + wrong, "mcnemar_p": 0.6875, "difference": 2.5 * (gained - lost),
        "ci95": [-7.123, 4.567], "kl_mean": 0.0123, "kl_p99": 0.0456, "same_top": 0.9375, "margin": 1.0,
        "drop_at_most": 6.543, "equivalent": b == "int8", "needed": 77, "verdict": f"verdict of {b}",
    } | more  # fmt: skip


EVALUATION: dict[str, Any] = {
    "model": "tiny", "task": "trees", "form": "cloze", "shots": 0, "items": 40, "compute_dtype": "bfloat16",
    "device": "cpu", "seconds": 12.5, "letter_form": {"label": "A", "share": 0.97, "items": 150, "blind": True},
    "command": "octavo eval tiny --task trees",
    "scores": {
        name: {"accuracy": accuracy, "ci95": [0.21, 0.51], "n": 40, "answers": {"A": 30, "B": 10}}
        for name, accuracy in (("bf16", 0.35), ("int8", 0.375), ("int4", 0.325))
    },
    "pairs": [pair("int8", 3, 2, 1), pair("int4", 2, 3, 4, kl_max=1.875, kl_by_position=[
        {"begin": 0, "end": 16, "mean": 0.01, "tokens": 5}, {"begin": 16, "end": 32, "mean": 0.0, "tokens": 5},
    ])],
    "control": pair("control", 0, 0, 0, kl_mean=0.0, difference=0.0),
}  # fmt: skip

PERPLEXITY: dict[str, Any] = {
    "model": "tiny", "task": "wikitext2", "form": "perplexity",
    "scores": {
        "bf16": {"perplexity": 12.3456, "ci95": [11.5, 13.25], "n": 9, "tokens": 999, "next_token_accuracy": 0.5},
    },
    "pairs": [{
        "a": "bf16", "b": "int8", "n": 9, "nll_difference": 0.00123, "nll_difference_ci95": [-0.001, 0.0034],
        "kl_mean": 0.002, "kl_p99": 0.03, "same_top": 0.96875,
    }],
    "control": None,
}  # fmt: skip

MEMORY: dict[str, Any] = {
    "model": "tiny", "dtype": "float32", "device": "cpu", "machine": "a CPU", "tokens": 64, "fill": "generate",
    "rows": [
        {"batch": batch, "dtype": name, "process_mib": 100 + slope * batch, "device_mib": None, "kv_mib": slope * batch}
        for name, slope in (("bf16", 8.0), ("int8", 4.125)) for batch in (8, 16)
    ],
    "skipped": [{"batch": 32, "dtype": "bf16", "needed_mib": 256.0, "free_mib": 31.5}],
    "law": {
        name: {"intercept_mib": 100.0, "slope_mib": slope, "predicted_intercept_mib": 99.0,
               "predicted_slope_mib": slope, "max_residual_mib": 0.25}
        for name, slope in (("bf16", 8.0), ("int8", 4.125))
    },
    "lines": {
        "KV bf16": {"intercept_mib": 100.0, "slope_mib": 8.0, "measured": True},
        "KV int8": {"intercept_mib": 100.0, "slope_mib": 4.125, "measured": True},
        "weights int4, KV bf16": {"intercept_mib": 61.25, "slope_mib": 8.0, "measured": False},
    },
    "crossings": [{"first": "weights int4, KV bf16", "second": "KV int8", "batch": 10.0}],
}  # fmt: skip

DEMO: dict[str, Any] = {
    "model": "tiny", "parameters": 12345, "compute_dtype": "float32", "device": "cpu", "identical_answers": 1,
    "baseline": {"dtype": "bf16", "plan": "K bf16", "bytes_per_token": 64.0, "allocated_bytes": 4096},
    "folded": {"dtype": "int8", "plan": "K int8", "bytes_per_token": 34.0, "allocated_bytes": 2176},
    "divergence": {"tokens": 77, "kl_mean": 2e-4, "kl_median": 1e-4, "kl_p99": 1e-3, "kl_max": 3e-3, "same_top": 0.99},
    "control": None,
    "answers": [{"prompt": "Why?", "baseline": "x" * 400, "folded": "So.", "identical": False, "same_top": 0.5}],
}  # fmt: skip


def all_parts() -> dict[str, dict[str, Any]]:
    return copy.deepcopy({"eval.json": EVALUATION, "text.json": PERPLEXITY, "memory.json": MEMORY, "demo.json": DEMO})


def named(data: Any, name: str) -> Any:
    """A copy in which every text, and every key that a user chooses, is `name` with a number behind it."""
    keys = ("scores", "law", "lines")
    count = iter(range(10**6))

    def changed(value: Any, chosen: bool = False) -> Any:
        if isinstance(value, dict):
            return {
                (f"{name}{next(count)}" if chosen else key): changed(one, key in keys) for key, one in value.items()
            }
        if isinstance(value, list):
            return [changed(one) for one in value]
        return f"{name}{next(count)}" if isinstance(value, str) else value

    return changed(data)
