"""A demo report as Markdown: the same numbers as its JSON, laid out for people."""

from octavo.base.units import format_bytes
from octavo.evals.demo import CacheRun, DemoReport

__all__ = ["markdown", "summary_rows"]


def summary_rows(report: DemoReport) -> list[tuple[str, str, str]]:
    """(what, baseline, folded), ready to print."""
    base, folded = report.baseline, report.folded

    def row(name: str, show) -> tuple[str, str, str]:
        return name, show(base), show(folded)

    return [
        row("plan", lambda run: run.plan),
        row("bytes per token", lambda run: f"{run.bytes_per_token:.0f}"),
        row("allocated", lambda run: f"{format_bytes(run.allocated_bytes)} for {run.capacity_tokens} tokens"),
        row("in use at the peak", lambda run: f"{format_bytes(run.peak_bytes)} ({run.peak_pages} pages)"),
        row("output tokens", lambda run: f"{run.output_tokens} in {run.seconds:.1f} s"),
        row("output tokens/s", lambda run: f"{run.output_tokens_per_second:.0f}"),
    ]


def markdown(report: DemoReport) -> str:
    """The whole report: costs, agreement, and every pair of texts."""
    base, folded = report.baseline, report.folded
    found, control = report.divergence, report.control
    lines = [
        f"# {report.model}: cache {folded.dtype} beside {base.dtype}",
        "",
        f"{report.parameters:,} parameters on {report.device}, computed in {report.compute_dtype}, "
        f"kernels {folded.kernels}; loaded in {report.load_seconds:.1f} s.",
        "",
        f"| | {base.dtype} | {folded.dtype} |",
        "|---|---:|---:|",
        *(f"| {name} | {left} | {right} |" for name, left, right in summary_rows(report)),
        "",
        f"The {folded.dtype} cache takes {_ratio(base, folded):.2f} times fewer bytes.",
        "",
        "## Agreement",
        "",
        f"At the {found.tokens} positions of the {base.dtype} answers, given the same tokens, both rank the same token "
        f"first at {found.same_top:.2%}. KL({base.dtype} || {folded.dtype}): mean {found.kl_mean:.2e}, median "
        f"{found.kl_median:.2e}, 99 % {found.kl_p99:.2e}, largest {found.kl_max:.2e} nats.",
        "",
        f"Control: {base.dtype} against an exact cache (fp32 codes), same tokens: same top {control.same_top:.2%}, "
        f"mean KL {control.kl_mean:.2e}. Computing in {report.compute_dtype} makes that much of any difference, "
        "however small.",
        "",
        f"{report.identical_answers} of {len(report.answers)} greedy answers are identical to the last token. After "
        "one token that differs a greedy text goes its own way, so this count says less than the line above.",
        "",
        "## Texts",
    ]
    for answer in report.answers:
        lines += ["", f"**{answer.prompt}** (same top {answer.same_top:.1%}, KL {answer.kl_mean:.1e})", ""]
        lines += [f"- {base.dtype}: {_one_line(answer.baseline)}"]
        lines += [f"- {folded.dtype}: {'identical' if answer.identical else _one_line(answer.folded)}"]
    return "\n".join(lines) + "\n"


def _ratio(base: CacheRun, folded: CacheRun) -> float:
    return base.allocated_bytes / folded.allocated_bytes


def _one_line(text: str) -> str:
    return " / ".join(part.strip() for part in text.splitlines() if part.strip())
