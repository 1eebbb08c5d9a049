"""How a memory report looks to people: rich tables, read from the report and nothing else."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octavo.base.units import format_bytes
from octavo.memory.report import MemoryReport

__all__ = ["render"]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _bytes_cell(count: float) -> str:
    return f"{count:,.0f} B" if count < 10240 else format_bytes(count)


def _mib_cell(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def _headline(report: MemoryReport) -> Text:
    model, weights = report.model, report.weights
    lines = [
        f"{model['name']}: {model['family']}, {model['layers']} layers, {model['kv_heads']} KV heads of "
        f"{model['head_dim']}, {model['parameters'] / 1e6:,.1f} M parameters",
        f"weights: {format_bytes(weights['bytes'])} as {weights['dtype']}"
        + (f" ({format_bytes(weights['stored_bytes'])} in the checkpoint)" if weights["stored_bytes"] else ""),
        f"memory: {format_bytes(report.memory_bytes)}; pages of {report.page_tokens} tokens; "
        f"sequences of {report.tokens:,} tokens (the model's limit here: {report.max_model_len:,})",
    ]
    if report.asset:
        lines.append(f"asset: {report.asset['path']}, calibrated on {report.asset['model']}")
    if report.weights["bytes"] > report.memory_bytes:
        lines.append("the weights alone do not fit")
    return Text("\n".join(lines) + "\n")


def _cost(report: MemoryReport) -> Table:
    table = _table("KV cache", "bits", "per token", "MiB/sequence", "ratio", "sequences fit", "tokens fit")
    for row in report.schemes:
        table.add_row(
            row.dtype,
            f"{row.bits_per_number:.2f}",
            _bytes_cell(row.bytes_per_token),
            _mib_cell(row.bytes_per_sequence),
            f"{row.ratio_to_bf16:.3f}",
            f"{row.sequences_that_fit:,}",
            f"{row.tokens_that_fit:,}",
        )
    return table


def _totals(report: MemoryReport) -> Table:
    batches = list(report.schemes[0].total_bytes)
    table = _table("weights + B sequences, MiB", *(f"B={batch}" for batch in batches))
    for row in report.schemes:
        table.add_row(row.dtype, *(_mib_cell(row.total_bytes[batch]) for batch in batches))
    return table


def _divergence(report: MemoryReport) -> list[RenderableType]:
    """What is known of the plans that come from an asset; nothing where there is none."""
    known = [row for row in report.schemes if row.kl_measured is not None or row.kl_predicted is not None]
    if not known:
        return []
    table = _table("KL to the exact cache, nats", "measured", "predicted")
    for row in known:
        table.add_row(row.dtype, _kl_cell(row.kl_measured), _kl_cell(row.kl_predicted))
    text = report.asset["measured_on"] if report.asset else None
    return [Text(), table, *([Text(f"measured on {text}")] if text else [])]


def _kl_cell(kl: float | None) -> str:
    return "-" if kl is None else f"{kl:.2g}"


def render(report: MemoryReport) -> RenderableType:
    """Lines about the model, then what each scheme costs and what fits, what is known of divergences, then totals by
    batch size."""
    return Group(_headline(report), _cost(report), *_divergence(report), Text(), _totals(report))
