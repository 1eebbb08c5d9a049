"""Charts of the measurements in benchmarks/results: `python -m benchmarks.charts` draws them into docs/images."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.base.drawing import COLOURS, drawn, style
from octavo.memory.plots import memory_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
DTYPES: tuple[str, ...] = ("bf16", "fp8", "int8", "int8,int4", "int4")
COLOUR: dict[str, str] = dict(zip(DTYPES, COLOURS, strict=False))


def results(name: str) -> list[dict[str, Any]]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())["results"]


def bars(axes: "Axes", groups: Sequence[str], heights: Mapping[str, Sequence[float | None]], numbers: str) -> None:
    """A group of bars for each name, one for each dtype; `numbers` is how a height is written above its bar."""
    width = 0.8 / len(heights)
    for place, (dtype, values) in enumerate(heights.items()):
        at = [(group - 0.4 + width * (place + 0.5), value) for group, value in enumerate(values) if value is not None]
        drawn_bars = axes.bar([x for x, _ in at], [y for _, y in at], width * 0.92, color=COLOUR[dtype], label=dtype)
        axes.bar_label(drawn_bars, [format(y, numbers) for _, y in at], fontsize=6.5, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")


def attention() -> "Figure":
    """Shares of the read ceiling, 2048 tokens a sequence."""
    from matplotlib.figure import Figure

    rows = [row for row in results("kernels-h200") if row["kind"] == "attention" and row["context"] == 2048]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (kv_heads, group) in zip(figure.subplots(1, 2, sharey=True), ((32, 1), (8, 4)), strict=True):
        own = [row for row in rows if (row["kv_heads"], row["group"]) == (kv_heads, group)]
        batches = sorted({row["batch"] for row in own})
        share = {(row["dtype"], row["batch"]): 100 * row["share_of_ceiling"] for row in own}
        bars(axes, [str(batch) for batch in batches], {d: [share.get((d, b)) for b in batches] for d in DTYPES}, ".0f")
        axes.set(title=f"{kv_heads} KV heads x {group}", xlabel="sequences of 2048 tokens", ylim=(0, 105))
    figure.axes[0].set_ylabel("attention: % of the read ceiling")
    _legend(figure)
    return figure


def steps() -> "Figure":
    """Milliseconds of a decode step in a CUDA graph, and of them what reading weights and cache must take."""
    from matplotlib.figure import Figure

    rows = [row for row in results("step-h200") if row["kind"] == "decode" and row.get("mode") == "graph"]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, model in zip(figure.subplots(1, 2), ("7b", "8b"), strict=True):
        own = {(row["kv_cache_dtype"], row["batch"]): row for row in rows if row["model"] == model}
        batches = sorted({batch for _, batch in own})
        dtypes = [dtype for dtype in DTYPES if any(key[0] == dtype for key in own)]
        times = {d: [own[d, b]["step_ms"] if (d, b) in own else None for b in batches] for d in dtypes}
        bars(axes, [str(batch) for batch in batches], times, ".1f")
        for group, batch in enumerate(batches):
            for place, dtype in enumerate(dtypes):
                if (dtype, batch) in own:
                    x = group - 0.4 + 0.8 / len(dtypes) * (place + 0.5)
                    axes.plot([x - 0.1, x + 0.1], [own[dtype, batch]["floor_ms"]] * 2, color="black", linewidth=1)
        axes.set(title=f"{model.upper()} shape", xlabel="sequences of 2048 tokens")
    figure.axes[0].set_ylabel("decode step (ms); line: the floor")
    _legend(figure)
    return figure


def throughput() -> "Figure":
    """Generated tokens a second of 300 requests at once."""
    from matplotlib.figure import Figure

    rows = {(r["model"], r["kv_cache_dtype"]): r for r in results("throughput-h200") if not r["stopped"]}
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    models = ("7b", "8b")
    dtypes = [dtype for dtype in DTYPES if any(key[1] == dtype for key in rows)]
    heights = {d: [rows[m, d]["output_throughput"] if (m, d) in rows else None for m in models] for d in dtypes}
    bars(axes, [f"{model.upper()} shape" for model in models], heights, ".0f")
    axes.set(ylabel="generated tokens a second", title="300 requests at once")
    _legend(figure)
    return figure


def _legend(figure: "Figure") -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/images")
    out = parser.parse_args().out
    for name, draw in {"attention": attention, "steps": steps, "throughput": throughput}.items():
        with style():
            (out / f"{name}-h200.svg").write_bytes(drawn(draw(), "svg"))
    memory_chart(json.loads((HERE / "results/memory-7b-h200.json").read_text()), out / "memory-7b-h200.svg")


if __name__ == "__main__":
    main()
