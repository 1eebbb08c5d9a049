"""Charts as SVG that stands inside the page: no namespaces, ids of their own, colours by variables of the style sheet.

So one drawing serves light, dark and paper: black is the page's ink, white its paper, the others have a shade for each.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo.base.drawing import COLOURS, GRID, LINES, MARKERS, clean, drawn, label, style
from octavo.evals.page.blocks import Chart
from octavo.evals.reports import CONTROL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["difference_figure", "flips_figure", "inline_svg", "kl_figure", "page_chart"]

_WIDTH = 4.6
"""inches of a chart on the page: its text is still read on a phone"""
_VARIABLES = {"#000000": "currentColor", "#ffffff": "var(--paper)", GRID.lower(): "var(--grid)"} | {
    colour.lower(): f"var(--c{number})" for number, colour in enumerate(COLOURS[:-1])
}
_COLOUR = re.compile("|".join(_VARIABLES), re.IGNORECASE)
_REFERENCE = re.compile(r"url\(#")
Pairs = Sequence[Mapping[str, Any]]


def page_chart(name: str, title: str, caption: str, draw: Callable[[], "Figure"]) -> Chart:
    """`title` is what a screen reader says in the chart's place."""
    with style():
        import matplotlib

        matplotlib.rcParams["svg.fonttype"] = "none"
        content = drawn(draw(), "svg", transparent=True)
    return Chart(name, caption, inline_svg(content, name, title))


def inline_svg(content: bytes, name: str, title: str) -> str:
    """A file of matplotlib as an element of HTML. `name` goes before every id."""
    root = ElementTree.fromstring(content)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title"}
    heading = ElementTree.Element("title", {"id": f"{name}-title"})
    heading.text = clean(title)
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(key: str) -> str:
    return key.rpartition("}")[2]


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = _REFERENCE.sub(f"url(#{name}-", value)
    return (
        _COLOUR.sub(lambda found: _VARIABLES[found[0].lower()], value) if key in ("style", "fill", "stroke") else value
    )


def difference_figure(pairs: Pairs, field: str, ci: str, axis: str) -> "Figure":
    """A row for each pair: `field` as a point, `ci` as its interval; full where a drop below the margin is shown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 1.15 + 0.42 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
        value, (low, high) = pair[field], pair[ci]
        colour = COLOURS[0] if pair["b"] != CONTROL else COLOURS[-1]
        axes.plot([low, high], [row, row], "-" if pair["b"] != CONTROL else ":", color=colour, linewidth=2)
        axes.plot([low, high], [row, row], "|", color=colour, markersize=8, linestyle="none")
        face = colour if pair.get("equivalent") else "#ffffff"
        marker = "o" if pair["b"] != CONTROL else "D"
        axes.plot([value], [row], marker, color=colour, markerfacecolor=face, markersize=7)
    axes.axvline(0, color="#000000", linewidth=0.9)
    margins = {pair["margin"] for pair in pairs if pair.get("margin") is not None}
    for margin in margins:
        axes.axvline(-margin, color=COLOURS[1], linestyle="--", linewidth=1.2)
        place: dict[str, Any] = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate("margin", (-margin, -0.68), fontsize=8.5, **place)
    axes.set_yticks(range(len(pairs)), [label(pair["b"], 28) for pair in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.75)
    axes.set_xlabel(axis)
    axes.grid(visible=False, axis="y")
    return figure


def flips_figure(pairs: Pairs) -> "Figure":
    """Stacked bars of answers that changed; each part has a hatch of its own, and its number where there is room."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    parts = (("gained", "gained", COLOURS[2], ""), ("lost", "lost", COLOURS[1], "//"),
             ("changed_wrong", "another wrong answer", COLOURS[5], ".."))  # fmt: skip
    widest = max([sum(pair[key] for key, *_ in parts) for pair in pairs] + [1])
    figure = Figure(figsize=(_WIDTH, 1.35 + 0.42 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
        begin = 0
        for key, name, colour, hatch in parts:
            axes.barh(
                row, pair[key], left=begin, height=0.62, color=colour, hatch=hatch, edgecolor="#ffffff",
                linewidth=0.8, label=name if row == 0 else None,
            )  # fmt: skip
            if pair[key] >= 0.06 * widest:
                box = {"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "edgecolor": "none"}
                axes.text(begin + pair[key] / 2, row, str(pair[key]), ha="center", va="center", fontsize=8.5, bbox=box)
            begin += pair[key]
        axes.annotate(
            f"{begin}", (begin, row), xytext=(5, 0), textcoords="offset points", va="center", fontweight="bold"
        )
    axes.set_yticks(range(len(pairs)), [label(pair["b"], 28) for pair in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set(xlabel="answers that changed", xlim=(0, widest * 1.12))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def kl_figure(pairs: Pairs) -> "Figure":
    """Mean KL of each pair against the position in the text. A mean of zero has no place on a log axis: left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, pair in enumerate(pairs):
        shown = [(part["begin"], part["end"], part["mean"]) for part in pair["kl_by_position"] if part["mean"] > 0]
        middles = [(begin + end) / 2 for begin, end, _ in shown]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(
            middles, [mean for *_, mean in shown], LINES[number % len(LINES)], color=colour, marker=marker,
            label=label(pair["b"], 28),
        )  # fmt: skip
    axes.set(xlabel="position (tokens before)", ylabel="mean KL (nats)", yscale="log")
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, handlelength=3)
    return figure
