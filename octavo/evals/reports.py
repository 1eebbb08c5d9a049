"""From result files to scores and pairs, for a task of questions and for running text."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.evals.compare import compare, read_results, score_of
from octavo.evals.distance import distance_of
from octavo.evals.statistics import bootstrap_ratio
from octavo.evals.tasks.lines import open_lines

__all__ = ["CONTROL", "choice_report", "perplexity_report"]

CONTROL = "control"
Scores = dict[str, tuple[str, str, str]]
Report = tuple[Scores, list[dict[str, Any]], dict[str, Any]]


def choice_report(files: Mapping[str, Path], margin: float) -> Report:
    results = {name: read_results(path) for name, path in files.items()}
    first, *others = results
    scores = {name: score_of(found) for name, found in results.items() if name != CONTROL}
    rows = {
        name: (f"{score.accuracy:.2%}", f"{score.ci95[0]:.2%} to {score.ci95[1]:.2%}", str(score.n))
        for name, score in scores.items()
    }
    pairs = [compare(results[first], results[name], (first, name), margin).as_dict() for name in others]
    data = {
        "scores": {name: asdict(score) for name, score in scores.items()},
        "pairs": [pair for pair in pairs if pair["b"] != CONTROL],
        "control": next((pair for pair in pairs if pair["b"] == CONTROL), None),
    }
    return rows, pairs, data


def perplexity_report(files: Mapping[str, Path], margin: float) -> Report:
    """Perplexity: exp of the mean nll of all tokens. Intervals by resampling windows; those of differences pair each
    window with itself, so that what is hard for both cancels."""
    results = {name: {row["id"]: row for _, row in open_lines(path)} for name, path in files.items()}
    first, *others = results
    rows: Scores = {}
    scores: dict[str, Any] = {}
    for name, found in results.items():
        counts, nlls = [row["tokens"] for row in found.values()], [row["nll"] for row in found.values()]
        tokens, nll = sum(counts), sum(nlls)
        low, high = bootstrap_ratio(nlls, counts)
        scores[name] = {
            "perplexity": math.exp(nll / tokens), "ci95": (math.exp(low), math.exp(high)), "n": len(found),
            "tokens": tokens, "next_token_accuracy": sum(row["top_hits"] for row in found.values()) / tokens,
        }  # fmt: skip
        rows[name] = (f"{math.exp(nll / tokens):.4f}", f"{math.exp(low):.3f} to {math.exp(high):.3f}", f"{tokens}")
    pairs: list[dict[str, Any]] = []
    for name in others:
        changes = [row["nll"] - results[first][key]["nll"] for key, row in results[name].items()]
        counts = [row["tokens"] for row in results[name].values()]
        low, high = bootstrap_ratio(changes, counts)
        mean = sum(changes) / sum(counts)
        pairs.append({
            "a": first, "b": name, "n": len(changes), "nll_difference": mean, "nll_difference_ci95": (low, high),
            "perplexity_ratio": math.exp(mean), "perplexity_ratio_ci95": (math.exp(low), math.exp(high)),
            **distance_of(results[name].values()).as_dict(),
        })  # fmt: skip
    data = {
        "scores": {name: score for name, score in scores.items() if name != CONTROL},
        "pairs": [pair for pair in pairs if pair["b"] != CONTROL],
        "control": next((pair for pair in pairs if pair["b"] == CONTROL), None),
    }
    return {name: row for name, row in rows.items() if name != CONTROL}, [], data
