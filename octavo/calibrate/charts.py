"""The charts of an asset, each as PNG and SVG beside it. The same calibration draws the same bytes.

kl_by_layer    what each layer's keys and values lose in each scheme, alone        (with sensitivities only)
pareto         every sensible plan between bytes and divergence, and the chosen    (with sensitivities only)
outliers       which channels are hard to store, before and after the rotation
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.drawing import COLOURS, KINDS, LINES, MARKERS, drawn, style
from octavo.calibrate.heatmap import outliers
from octavo.calibrate.pareto import front_points, uniform_points
from octavo.kv.statistics import KVStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["CHARTS", "remove_charts", "write_charts"]

CHARTS = ("kl_by_layer", "pareto", "outliers")


def write_charts(folder: Path, about: Mapping[str, Any], statistics: "Mapping[str, Tensor]") -> tuple[str, ...]:
    """Draw what there is to draw and return the names of the files. `about` is kv_plan.json, `statistics`
    kv_params.safetensors. A KL of zero has no place on a log axis and is left out."""
    with style():
        figures = {"outliers": outliers(about, KVStatistics(statistics))}
        if about.get("sensitivity"):
            figures = {"kl_by_layer": _kl_by_layer(about), "pareto": _pareto(about), **figures}
        files = {f"{name}.{kind}": drawn(figure, kind) for name, figure in figures.items() for kind in KINDS}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tuple(files)


def remove_charts(folder: Path) -> None:
    """Remove the charts that lie in `folder`, so that none is left of another calibration."""
    for name in CHARTS:
        for kind in KINDS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)


def _kl_by_layer(about: Mapping[str, Any]) -> "Figure":
    """Two panels, K and V, one line for each scheme."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = about["sensitivity"]
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (side, title) in zip(panels, (("k", "Keys"), ("v", "Values")), strict=True):
        for number, scheme in enumerate(found["schemes"]):
            pairs = [(layer, kl) for layer, kl in enumerate(found[side][scheme]) if kl > 0]  # noise may be below 0
            colour, mark = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            layers, kls = [layer for layer, _ in pairs], [kl for _, kl in pairs]
            axes.plot(layers, kls, LINES[number % len(LINES)], color=colour, marker=mark, label=scheme)
        axes.set(title=f"{title} of this layer alone", xlabel="layer", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[0].set_ylabel("KL to the exact cache (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), title="stored as", loc="outside right upper")
    figure.suptitle(f"{about['model']}: what each layer loses, {found['tokens']:,} tokens", fontsize=11)
    return figure


def _pareto(about: Mapping[str, Any]) -> "Figure":
    """The front as steps, uniform plans as marks with names, the chosen plan as predicted and as measured."""
    from matplotlib.figure import Figure

    given = about["sensitivity"], about["shape"], about["page_tokens"]
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.subplots()
    points = [point for point in front_points(*given) if point[1] > 0]
    axes.plot(*_columns(points), "-", drawstyle="steps-post", color=COLOURS[0], label="best plans, layer by layer")
    uniform = {name: point for name, point in uniform_points(*given).items() if point[1] > 0}
    axes.plot(*_columns(uniform.values()), "s", color=COLOURS[1], label="the same in every layer (K,V)")
    for name, point in uniform.items():
        crowded = any(_is_close_to_the_right(point, other) for other in uniform.values())
        offset, align = ((6, 9), "right") if crowded else ((7, 5), "left")
        axes.annotate(name, point, xytext=offset, ha=align, textcoords="offset points", fontsize=9)
    _mark_chosen(axes, about)
    axes.set(xlabel="bytes per token", ylabel="KL to the exact cache (nats)", yscale="log")
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    axes.margins(x=0.12, y=0.1)
    axes.set_title(f"{about['model']}: bytes against divergence")
    axes.legend()
    return figure


def _is_close_to_the_right(point: tuple[float, float], other: tuple[float, float]) -> bool:
    return 1 < other[0] / point[0] < 1.15 and 0.7 < other[1] / point[1] < 1.4


def _mark_chosen(axes: "Axes", about: Mapping[str, Any]) -> None:
    size, label = about["bytes_per_token"], f"chosen ({about['kv_cache_dtype']})"
    predicted, measured = about.get("kl_predicted"), about.get("kl_measured")
    shown = [kl for kl in (predicted, measured) if kl is not None and kl > 0]
    axes.plot([size] * len(shown), shown, ":", color=COLOURS[6], linewidth=1.0)
    for kl, mark, fill, what in ((predicted, "o", "none", "predicted"), (measured, "D", COLOURS[6], "measured")):
        if kl is not None and kl > 0:
            style = {"markersize": 9, "markerfacecolor": fill, "markeredgecolor": COLOURS[6], "linestyle": "none"}
            axes.plot([size], [kl], marker=mark, label=f"{label}, {what}: {kl:.2g}", zorder=5, **style)


def _columns(points: Any) -> tuple[list[float], list[float]]:
    rows = list(points)
    return [size for size, _ in rows], [kl for _, kl in rows]
