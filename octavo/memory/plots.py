"""The chart of `octavo memory`: memory against the batch, measured points, lines, and where lines cross."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.drawing import COLOURS, KINDS, LINES, MARKERS, drawn, label, style
from octavo.base.errors import BadValue, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["memory_chart", "memory_figure", "total_mib"]

_GIB = 1024
"""MiB"""


def total_mib(row: Mapping[str, Any]) -> float:
    """What is measured of a row: device memory, or that of the process where there is no device."""
    return row["process_mib"] if row.get("device_mib") is None else row["device_mib"]


def memory_chart(data: Mapping[str, Any], path: Path) -> None:
    """Draw the JSON of `octavo memory` into `path`, a .png or .svg file. Raises UsageError."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise BadValue(f"chart: `{path}` ends in `{path.suffix}` (have {', '.join(f'.{kind}' for kind in KINDS)})")
    with style():
        content = drawn(memory_figure(data), kind)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror}") from error


def memory_figure(data: Mapping[str, Any], size: tuple[float, float] = (7.0, 4.4)) -> "Figure":
    """Points are measured totals; a full line is fitted to them, a broken one is arithmetic. A cache keeps its colour
    whatever the weights are. To be drawn inside `style()`. `size`: inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    rows, caches = data["rows"], list(dict.fromkeys(row["dtype"] for row in data["rows"]))
    last = max((row["batch"] for row in [*rows, *data.get("skipped", [])]), default=1) * 1.04
    for number, cache in enumerate(caches):
        _points(axes, [row for row in rows if row["dtype"] == cache], number)
    for name, line in data.get("lines", {}).items():
        _line(axes, name, line, (_number(line, caches, data.get("law", {})), last))
    _mark_crossings(axes, data, last)
    where = "device" if any(row.get("device_mib") is not None for row in rows) else "process"
    axes.set(xlabel=f"batch (sequences of {data['tokens']:,} tokens)", ylabel=f"memory of the {where} (GiB)")
    axes.set(xlim=(0, last), title=f"{label(data['model'])}: memory against batch")
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.08)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 8, 10]))
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if size[0] >= 6 else 1
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, handlelength=3.2)
    return figure


def _points(axes: "Axes", rows: Sequence[Mapping[str, Any]], number: int) -> None:
    look: dict[str, Any] = {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": "none",
    }
    axes.plot([row["batch"] for row in rows], [total_mib(row) / _GIB for row in rows], **look, markersize=5.5)


def _number(line: Mapping[str, Any], caches: Sequence[str], law: Mapping[str, Any]) -> int:
    """Of the cache that this line is about: it has the slope of that cache's law. Else a number of its own."""
    slopes = [law[cache]["slope_mib"] if cache in law else None for cache in caches]
    return slopes.index(line["slope_mib"]) if line["slope_mib"] in slopes else len(caches)


def _line(axes: "Axes", name: str, line: Mapping[str, Any], at: tuple[int, float]) -> None:
    """`at`: number of the cache, and where the line ends."""
    number, last = at
    begin, end = line["intercept_mib"] / _GIB, (line["intercept_mib"] + line["slope_mib"] * last) / _GIB
    colour = COLOURS[number % len(COLOURS)]
    measured = bool(line.get("measured"))
    look = "-" if measured else LINES[1 + number % (len(LINES) - 1)]
    axes.plot([0, last], [begin, end], look, color=colour, linewidth=1.4 if measured else 1.1)
    mark = MARKERS[number % len(MARKERS)] if measured else ""
    axes.plot([], [], look, color=colour, marker=mark, label=label(name) + ("" if measured else " (arithmetic)"))


def _mark_crossings(axes: "Axes", data: Mapping[str, Any], last: float) -> None:
    """A ring at each crossing in sight, and its batch at the foot of a line down from it."""
    lines, seen = data.get("lines", {}), []
    for crossing in data.get("crossings", []):
        batch, line = crossing["batch"], lines.get(crossing["first"])
        if line is not None and 0 <= batch <= last:
            seen.append((batch, (line["intercept_mib"] + line["slope_mib"] * batch) / _GIB))
    for batch, height in seen:
        axes.plot([batch, batch], [0, height], ":", color="#000000", linewidth=0.8)
        axes.annotate(f"{batch:.1f}", (batch, 0), xytext=(3, 4), textcoords="offset points", fontsize=8.5)
    if seen:
        ring: dict[str, Any] = {
            "markersize": 10,
            "markerfacecolor": "none",
            "markeredgecolor": "#000000",
            "linestyle": "none",
        }
        axes.plot(
            [batch for batch, _ in seen],
            [height for _, height in seen],
            "o",
            **ring,
            zorder=5,
            label="the same memory at this batch",
        )
