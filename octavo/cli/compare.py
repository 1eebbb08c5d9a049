"""The verb `compare`: two result files of the same items."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from octavo.base.errors import BadValue, CheckFailed
from octavo.cli.output import JsonTarget, check_json_target, emit

if TYPE_CHECKING:
    from octavo.evals.compare import Comparison

__all__ = ["CompareFlags", "compare"]


@Parameter(name="*")
@dataclass(frozen=True)
class CompareFlags:
    a: str
    """The baseline's result file (JSON lines, as `octavo eval` writes them)."""
    b: str
    """The other one's."""
    _: KW_ONLY
    margin: float = 1.0
    """Points of accuracy that b may lose."""
    require: bool = False
    """Exit code 1 unless a drop below the margin is shown."""
    json: JsonTarget = None


def compare(flags: CompareFlags) -> None:
    """Score two result files, count what changed, and say what that proves."""
    from octavo.evals.compare import compare as run
    from octavo.evals.compare import read_results, score_of

    check_json_target(flags.json)
    if not 0 < flags.margin <= 100:
        raise BadValue(f"margin: {flags.margin} points (above 0, up to 100)")
    a, b = read_results(Path(flags.a)), read_results(Path(flags.b))
    found = run(a, b, (flags.a, flags.b), flags.margin)
    scores = {flags.a: score_of(a), flags.b: score_of(b)}
    data = {"scores": {name: vars(score) for name, score in scores.items()}, "pairs": [found.as_dict()]}
    emit(data, _table(found, scores), flags.json)
    if flags.require and not found.equivalent:
        raise CheckFailed(found.verdict, hint="more items give a sharper answer")


def _table(found: "Comparison", scores: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("", "a", "b")
    for column in table.columns[1:]:
        column.justify = "right"
    a, b = scores[found.a], scores[found.b]
    table.add_row("right", f"{a.accuracy:.2%}", f"{b.accuracy:.2%}")
    table.add_row("95 %", *(f"{score.ci95[0]:.2%} to {score.ci95[1]:.2%}" for score in (a, b)))
    table.add_row("most frequent answers", *(_answers(score.answers) for score in (a, b)))
    low, high = found.ci95
    lines = [
        f"{found.n} items; b - a = {found.difference:+.2f} points (95 %: {low:+.2f} to {high:+.2f})",
        f"{found.changed} answers changed: {found.gained} gained, {found.lost} lost, {found.changed_wrong} from one "
        f"wrong to another; exact McNemar p = {found.mcnemar_p:.2g}",
        found.verdict,
    ]
    return Group(table, *lines)


def _answers(answers: dict[str, int]) -> str:
    total = sum(answers.values())
    return ", ".join(f"{label} {count / total:.0%}" for label, count in list(answers.items())[:4])
