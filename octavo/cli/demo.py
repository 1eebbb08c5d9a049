"""The verb `demo`: the main job on the packaged default model, start to end."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from octavo.base.errors import BadValue, UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit, write_json

if TYPE_CHECKING:
    from octavo.evals.demo import DemoReport

__all__ = ["DemoOptions", "demo"]

_PREVIEW_CHARACTERS = 160


@Parameter(name="*")
@dataclass(frozen=True)
class DemoOptions:
    model: str = "smollm2"
    dtype: str = "auto"
    kv_cache_dtype: str = "int8"
    """The cache that is shown beside the baseline."""
    baseline: str = "bf16"
    max_tokens: int = 96
    out: str = "runs/demo"
    """Where report.json and report.md go."""
    json: JsonTarget = None


_DEFAULTS = DemoOptions()


def demo(options: DemoOptions = _DEFAULTS) -> None:
    """Sixteen chats through a folded cache and through bf16: memory, speed, texts side by side, agreement."""
    check_json_target(options.json)
    if options.max_tokens < 1:
        raise BadValue(f"max_tokens must be at least 1, not {options.max_tokens}")
    folder = _folder(options.out)
    costs = _costs(options.model)
    from octavo.evals.demo import run_demo
    from octavo.evals.report import markdown

    report = run_demo(options.model, options.dtype, options.kv_cache_dtype, options.baseline, options.max_tokens)
    data = {"memory": costs, **report.as_dict()}
    write_json(data, str(folder / "report.json"))
    try:
        (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write `{folder / 'report.md'}`: {error.strerror}") from error
    emit(data, _render(report, folder), options.json)


def _costs(model: str) -> dict[str, Any]:
    """What a token costs in each scheme, from the header alone; printed before anything is loaded."""
    from octavo.checkpoint import open_checkpoint
    from octavo.memory.report import PlanQuestion, memory_report
    from octavo.memory.tables import render

    source = open_checkpoint(model)
    question = PlanQuestion(memory_bytes=4 << 30, dtypes=("bf16", "int8", "int8,int4", "int4"))
    costs = memory_report(source.name, source.spec, question, source.weight_bytes)
    emit({}, render(costs), None)
    return costs.as_dict()


def _folder(out: str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder `{out}`: {error.strerror}") from error
    return folder


def _render(report: "DemoReport", folder: Path) -> Any:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from octavo.evals.report import summary_rows

    summary = Table("", report.baseline.dtype, report.folded.dtype, title=f"{report.model}: two caches")
    for row in summary_rows(report):
        summary.add_row(*row)
    texts = Table(
        "prompt", report.baseline.dtype, report.folded.dtype, "same top", title="greedy answers", show_lines=True
    )
    for answer in report.answers:
        folded = "(identical)" if answer.identical else _shorten(answer.folded)
        texts.add_row(
            escape(answer.prompt), escape(_shorten(answer.baseline)), escape(folded), f"{answer.same_top:.1%}"
        )
    found, control = report.divergence, report.control
    closing = (
        f"same top token at {found.same_top:.2%} of {found.tokens} positions, mean KL {found.kl_mean:.2e} nats; "
        f"{report.identical_answers} of {len(report.answers)} answers identical\n"
        f"control, {report.baseline.dtype} against an exact cache: same top {control.same_top:.2%}, mean KL "
        f"{control.kl_mean:.2e} (computing in {report.compute_dtype} makes that much of any difference)\n"
        f"report: {folder / 'report.md'}, {folder / 'report.json'}"
    )
    return Group(texts, summary, closing)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _PREVIEW_CHARACTERS else flat[: _PREVIEW_CHARACTERS - 1] + "…"
