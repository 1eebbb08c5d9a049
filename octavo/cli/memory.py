"""The verb `memory`: fill caches, measure what the process takes, and set it beside the law."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from octavo.base.errors import BadValue, UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit
from octavo.cli.plan import shape_of, whole_numbers
from octavo.kv.plan import split_dtypes

if TYPE_CHECKING:
    from octavo.evals.memory_report import MemoryProof

__all__ = ["MemoryFlags", "machine", "memory", "render"]


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryFlags:
    model: str | None = None
    """A Hugging Face folder, a GGUF file, a hub id, or `smollm2` for the packaged default."""
    _: KW_ONLY
    shape: str | None = None
    """In the place of a model: a known shape such as chinese-llama-alpaca-7b, or a config.json; weights are random."""
    scale: float = 1.0
    """With --shape: so much of its layers, heads and widths, to try it on a small machine."""
    kv_cache_dtype: tuple[str, ...] = ("bf16", "int8", "int4")
    """The caches to fill, with commas between them; a K,V pair is written int8/int4. Differences are to the first."""
    batch_sizes: str = "8,16,32,48"
    tokens: int | None = None
    """Of each sequence; 2048 if not given, or the model's limit if that is less."""
    fill: Literal["generate", "prefill"] = "generate"
    """generate: one prompt token and the rest generated; prefill: whole prompts, which is quicker."""
    dtype: str = "auto"
    device: str = "auto"
    chart: str | None = None
    """Draw the lines into this file: .png or .svg; without an ending, both."""
    json: JsonTarget = None


_DEFAULTS = MemoryFlags()


def memory(flags: MemoryFlags = _DEFAULTS) -> None:
    """Fill caches at several batch sizes, read the memory of process and device, and fit the law to it."""
    check_json_target(flags.json)
    targets = _targets(flags.chart)
    from octavo.cli.output import progress_bar
    from octavo.evals.memory_probe import ProbeOptions, run_probe
    from octavo.evals.memory_report import prove

    options = ProbeOptions(
        model=flags.model, shape=_shape(flags), dtypes=split_dtypes(flags.kv_cache_dtype),
        batch_sizes=whole_numbers(flags.batch_sizes), tokens=flags.tokens, fill=flags.fill, dtype=flags.dtype,
        device=flags.device,
    )  # fmt: skip
    with progress_bar() as progress:
        proof = prove(run_probe(options, progress))
    data = {**proof.as_dict(), "machine": machine(proof.probe.device)}
    if targets:
        from octavo.memory.plots import memory_chart

        for target in targets:
            memory_chart(data, target)
    emit(data, render(proof), flags.json)


def _shape(flags: MemoryFlags) -> Any:
    """Name and sizes of what is asked for in the place of a model; None if it is a model."""
    if flags.shape is None:
        if flags.scale != 1.0:
            raise UsageError("--scale goes with --shape: a checkpoint has the size that it has")
        return None
    from octavo.evals.stand_in import scaled

    name, spec, _, _ = shape_of(flags.shape)
    return (name, spec) if flags.scale == 1.0 else (f"{name} x {flags.scale:g}", scaled(spec, flags.scale))


def _targets(chart: str | None) -> list[Path]:
    if chart is None:
        return []
    path = Path(chart)
    if not path.name or path.is_dir() or path.suffix not in ("", ".png", ".svg"):
        raise BadValue(f"chart: `{chart}` (a file that ends in .png or .svg; both are drawn without an ending)")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write `{chart}`: there is no folder `{path.parent}`")
    return [path] if path.suffix else [path.with_suffix(".png"), path.with_suffix(".svg")]


def machine(device: str) -> str:
    """What the memory is of: the GPU, or the processor."""
    if device == "cpu":
        from octavo.base.device import cpu_model

        return cpu_model()
    import torch

    return torch.cuda.get_device_name(device)


def render(proof: "MemoryProof") -> Any:
    """The table of the batch sizes, the laws, and what crosses where."""
    from rich.console import Group

    probe = proof.probe
    where = "process, host memory" if probe.device == "cpu" else "device memory"
    lines: list[Any] = [
        f"{probe.name}: B sequences of {probe.tokens} tokens, computed in {probe.dtype} on {probe.device} "
        f"({', '.join(sorted(set(probe.kernels.values())))} kernels, fill: {probe.fill})",
        _totals(proof, where), *([_laws(proof)] if proof.law else []),
    ]  # fmt: skip
    for row in probe.skipped:
        lines.append(
            f"not tried: {row.dtype} at batch {row.batch} needs {row.needed_mib:,.0f} MiB of pages and "
            f"{row.free_mib:,.0f} MiB are free"
        )
    for cross in proof.crossings:
        lines.append(f"{cross.first} and {cross.second} take the same at a batch of {cross.batch:.1f}")
    if any(not line.measured for line in proof.lines.values()):
        lines.append("weights int4: by arithmetic, 4.5 bits for each weight of the blocks; all else is measured")
    return Group(*lines)


def _totals(proof: "MemoryProof", where: str) -> Any:
    from rich.table import Table

    found = {(row.batch, row.dtype): row for row in proof.probe.rows}
    caches = list(proof.probe.plans)
    table = Table(title=f"MiB of the {where} (cache)")
    table.add_column("batch", justify="right")
    for cache in caches:
        table.add_column(cache, justify="right")
        if cache != caches[0]:
            table.add_column("difference", justify="right")
    for batch in sorted({row.batch for row in [*proof.probe.rows, *proof.probe.skipped]}):
        cells, first = [], found.get((batch, caches[0]))
        for cache in caches:
            row = found.get((batch, cache))
            cells.append("-" if row is None else f"{row.total_mib:,.0f} ({row.kv_mib:,.0f})")
            if cache != caches[0]:
                cells.append("-" if row is None or first is None else f"{row.total_mib - first.total_mib:+,.0f}")
        table.add_row(str(batch), *cells)
    return table


def _laws(proof: "MemoryProof") -> Any:
    from rich.table import Table

    table = Table(title="MiB = intercept + slope x batch: fitted (predicted, difference)")
    for name in ("cache", "intercept", "slope", "largest residual"):
        table.add_column(name, justify="left" if name == "cache" else "right")
    for name, law in proof.law.items():
        pairs = (
            (law.intercept_mib, law.predicted_intercept_mib, ",.0f"),
            (law.slope_mib, law.predicted_slope_mib, ",.2f"),
        )
        cells = [f"{got:{form}} ({want:{form}}, {got / want - 1:+.2%})" for got, want, form in pairs]
        table.add_row(name, *cells, f"{law.max_residual_mib:,.1f}")
    return table
