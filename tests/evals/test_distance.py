"""How far distributions are apart: by hand, from tensors to the report."""

import json
import math

import numpy as np
import pytest
import torch

from octavo.evals.distance import distance_of
from octavo.evals.reports import perplexity_report
from octavo.evals.scorer import set_beside
from octavo.evals.sequences import Scored
from octavo.evals.statistics import bootstrap_mean, bootstrap_ratio


def test_a_record_says_what_the_tensors_were():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[0.3, 0.6, 0.1], [0.35, 0.4, 0.25], [0.5, 0.25, 0.25]]).log()
    found = set_beside([p[:2], p[2:]], [q[:2], q[2:]])
    sequences = [Scored((1, 2, 3, 4), 2, (((0, 1),), ((0, 2),))), Scored((1, 2, 9), 2, (((1, 0),),))]
    record = found.as_record(sequences)
    kls = [0.3 * math.log(2), 0.4 * math.log(8 / 7) + 0.35 * math.log(7 / 8), 0.0]
    assert record["kl_positions"] == pytest.approx(kls, abs=1e-7) and record["kl"] == pytest.approx(sum(kls) / 3)
    assert record["kl_spans"] == [[3, 2], [3, 1]]  # row `first` is the distribution of token first + 1
    assert record["same_top"] == pytest.approx(1 / 3)
    assert (record["confident"], record["confident_same_top"]) == (2, 1)
    assert set_beside([], []).as_record([]) == {}


def test_statistics_of_all_positions():
    rows = [
        {"kl_positions": [0.0, 0.2], "kl_spans": [[10, 2]], "same_top": 1.0, "confident": 2, "confident_same_top": 2},
        {"kl_positions": [0.1] * 4 + [0.7] * 4, "kl_spans": [[60, 4], [64, 4]], "same_top": 0.5, "confident": 6,
         "confident_same_top": 3},
        {"kl_positions": [1.0], "kl_spans": [[300, 1]], "same_top": 0.0, "confident": 0, "confident_same_top": 0},
    ]  # fmt: skip
    found = distance_of(rows)
    everything = [0.0, 0.2, *[0.1] * 4, *[0.7] * 4, 1.0]
    assert (found.kl_tokens, found.kl_max) == (11, 1.0)
    assert found.kl_mean == pytest.approx(sum(everything) / 11)
    assert found.kl_median == pytest.approx(0.2)
    assert found.kl_p99 == pytest.approx(np.quantile(everything, 0.99))
    assert found.kl_p99 < found.kl_p999 < found.kl_max
    assert [(one.begin, one.end, one.tokens) for one in found.kl_by_position] == [
        (0, 64, 6),
        (64, 128, 4),
        (256, 512, 1),
    ]
    assert [one.mean for one in found.kl_by_position] == pytest.approx([0.1, 0.7, 1.0])
    assert found.same_top == pytest.approx((2 + 4 + 0) / 11)
    assert (found.same_top_confident, found.confident_tokens) == (pytest.approx(5 / 8), 8)
    assert json.loads(json.dumps(found.as_dict()))["kl_by_position"][1] == {
        "begin": 64, "end": 128, "tokens": 4, "mean": pytest.approx(0.7)
    }  # fmt: skip


def test_rows_that_say_little_and_nothing():
    assert distance_of([{"kl": 0.1}, {"kl": 0.3}]).kl_mean == pytest.approx(0.2)
    assert distance_of([{"kl": 0.1}]).kl_by_position == ()
    nothing = distance_of([{"id": "a"}])
    assert nothing.kl_mean is nothing.kl_mean_ci95 is nothing.same_top is nothing.same_top_confident is None


def test_intervals_resample_items_not_positions():
    """Positions of an item are alike here: ten copies of each tell no more than one."""
    generator = np.random.default_rng(0)
    values = generator.lognormal(-6, 1, size=100)
    once = distance_of([{"kl_positions": [value]} for value in values])
    copied = distance_of([{"kl_positions": [value] * 10} for value in values])
    assert copied.kl_mean_ci95 == pytest.approx(once.kl_mean_ci95)
    assert once.kl_mean_ci95 == bootstrap_mean(list(values))
    assert once.kl_mean_ci95[0] < once.kl_mean < once.kl_mean_ci95[1]
    spread = distance_of([{"kl_positions": list(part)} for part in np.tile(values, 10).reshape(100, 10)])
    assert np.diff(spread.kl_mean_ci95) < 0.5 * np.diff(once.kl_mean_ci95)


def test_a_ratio_is_covered():
    """The interval of sum / sum, of items of many sizes, holds the true mean in about 95 % of 200 draws."""
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        counts = generator.integers(1, 40, size=80)
        centres = generator.normal(1.0, 0.5, size=80)
        totals = counts * centres + generator.normal(0, 1, size=80) * np.sqrt(counts)
        low, high = bootstrap_ratio(list(totals), list(counts), draws=200)
        held += low <= 1.0 <= high
    assert 178 <= held <= 200


def test_perplexity_report(tmp_path):
    """Windows of 100, 100 and 20 tokens: every token counts as much as another, and b is paired with a."""
    a = [("t/0", 300.0, 100), ("t/1", 200.0, 100), ("t/2", 100.0, 20)]
    extra = {"t/0": 1.0, "t/1": 3.0, "t/2": -1.0}
    files = {}
    for name in ("bf16", "int8"):
        rows = [
            {"id": key, "nll": nll + (extra[key] if name == "int8" else 0), "tokens": tokens, "top_hits": tokens // 2}
            for key, nll, tokens in a
        ]
        if name == "int8":
            rows = [row | {"kl_positions": [0.01] * row["tokens"], "kl_spans": [[1, row["tokens"]]]} for row in rows]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    scores, _, data = perplexity_report(files, 1.0)
    assert set(scores) == {"bf16", "int8"} and data["control"] is None
    assert data["scores"]["bf16"]["perplexity"] == pytest.approx(math.exp(600 / 220))
    assert data["scores"]["int8"]["perplexity"] == pytest.approx(math.exp(603 / 220))
    assert data["scores"]["bf16"]["next_token_accuracy"] == 0.5
    [pair] = data["pairs"]
    assert pair["nll_difference"] == pytest.approx(3 / 220)
    assert pair["perplexity_ratio"] == pytest.approx(math.exp(603 / 220) / math.exp(600 / 220))
    low, high = pair["nll_difference_ci95"]
    # resampled windows: at worst the last one three times, at best the second one three times
    assert -1 / 20 <= low < 3 / 220 < high <= 3 / 100
    assert high - low < 0.1 < np.diff(data["scores"]["bf16"]["ci95"])  # what is hard for both cancels
    assert (pair["kl_mean"], pair["kl_tokens"]) == (pytest.approx(0.01), 220)
    assert [(one["begin"], one["end"], one["tokens"]) for one in pair["kl_by_position"]] == [
        (0, 64, 63 + 63 + 20), (64, 128, 37 + 37)
    ]  # fmt: skip
