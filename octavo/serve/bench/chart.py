"""The chart of `octavo bench serve`: throughput, TTFT and ITL against concurrency, a line for each server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.drawing import COLOURS, KINDS, MARKERS, drawn, label, style
from octavo.base.errors import BadValue, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bench_chart", "bench_figure"]

_PANELS = (
    ("output throughput (tokens/s)", (("output_throughput", "-", ""),)),
    ("time to first token (ms)", (("p50_ttft_ms", "-", " p50"), ("p99_ttft_ms", "--", " p99"))),
    ("inter-token latency (ms)", (("p50_itl_ms", "-", " p50"), ("p99_itl_ms", "--", " p99"))),
)
"""title -> (key, line, what is added to the server's name)"""


def bench_chart(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw into `path`, a .png or .svg file. Raises UsageError."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise BadValue(f"chart: `{path}` ends in `{path.suffix}` (have {', '.join(f'.{kind}' for kind in KINDS)})")
    with style():
        content = drawn(bench_figure(runs), kind)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror}") from error


def bench_figure(runs: Sequence[Mapping[str, Any]]) -> "Figure":
    """Three panels with one x axis: requests at once, or requests a second where no limit was set. To be drawn inside
    `style()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        _panel(axes, runs, lines)
        axes.set(title=title, xlabel=_x_of(runs)[1])
        axes.set_ylim(bottom=0)
    handles, names = figure.axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    return figure


def _x_of(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The key of the x axis, and its name."""
    if all(run["max_concurrency"] for run in runs):
        return "max_concurrency", "requests at once"
    if all(run["request_rate"] for run in runs):
        return "request_rate", "requests a second"
    return "num_prompts", "requests, all at once"


def _panel(axes: "Axes", runs: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    key, _ = _x_of(runs)
    for number, name in enumerate(dict.fromkeys(run["label"] for run in runs)):
        own = [run for run in runs if run["label"] == name]
        for value, line, suffix in lines:
            at = [(run[key], run[value]) for run in own if run[value] is not None]
            axes.plot(
                [x for x, _ in at], [y for _, y in at], color=COLOURS[number % len(COLOURS)], linestyle=line,
                marker=MARKERS[number % len(MARKERS)], label=label(name) + suffix,
            )  # fmt: skip
    ticks = sorted({run[key] for run in runs})
    if len(ticks) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
