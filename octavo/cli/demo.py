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
    """The cache that the chats show beside the baseline."""
    baseline: str = "bf16"
    max_tokens: int = 96
    questions: int = 300
    """Of MMLU's social sciences, drawn at random."""
    parts: tuple[str, ...] = ("memory", "calibrate", "eval", "chats")
    """What to run, with commas between."""
    out: str = "runs/demo"
    """Where report.html, report.md, report.json and the files of each part go."""
    json: JsonTarget = None


_DEFAULTS = DemoOptions()


def demo(options: DemoOptions = _DEFAULTS) -> None:
    """Memory by batch size, calibration, MMLU answers one by one, sixteen chats: bf16 beside folded caches."""
    check_json_target(options.json)
    if options.max_tokens < 1 or options.questions < 1:
        raise BadValue(f"max_tokens {options.max_tokens} and questions {options.questions} must be at least 1")
    folder = _folder(options.out)
    makers = {"memory": _memory, "calibrate": _calibrate, "eval": _evaluate, "chats": _chats}
    asked = [name.strip() for value in options.parts for name in value.split(",")]
    if set(asked) - set(makers):
        raise BadValue(f"parts: {', '.join(asked)} (have {', '.join(makers)})")
    found: dict[str, Any] = {}
    for name, make in makers.items():
        if name in asked:
            found[name] = make(options, folder)
            write_json(found[name], str(folder / f"{name}.json"))
    emit(found, _page(found, folder), options.json)


def _show(people: Any) -> None:
    emit({}, people, None)


def _memory(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """What a token costs by arithmetic, then caches filled and measured."""
    costs = _costs(options.model)
    from octavo.cli.memory import machine, render
    from octavo.cli.output import progress_bar
    from octavo.evals.memory_probe import ProbeOptions, run_probe
    from octavo.evals.memory_report import prove
    from octavo.memory.plots import memory_chart

    probe = ProbeOptions(
        model=options.model, dtypes=("bf16", "int8", "int8-static", "int4"), batch_sizes=(2, 4, 8, 12), tokens=512,
        fill="prefill", dtype=options.dtype,
    )  # fmt: skip
    with progress_bar() as progress:
        proof = prove(run_probe(probe, progress))
    data = {**proof.as_dict(), "machine": machine(proof.probe.device), "costs": costs}
    for ending in (".png", ".svg"):
        memory_chart(data, (folder / "memory").with_suffix(ending))
    _show(render(proof))
    return data


def _calibrate(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """A short calibration on the bundled text: what int8-static needs."""
    from octavo.calibrate.run import CalibrateOptions, calibrate
    from octavo.cli.output import progress_bar

    asked = CalibrateOptions(
        model=options.model, out=str(folder / "asset"), samples=8, seqlen=512, dtype=options.dtype, charts=False
    )
    with progress_bar() as progress:
        found = calibrate(asked, progress)
    _show(
        f"calibrated on {asked.samples} x {asked.seqlen} tokens in {sum(found.seconds.values()):.0f} s: {found.asset}"
    )
    return {"asset": str(found.asset), "seconds": found.seconds, **found.about}


def _evaluate(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """The reference document's accuracy table, on some of its questions."""
    from octavo.cli.evaluate import tables
    from octavo.cli.output import progress_bar
    from octavo.evals.run_eval import EvalOptions, report_of, run_eval

    engine: dict[str, Any] = {"dtype": options.dtype, "deterministic": True}
    dtypes = ("bf16", "int8", "int4")
    if (folder / "asset").is_dir():
        engine["kv_asset"], dtypes = str(folder / "asset"), ("bf16", "int8", "int8-static", "int4")
    asked = EvalOptions(
        model=options.model, task="mmlu:social-sciences", dtypes=dtypes, limit=options.questions,
        out=str(folder / "items"), resume=False, engine=engine,
    )  # fmt: skip
    with progress_bar() as progress:
        report = report_of(run_eval(asked, progress), 1.0)
    _show(tables(report))
    return report.as_dict()


def _chats(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Sixteen chats through a folded cache and through bf16: memory, speed, texts side by side, agreement."""
    from octavo.evals.demo import run_demo
    from octavo.evals.report import markdown

    report = run_demo(options.model, options.dtype, options.kv_cache_dtype, options.baseline, options.max_tokens)
    try:
        (folder / "chats.md").write_text(markdown(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write `{folder / 'chats.md'}`: {error.strerror}") from error
    _show(_render(report, folder))
    return report.as_dict()


def _page(found: dict[str, Any], folder: Path) -> str:
    """One page of everything; where it is."""
    from octavo.cli.env import environment
    from octavo.evals.page import PageOptions, write_report

    parts = {f"{name}.json": data for name, data in found.items() if name != "calibrate"}
    if not parts:
        return f"nothing to report; files: {folder}"
    options = PageOptions(
        title="Octavo: what a folded cache costs", commands=("octavo demo",), environment=environment()
    )
    return f"report: {write_report(parts, folder, options)}"


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
        f"texts: {folder / 'chats.md'}"
    )
    return Group(texts, summary, closing)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _PREVIEW_CHARACTERS else flat[: _PREVIEW_CHARACTERS - 1] + "…"
