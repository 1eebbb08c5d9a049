"""Two result files of the same items: what changed, what that proves, and what it does not."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.distance import Distance, distance_of
from octavo.evals.statistics import mcnemar, needed_items, paired_interval, wilson
from octavo.evals.tasks.lines import open_lines

__all__ = ["Comparison", "Score", "compare", "read_results", "score_of"]

Results = Mapping[str, Mapping[str, Any]]
_SHOWN = 5
_UNSEEN = 3
"""items that could differ, with 95 % confidence, where none of n did (the rule of three)"""
_ANSWERS = 26
"""as many as a question has letters; generated answers may be thousands"""


@dataclass(frozen=True)
class Score:
    """Share of items that are right, with its 95 % interval; and the 26 most frequent answers, with how often."""

    accuracy: float
    ci95: tuple[float, float]
    n: int
    answers: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """`b` beside `a`. `gained`: a wrong, b right; `lost`: the reverse; `changed_wrong`: both wrong, another answer.
    `difference` and `ci95` are points (per cent) of accuracy, b - a. `distance` is what b's file says of b beside the
    baseline of its run; empty where a is not that baseline, which shows by a file that speaks of a baseline itself."""

    a: str
    b: str
    n: int
    gained: int
    lost: int
    changed_wrong: int
    mcnemar_p: float
    difference: float
    ci95: tuple[float, float]
    distance: Distance
    margin: float
    drop_at_most: float
    """points: with 95 % confidence the drop is below this"""
    equivalent: bool
    needed: int
    """items that the claim of `margin` would have needed, at 80 % power, with as many changes as were seen"""

    @property
    def changed(self) -> int:
        return self.gained + self.lost + self.changed_wrong

    @property
    def verdict(self) -> str:
        if self.equivalent:
            return f"the drop is below {self.margin:g} points with 95 % confidence"
        return (
            f"not shown that the drop is below {self.margin:g} points: it is below {self.drop_at_most:.2f} with 95 % "
            f"confidence ({self.n} items; about {self.needed} are needed for {self.margin:g})"
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, with the fields of `distance` among the others."""
        own = {name: value for name, value in vars(self).items() if name != "distance"}
        return {**own, **self.distance.as_dict(), "changed": self.changed, "verdict": self.verdict}


def read_results(path: Path) -> Results:
    """By id. Raises UsageError for what is no result file, naming the line."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in open_lines(path):
        where = f"{path}, line {number}"
        for name, kind in (("id", str), ("answer", str), ("correct", bool)):
            if not isinstance(row.get(name), kind):
                raise UsageError(f"{where}: `{name}` is {row.get(name)!r}", hint="octavo eval writes such files")
        options = row.get("logprobs")
        if options is not None:
            if not isinstance(options, dict) or row["answer"] not in options:
                raise UsageError(f"{where}: the answer {row['answer']!r} is none of its options")
            if not all(isinstance(value, int | float) and not math.isnan(value) for value in options.values()):
                raise UsageError(f"{where}: log-probabilities that are no numbers")
        if row["id"] in found:
            raise UsageError(f"{where}: the item {row['id']} is there twice")
        found[row["id"]] = row
    if not found:
        raise UsageError(f"{path} has no items")
    return found


def score_of(results: Results) -> Score:
    right, n = sum(bool(row["correct"]) for row in results.values()), len(results)
    answers = Counter(row["answer"] for row in results.values()).most_common(_ANSWERS)
    return Score(right / n, wilson(right, n), n, dict(answers))


def compare(a: Results, b: Results, names: tuple[str, str], margin: float = 1.0) -> Comparison:
    """Raises UsageError where the two do not cover the same items."""
    if a.keys() != b.keys():
        only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        raise UsageError(
            f"the two runs cover different items: {len(only_a)} only in {names[0]} ({', '.join(only_a[:_SHOWN])}), "
            f"{len(only_b)} only in {names[1]} ({', '.join(only_b[:_SHOWN])})",
            hint="run both to the end with the same --task, --limit and --seed",
        )
    pairs = [(a[key], b[key]) for key in a]
    cells = Counter((bool(x["correct"]), bool(y["correct"])) for x, y in pairs)
    lost, gained = cells[True, False], cells[False, True]
    wrong = sum(not x["correct"] and not y["correct"] and x["answer"] != y["answer"] for x, y in pairs)
    counts = (cells[True, True], lost, gained, cells[False, False])
    n = len(pairs)
    low, high = paired_interval(*counts)
    drop = -100 * paired_interval(*counts, z=1.6448536269514722)[0]  # one-sided 95 %
    distance = Distance() if any("kl" in x for x, _ in pairs) else distance_of(y for _, y in pairs)
    return Comparison(
        names[0], names[1], n, gained, lost, wrong, mcnemar(gained, lost), 100 * (gained - lost) / n,
        (100 * low, 100 * high), distance, margin, drop, drop < margin,
        needed_items(max(gained + lost, _UNSEEN) / n, margin / 100),
    )  # fmt: skip
