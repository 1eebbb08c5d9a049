"""The JSON of `octavo memory` as a section: what was measured, the law beside it, and where lines cross."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from octavo.evals.page.blocks import Block, Paragraph, Point, Quantity, Row, Section, Table
from octavo.evals.page.charts import page_chart
from octavo.evals.page.numbers import count, mib, one_line, quantity, tenths
from octavo.memory.plots import memory_figure

__all__ = ["memory_section"]

Data: TypeAlias = Mapping[str, Any]
_CHART_INCHES = (4.6, 4.9)


def memory_section(key: str, data: Data) -> Section:
    """`key`: what ids of the section begin with."""
    blocks: list[Block] = [_about(data)]
    if data["rows"]:
        title = f"Memory against batch, {one_line(data['model'])}: measured points, fitted lines, crossings"
        said = "Points are measured; full lines are fitted to them; broken lines are arithmetic."
        blocks.append(page_chart(f"{key}-chart", title, said, lambda: memory_figure(data, _CHART_INCHES)))
        blocks.append(_totals(data))
    blocks += [*_law(data), *_lines(data), *_crossings(data), *_skipped(data)]
    return Section(f"Memory of {data['model']}", tuple(blocks), tuple(_summary(data)))


def _about(data: Data) -> Paragraph:
    parts: list[str | Quantity] = ["Sequences of ", count(data["tokens"]), " tokens"]
    for name, before in (("dtype", ", computed in "), ("device", " on "), ("machine", ", "), ("fill", ", filled by ")):
        if data.get(name):
            parts += [before, str(data[name])]
    if data.get("weights_mib") is not None:
        parts += [", weights ", mib(data["weights_mib"]), " MiB"]
    return Paragraph((*parts, "."))


def _totals(data: Data) -> Table:
    """A row for each measurement; columns that no row has are left out."""
    columns = (
        ("device", "device_mib", mib), ("process", "process_mib", mib), ("cache", "kv_mib", mib),
        ("difference", "difference_mib", _signed), ("difference of the cache", "kv_difference_mib", _signed),
        ("seconds", "seconds", tenths),
    )  # fmt: skip
    rows = sorted(data["rows"], key=lambda row: row["batch"])
    shown = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    cells = tuple(
        Row((row["dtype"], count(row["batch"]), *(form(row.get(field)) for _, field, form in shown))) for row in rows
    )
    return Table("Measured, in MiB", ("KV cache", "batch", *(title for title, _, _ in shown)), cells)


def _signed(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:+,.1f}")


def _law(data: Data) -> Iterator[Table]:
    """What was fitted beside what arithmetic said before."""
    if not data.get("law"):
        return
    fields = ("intercept_mib", "predicted_intercept_mib", "slope_mib", "predicted_slope_mib", "max_residual_mib")
    rows = tuple(
        Row((name, *(_two(law.get(field)) if "slope" in field else mib(law.get(field)) for field in fields)))
        for name, law in data["law"].items()
    )
    head = ("KV cache", "fixed, fitted", "foretold", "a sequence, fitted", "foretold", "farthest point")
    yield Table("The law: MiB = fixed + a sequence x batch", head, rows)


def _two(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:,.2f}")


def _lines(data: Data) -> Iterator[Table]:
    if data.get("lines"):
        rows = tuple(
            Row((
                name, mib(line["intercept_mib"]), _two(line["slope_mib"]),
                "measured" if line.get("measured") else "arithmetic",
            ))
            for name, line in data["lines"].items()
        )  # fmt: skip
        yield Table("Lines of the chart, in MiB", ("line", "fixed", "a sequence", "by"), rows)


def _crossings(data: Data) -> Iterator[Table]:
    if data.get("crossings"):
        rows = tuple(Row((one["first"], one["second"], tenths(one["batch"]))) for one in data["crossings"])
        yield Table("Where two lines take the same memory", ("line", "and", "at a batch of"), rows)


def _skipped(data: Data) -> Iterator[Table]:
    skipped = data.get("skipped")
    if not skipped:
        return
    columns = (("needs", "needed_mib", mib), ("free", "free_mib", mib), ("why", "reason", one_line))
    shown = [column for column in columns if any(one.get(column[1]) is not None for one in skipped)]
    rows = tuple(
        Row((one["dtype"], count(one["batch"]), *(form(one.get(field)) for _, field, form in shown))) for one in skipped
    )
    yield Table("Not tried, in MiB", ("KV cache", "batch", *(title for title, _, _ in shown)), rows)


def _summary(data: Data) -> Iterator[Point]:
    for name, law in data.get("law", {}).items():
        foretold = law.get("predicted_slope_mib")
        beside = () if foretold is None else (", ", _two(foretold), " foretold")
        yield Point(f"{name}:", (_two(law["slope_mib"]), " MiB a sequence measured", *beside))
    for one in data.get("crossings", []):
        yield Point(f"{one['first']} and {one['second']}", ("take the same at a batch of ", tenths(one["batch"])))
