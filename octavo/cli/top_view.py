"""One frame of `octavo top`, from what `GET /live` answered. Whatever a server leaves out is shown as a dash."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.base.drawing import clean
from octavo.base.units import format_bytes

__all__ = ["cells_of", "frame", "sparkline"]

_BARS = " ▁▂▃▄▅▆▇█"
_STATES = (("free", "·", "bright_black"), ("cached", "░", "blue"), ("held", "▒", "green"), ("shared", "█", "yellow"))
"""a page's state, by the byte of the map: its name, its block, its colour"""
_TONES = {"ready": "green", "loading": "yellow", "restarting": "yellow", "stopping": "yellow"}
_MAP_ROWS, _WIDTH, _SEQUENCES = 6, 100, 12


def frame(live: Mapping[str, Any], url: str, history: Sequence[float] = (), lost: str | None = None) -> RenderableType:
    """`history`: tokens a second at the last polls. `lost`: why the server does not answer now; the rest is then what
    it said last."""
    state = str(live.get("state") or "-")
    head = Text.assemble(
        (clean(url), "bold"), "  ", ("unreachable", "bold red") if lost else (clean(state), _TONES.get(state, "red")),
        f"  up {_span(live.get('uptime_seconds'))}" if live else "",
    )  # fmt: skip
    parts: list[RenderableType] = [head]
    if lost:
        parts.append(Text(f"{clean(lost)}; trying again", style="red"))
    if live:
        parts += [*_facts(live), Text(), _load(live, history), *_pages(live), *_sequences(live)]
    return Group(*parts)


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, as high as its share of the largest."""
    most = max(values, default=0.0)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[round(max(0.0, value) / most * (len(_BARS) - 1))] for value in values)


def cells_of(live: Mapping[str, Any], most: int = _WIDTH * _MAP_ROWS) -> tuple[bytes, int]:
    """The map with at most `most` cells, each the strongest state of its pages; and the pages of a cell."""
    try:
        cells = base64.b64decode(live.get("map") or "", validate=True)
    except (binascii.Error, ValueError):
        cells = b""
    join = max(1, -(-len(cells) // most))
    joined = bytes(min(3, max(cells[at : at + join])) for at in range(0, len(cells), join))
    return joined, join * int(live.get("pages_per_cell") or 1)


def _facts(live: Mapping[str, Any]) -> list[Text]:
    model, cache = live.get("model"), live.get("kv_cache")
    lines = []
    if model:
        lines.append(
            f"{_word(model, 'id')} ({_word(model, 'name')}) on {_word(model, 'device')} in {_word(model, 'dtype')}, "
            f"sequences of up to {_whole(model, 'max_model_len')} tokens"
        )
    if cache:
        now, wide = cache.get("bytes_per_token"), cache.get("bytes_per_token_bf16")
        less = f", {wide / now:.2f}x less than bf16" if now and wide else ""
        memory = cache.get("allocated_bytes")
        lines.append(
            f"cache {_word(cache, 'dtype')}: {_whole(cache, 'bytes_per_token')} bytes a token{less}; "
            f"{_whole(cache, 'capacity_tokens')} tokens in {format_bytes(int(memory)) if memory else '-'}"
        )
    return [Text(line, overflow="ellipsis", no_wrap=True) for line in lines]


def _load(live: Mapping[str, Any], history: Sequence[float]) -> Table:
    asked, found = live.get("prefix_queries") or 0, live.get("prefix_hits") or 0
    hits = f"{found / asked:.0%} of {asked:,}" if asked else "-"
    rows = (
        ("running", _whole(live, "running"), "waiting", _whole(live, "waiting"),
         "preempted", _whole(live, "preemptions")),
        ("tokens/s", _number(live, "tokens_per_second"), "prompt/s", _number(live, "prompt_tokens_per_second"),
         "prefix hits", hits),
        ("TTFT ms", _number(live, "time_to_first_token_ms"), "ITL ms", _number(live, "inter_token_latency_ms"),
         "steps", _whole(live, "steps")),
    )  # fmt: skip
    grid = Table.grid(padding=(0, 2))
    for column in range(7):
        grid.add_column(style="dim" if column in (0, 2, 4) else "", justify="right" if column in (1, 3, 5) else "left")
    for number, row in enumerate(rows):
        grid.add_row(*row, Text(sparkline(history), style="green") if number == 1 else "")
    return grid


def _pages(live: Mapping[str, Any]) -> list[RenderableType]:
    """How many pages are in each state, a bar of their shares, and the map."""
    pages = live.get("pages")
    if not pages or not pages.get("total"):
        return []
    total, bar, legend = int(pages["total"]), Text(), Text(f"\npages {pages['total']:,}: ")
    left = _WIDTH
    for name, block, colour in reversed(_STATES):
        count = int(pages.get(name) or 0)
        width = left if name == "free" else min(left, -(-count * _WIDTH // total))
        left -= width
        bar.append(block * width, style=colour)
        legend.append(f"{block} {name} {count:,}  ", style=colour)
    cells, joined = cells_of(live)
    shown = Text()
    for at, cell in enumerate(cells):
        _, block, colour = _STATES[cell]
        shown.append(block + ("\n" if at % _WIDTH == _WIDTH - 1 and at + 1 < len(cells) else ""), style=colour)
    each = Text(f"in order, {'a page' if joined == 1 else f'{joined} pages'} each:", style="dim")
    return [legend, bar, each, shown] if cells else [legend, bar]


def _sequences(live: Mapping[str, Any]) -> list[RenderableType]:
    rows = live.get("sequences") or []
    if not rows:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("sequence", "status", "prompt", "output", "pages"):
        table.add_column(name, justify="left" if name == "status" else "right")
    for row in rows[:_SEQUENCES]:
        counts = (_whole(row, name) for name in ("prompt_tokens", "output_tokens", "pages"))
        table.add_row(_word(row, "id"), _word(row, "status"), *counts)
    more = len(rows) - _SEQUENCES
    return [Text(), table, *([Text(f"and {more} more", style="dim")] if more > 0 else [])]


def _word(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return "-" if value is None else clean(value)


def _whole(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _number(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return f"{value:,.1f}" if isinstance(value, int | float) else "-"


def _span(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m{int(seconds) % 60:02}s"
