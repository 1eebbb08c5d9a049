"""A picture of which channels are hard to store: the largest number of each over its head's root mean square."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.calibrate.outliers import peaks
from octavo.kv.schemes import SCHEMES
from octavo.kv.statistics import KVStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["outliers", "treatments"]

_MOST_COLUMNS = 1024
_TITLES = {"biased": "with the model's bias", "plain": "before the rotation", "turned": "after the rotation"}
_SIDES = {"k": "Keys", "v": "Values"}
_MARKS = {"raised": "^", "balanced": "s", "bias-free": "o"}


def outliers(about: Mapping[str, Any], statistics: KVStatistics) -> "Figure":
    """Heat maps, layer by (head, channel), of K and V as they come and as they are after the rotation: one log colour
    scale for all. Marks at the right edge, and a line below, name the layers that were treated."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers, heads = about["shape"]["layers"], about["shape"]["kv_heads"]
    images = _images(statistics, layers)
    columns = [what for what in _TITLES if ("k", what) in images]
    scale = LogNorm(vmin=1.0, vmax=max(8.0, *(float(image.max()) for image in images.values())))
    size = 1.2 + 3.2 * len(columns), 2.8 + 0.07 * min(2 * layers, 80)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False)
    for row, side in zip(panels, _SIDES, strict=True):
        for axes, what in zip(row, columns, strict=True):
            axes.set_axis_off()
            if (side, what) in images:
                _draw(axes, images[side, what], heads, scale)
                axes.set_title(f"{_SIDES[side]} {_TITLES[what]}", fontsize=9.5)
        next(axes for axes in row if axes.images).set_ylabel("layer")
        _mark(row[-1], heads, layers, treatments(about, side))
    for axes in (axes for axes in panels[-1] if axes.images):
        axes.set_xlabel("KV head (its channels side by side)")
    bar = figure.colorbar(panels[0][0].images[0], ax=panels, shrink=0.9, aspect=35)
    bar.set_label("largest size / root mean square of the head")
    bar.set_ticks(ticks := [2**n for n in range(24) if 2**n <= float(scale.vmax or 1)], labels=[str(t) for t in ticks])
    bar.minorticks_off()
    figure.suptitle(f"{about['model']}: channels that stand out", fontsize=11)
    figure.supxlabel(_said(about, layers, int(15 * size[0])), fontsize=9)
    return figure


def _images(statistics: KVStatistics, layers: int) -> dict[tuple[str, str], np.ndarray]:
    """(side, what) -> `[layers, columns]`."""
    rows = {side: [peaks(statistics, layer, side) for layer in range(layers)] for side in _SIDES}
    return {
        (side, what): np.stack([_widest(row[what].flatten().numpy()) for row in rows[side]])
        for side in _SIDES
        for what in _TITLES
        if what in rows[side][0]
    }


def _widest(row: np.ndarray) -> np.ndarray:
    """No more columns than a screen shows: of neighbours the largest, so that no channel is lost in drawing."""
    step = -(-len(row) // _MOST_COLUMNS)
    padded = np.pad(row, (0, -len(row) % step), mode="edge")
    return np.maximum(padded.reshape(-1, step).max(1), 1.0)


def _draw(axes: "Axes", image: np.ndarray, heads: int, scale: Any) -> None:
    """The image and its ticks: heads along, layers down."""
    from matplotlib.ticker import MaxNLocator

    axes.set_axis_on()
    axes.grid(False)
    where = (0, heads, len(image) - 0.5, -0.5)
    axes.imshow(image, norm=scale, cmap="magma_r", aspect="auto", interpolation="nearest", extent=where)
    shown = range(0, heads, -(-heads // 8))
    axes.set_xticks([head + 0.5 for head in shown], [str(head) for head in shown])
    axes.tick_params(axis="x", length=0)
    for head in range(1, heads):
        axes.axvline(head, color="#666666", linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def treatments(about: Mapping[str, Any], side: str) -> dict[str, tuple[int, ...]]:
    """What was done -> the layers it was done in. Raised: stored in more bytes than the side's smallest scheme."""
    width = about["shape"]["head_dim"]
    plans = [layer[side] for layer in about["layers"]]
    sizes = [SCHEMES[plan["scheme"]].vector_bytes(width) for plan in plans]
    named = {
        "raised": [size > min(sizes) for size in sizes],
        "balanced": [bool({"balance", "smooth"} & set(plan["transforms"])) for plan in plans],
        "bias-free": ["bias-free" in plan["transforms"] for plan in plans],
    }
    return {what: tuple(n for n, done in enumerate(flags) if done) for what, flags in named.items() if any(flags)}


def _mark(axes: "Axes", heads: int, layers: int, done: Mapping[str, tuple[int, ...]]) -> None:
    """A mark beside each treated layer, one column for each treatment; none for what was done in all of them."""
    some = {what: which for what, which in done.items() if len(which) < layers}
    for number, (what, which) in enumerate(some.items()):
        where = [heads * (1.03 + 0.045 * number)] * len(which)
        axes.plot(where, which, _MARKS[what], color="black", markersize=3.5, clip_on=False, linestyle="none")
    axes.set_xlim(0, heads)
    axes.set_ylim(layers - 0.5, -0.5)


def _said(about: Mapping[str, Any], layers: int, width: int) -> str:
    """A line, or more, for each side: what was done in which layers."""
    marks = {"^": "▲", "s": "■", "o": "●"}
    lines = []
    for side, title in _SIDES.items():
        parts = []
        for what, which in treatments(about, side).items():
            schemes = sorted({about["layers"][n][side]["scheme"] for n in which}) if what == "raised" else []
            to = f" to {' or '.join(schemes)}" if schemes else ""
            if len(which) == layers:
                parts.append(f"{what}{to} in all layers")
            else:
                parts.append(f"{marks[_MARKS[what]]} {what}{to} in {_ranges(which)}")
        rotated = all("rotation" in layer[side]["transforms"] for layer in about["layers"])
        said = "; ".join(parts) or ("nothing but the rotation" if rotated else "untreated")
        lines += textwrap.wrap(f"{title}: {said}", width)
    return "\n".join(lines)


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7, 9-10`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
