"""The verb `export-scales`: an asset's static scales, in the formats of other engines."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from octavo.cli.output import JsonTarget, check_json_target, emit

if TYPE_CHECKING:
    from octavo.calibrate.exchange import Export

__all__ = ["ExportFlags", "export_scales"]


@Parameter(name="*")
@dataclass(frozen=True)
class ExportFlags:
    asset: str
    """The folder of a calibration."""
    _: KW_ONLY
    format: Literal["compressed-tensors", "modelopt", "past-kv-scale"]
    """compressed-tensors: llm-compressor, vLLM; modelopt: NVIDIA ModelOpt; past-kv-scale: LMDeploy, TurboMind 2023."""
    out: str
    """The folder to write to. Without --model: for the first two, one that holds the calibrated checkpoint."""
    model: str | None = None
    """The checkpoint that was calibrated; it is copied to --out first (weights as hard links where possible)."""
    ranks: int = 1
    """past-kv-scale: how many tensor-parallel ranks."""
    scheme: Literal["int8-static", "fp8"] = "int8-static"
    reduce: bool = False
    """One scale for all heads (of a rank), the widest, where the format or its reader has no more."""
    json: JsonTarget = None


def export_scales(flags: ExportFlags) -> None:
    """Write an asset's static scales in the formats of other engines: for keys that are not rotated."""
    from octavo.calibrate.exchange import ExportOptions
    from octavo.calibrate.exchange import export_scales as run

    check_json_target(flags.json)
    options = ExportOptions(
        asset=flags.asset, format=flags.format, out=flags.out, model=flags.model, ranks=flags.ranks,
        scheme=flags.scheme, reduce=flags.reduce,
    )  # fmt: skip
    found = run(options)
    facts = _facts(flags, found)
    emit(facts, _lines(facts), flags.json)


def _facts(flags: ExportFlags, found: "Export") -> dict[str, Any]:
    scales = found.scales
    return {
        "asset": flags.asset,
        "format": flags.format,
        "origin": scales.origin,
        "scheme": scales.scheme,
        "out": str(found.folder),
        "files": list(found.files),
        "layers": len(scales.layers),
        "kv_heads": scales.kv_heads,
        "per_head": scales.per_head,
        "symmetric": scales.symmetric,
        "largest_scale": {
            side: max(float(dict(layer.sides)[side].scale.max()) for layer in scales.layers) for side in "kv"
        },
        "notes": list(found.notes),
    }


def _lines(facts: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    each = "KV head" if facts["per_head"] else "layer"
    zeros = "no zero points" if facts["symmetric"] else "zero points"
    files, largest = facts["files"], facts["largest_scale"]
    shown = ", ".join(files[:4]) + (f", ... ({len(files)} files)" if len(files) > 4 else "")
    lines = [
        f"{facts['format']}, {facts['scheme']}: one scale for each {each}, {zeros}",
        f"{facts['out']}: {shown}",
        f"{facts['layers']} layers of {facts['kv_heads']} KV heads; largest scale: K {largest['k']:.4g}, "
        f"V {largest['v']:.4g}",
        *(f"note: {note}" for note in facts["notes"]),
    ]
    return Group(*(Text(line) for line in lines))
