"""The verb `calibrate`: what a cache needs to know of a model, measured on text, written as an asset."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from octavo.cli.output import JsonTarget, check_json_target, emit
from octavo.kv.plan import Rotate

if TYPE_CHECKING:
    from octavo.calibrate.run import Calibration

__all__ = ["CalibrateFlags", "calibrate"]


@Parameter(name="*")
@dataclass(frozen=True)
class CalibrateFlags:
    model: str
    """A Hugging Face folder, a GGUF file, a hub id, or `smollm2` for the packaged default."""
    _: KW_ONLY
    data: str = "bundled"
    """Text: a file (.txt, .jsonl[.gz], .parquet), a folder, `bundled`, or c4, wikitext2, pileval, ptb from the hub."""
    samples: int = 128
    """Windows of text."""
    seqlen: int = 2048
    """Tokens of a window."""
    seed: int = 0
    """Which windows are taken."""
    chat: bool = False
    """Put the text through the model's chat template, each piece as a user's message."""
    out: str = "kv_asset"
    """The folder that the asset is written to."""
    kv_cache_dtype: str = "auto"
    """The plan to choose: a scheme, a K,V pair, or auto:24GiB, auto:300KiB/token, auto:5.5bit, auto:kl<0.01."""
    sensitivity: bool = False
    """Measure what each layer's K and V lose in each scheme, alone; auto:BUDGET plans are solved from it."""
    schemes: str = "int8,int4"
    """The schemes that sensitivities are measured of."""
    sensitivity_tokens: int = 256
    """Length of the four windows that sensitivities, and the plan, are measured on."""
    granularity: Literal["layer", "head", "channel"] = "head"
    """Static schemes: one scale for a layer, a KV head or a channel."""
    symmetric: bool = True
    """Static schemes: a range around zero, or around the middle of what was seen."""
    reach: Literal["auto", "peak", "mse"] = "auto"
    """Static schemes: everything seen is in range (peak), or what gives the least squared error (mse)."""
    margin: float = 1.0
    """Static schemes: how much wider the range is made."""
    kv_rotate: Annotated[Rotate, Parameter(name=("--kv-rotate", "--rotate"))] = "auto"
    kv_bias_free: Rotate = "auto"
    kv_balance: str = "auto"
    max_model_len: int | None = None
    """For auto:24GiB: the longest sequence."""
    max_num_seqs: int = 64
    """For auto:24GiB: how many sequences of that length at once."""
    dtype: str = "auto"
    device: str = "auto"
    charts: bool = True
    """Draw what was found beside the asset, as PNG and SVG."""
    json: JsonTarget = None


def calibrate(flags: CalibrateFlags) -> None:
    """Run text through a model and write what its KV cache needs to know, and a plan, as an asset."""
    from octavo.calibrate.cache_plan import CacheOptions
    from octavo.calibrate.run import CalibrateOptions
    from octavo.calibrate.run import calibrate as run
    from octavo.cli.output import progress_bar
    from octavo.kv.statistics import StaticRule

    check_json_target(flags.json)
    cache = CacheOptions(
        kv_cache_dtype=flags.kv_cache_dtype, kv_rotate=flags.kv_rotate, kv_bias_free=flags.kv_bias_free,
        kv_balance=flags.kv_balance, max_model_len=flags.max_model_len, max_num_seqs=flags.max_num_seqs,
    )  # fmt: skip
    options = CalibrateOptions(
        model=flags.model, out=flags.out, data=flags.data, samples=flags.samples, seqlen=flags.seqlen, seed=flags.seed,
        chat=flags.chat, sensitivity=flags.sensitivity, schemes=tuple(flags.schemes.split(",")),
        sensitivity_tokens=flags.sensitivity_tokens,
        static=StaticRule(flags.granularity, flags.symmetric, flags.margin, flags.reach), cache=cache,
        dtype=flags.dtype, device=flags.device, charts=flags.charts,
    )  # fmt: skip
    with progress_bar() as progress:
        found = run(options, progress)
    facts = {"asset": str(found.asset), "charts": list(found.charts), "seconds": found.seconds}
    emit({**found.about, **facts}, _tables(found), flags.json)


def _tables(found: "Calibration") -> Any:
    from rich.console import Group
    from rich.table import Table

    about = found.about
    table = Table(title=f"The hardest of {about['model']}")
    for name in ("layer", "side", "head", "channel", "peak / rms", "rotated", "first token", "stored as"):
        table.add_column(name, justify="left" if name == "stored as" else "right")
    hardest = sorted(about["outliers"], key=lambda row: -row["peak_over_rms"])[:12]
    for row in hardest:
        table.add_row(
            str(row["layer"]), row["side"].upper(), str(row["head"]), str(row["channel"]), f"{row['peak_over_rms']}",
            f"{row['peak_over_rms_rotated']}", f"{row['first_token_over_rms']}", row["stored_as"],
        )  # fmt: skip
    hard = sum(row["hard"] for row in about["outliers"])
    predicted = about.get("kl_predicted")
    lines = [
        f"{about['model']}: {about['kv_cache_dtype']}, {about['bytes_per_token']:.0f} bytes a token "
        f"({about['bits_per_number']:.2f} bits a number)",
        f"KL {about['kl_measured']:.3g}, same top token {about['same_top_measured']:.2%} on {about['held_out']}, "
        f"computed in {about['compute_dtype']}" + (f"; predicted {predicted:.3g}" if predicted is not None else ""),
        f"{hard} of {len(about['outliers'])} sides have a channel of 8 times the head's root mean square or more",
        f"asset: {found.asset} ({sum(found.seconds.values()):.0f} s)",
        *([f"charts: {', '.join(found.charts)}"] if found.charts else ()),
    ]
    return Group(table, *lines)
