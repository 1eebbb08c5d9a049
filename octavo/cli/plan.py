"""The verb `plan`: what a model's KV cache costs, before anything is loaded."""

import difflib
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from octavo.base.errors import BadValue, CheckpointError
from octavo.cli.output import JsonTarget, check_json_target, emit
from octavo.kv.plan import Rotate
from octavo.models.spec import ModelSpec

__all__ = ["PlanOptions", "plan", "shape_of", "whole_numbers"]


@Parameter(name="*")
@dataclass(frozen=True)
class PlanOptions:
    model: str
    """A Hugging Face folder or config.json, a GGUF file, `smollm2`, a hub id, or a known shape such as `llama-7b`."""
    _: KW_ONLY
    max_model_len: int | None = None
    """Longest sequence, prompt and answer together; the model's own limit if not given."""
    tokens: int | None = None
    """Tokens of one sequence; 2048 if not given, or the longest if that is less."""
    memory: str = "24GiB"
    """Memory for weights and cache together: 24GiB, 512MB, ..."""
    batch_sizes: str = "8,16,32,48"
    """Batch sizes to give totals for."""
    kv_cache_dtype: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """A cache scheme, K,V pair, or with an asset auto:24GiB, auto:5.5bit, auto:kl<0.01; may be repeated. All schemes
    if not given."""
    kv_asset: str | None = None
    """The folder of a calibration, whose plan is listed too; one beside the weights is found; `off` looks for none."""
    max_num_seqs: int = 64
    """For auto:24GiB: how many of the longest sequences that is for."""
    kv_rotate: Rotate = "auto"
    """Whether K and V are rotated before they are stored; the bytes are the same."""
    dtype: str = "bfloat16"
    """What the weights are loaded as: bfloat16, float16 or float32."""
    block_size: Annotated[int, Parameter(alias="--page-size")] = 64
    """Tokens of one page."""
    json: JsonTarget = None


def plan(options: PlanOptions) -> None:
    """What a model's KV cache costs, by arithmetic from its config alone."""
    from octavo.base.units import parse_bytes
    from octavo.cli.plan_asset import given_plans
    from octavo.memory.report import PlanQuestion, memory_report
    from octavo.memory.tables import render

    check_json_target(options.json)
    question = PlanQuestion(
        tokens=options.tokens,
        max_model_len=options.max_model_len,
        memory_bytes=parse_bytes(options.memory),
        batch_sizes=whole_numbers(options.batch_sizes),
        dtypes=options.kv_cache_dtype,
        rotate=options.kv_rotate,
        weights_dtype=options.dtype,
        page_tokens=options.block_size,
    )
    name, spec, stored_bytes, folder = shape_of(options.model)
    givens = given_plans(options.kv_asset, folder, spec, question, options.max_num_seqs)
    report = memory_report(name, spec, question, stored_bytes, givens)
    emit(report.as_dict(), render(report), options.json)


def whole_numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise BadValue(f"not a list of whole numbers: `{text}`", hint="write batch sizes as 8,16,32")
    return tuple(int(word) for word in words)


def shape_of(model: str) -> tuple[str, ModelSpec, int | None, Path | None]:
    """Name, spec, bytes on disk (None if there are no weights) and folder of what the user named."""
    from octavo.memory.shapes import SHAPES

    path = Path(model).expanduser()
    if model in SHAPES and not path.exists():
        return model, SHAPES[model], None, None
    if path.is_dir() and not any(path.glob("*.safetensors")) and not any(path.glob("*.gguf")):
        path = path / "config.json"
    if path.suffix == ".json":
        return path.resolve().parent.name, _spec_of_config(path), None, path.parent
    from octavo.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(model)
    except CheckpointError as error:
        near = difflib.get_close_matches(model, SHAPES, n=1, cutoff=0.6)
        raise type(error)(error.message, error.hint or (f"did you mean `{near[0]}`?" if near else None)) from error
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return checkpoint.name, checkpoint.spec, checkpoint.weight_bytes, folder


def _spec_of_config(path: Path) -> ModelSpec:
    """The spec that a config.json describes. Raises CheckpointError or UnknownChoice."""
    import json

    from octavo.models.families import spec_of_config

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read `{path}`: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"`{path}` is not JSON: {error}") from error
    return spec_of_config(config)
