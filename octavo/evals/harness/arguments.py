"""What lm-evaluation-harness hands a model, as options of ours. Pure: no lm_eval, no torch."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from octavo.base.errors import BadValue
from octavo.base.log import log
from octavo.engine.options import EngineOptions
from octavo.engine.sampling import SamplingParams

__all__ = ["FIRST_GPU", "MAX_GEN_TOKS", "engine_options", "max_tokens_of", "sampling_of"]

MAX_GEN_TOKS = 256
"""lm-evaluation-harness' default"""

FIRST_GPU = ("cuda", "cuda:0")

_DEFAULTS: dict[str, Any] = {"kv_cache_memory": "65536tok", "max_num_seqs": 256, "max_num_batched_tokens": 2048}
_SWITCHES = {"true": True, "on": True, "1": True, "yes": True, "false": False, "off": False, "0": False, "no": False}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")


def engine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """`--model_args` as keyword arguments of LLM: `pretrained` is the model, every other name a field of EngineOptions.

    Values may be strings. Commas end an argument there, so a K,V pair is written int8/int4. A first GPU, which the
    harness asks for where nobody names a device, is auto. Raises BadValue."""
    rest = dict(given)
    model = rest.pop("pretrained", None) or rest.pop("model", None)
    if not isinstance(model, str):
        raise BadValue("no model was given", hint="--model_args pretrained=smollm2,kv_cache_dtype=int8")
    known = {field.name: field.type for field in fields(EngineOptions)}
    unknown = sorted(set(rest) - set(known))
    if unknown:
        raise BadValue(f"unknown model_args: {', '.join(unknown)}", hint=f"have pretrained, {', '.join(known)}")
    options = {name: _as_kind(name, value, known[name]) for name, value in rest.items() if value is not None}
    if "kv_cache_dtype" in options:
        options["kv_cache_dtype"] = str(options["kv_cache_dtype"]).replace("/", ",")
    if options.get("device") in FIRST_GPU:
        options["device"] = "auto"
    if "max_num_batched_tokens" in options and "max_num_seqs" not in options:
        options["max_num_seqs"] = min(_DEFAULTS["max_num_seqs"], options["max_num_batched_tokens"])
    return {"model": model, **_DEFAULTS, **options}


def _as_kind(name: str, value: Any, kind: Any) -> Any:
    """Strings that mean a number or a switch, and the harness' True for a field that takes `on`."""
    if kind is bool:
        switch = _SWITCHES.get(str(value).lower())
        if switch is None:
            raise BadValue(f"{name}: `{value}` (have true, false)")
        return switch
    if kind in (int, int | None):
        try:
            return int(str(value))
        except ValueError:
            raise BadValue(f"{name}: `{value}` is no whole number") from None
    if isinstance(value, bool) and name.startswith("kv_"):
        return "on" if value else "off"
    return value


def max_tokens_of(gen_kwargs: Mapping[str, Any]) -> int:
    return int(next((gen_kwargs[name] for name in _LENGTHS if gen_kwargs.get(name) is not None), MAX_GEN_TOKS))


def sampling_of(gen_kwargs: Mapping[str, Any]) -> SamplingParams:
    """A task's `generation_kwargs`: greedy unless it asks for `do_sample` or a temperature. What has no meaning here is
    left out, with a warning. Raises BadValue."""
    sample = gen_kwargs.get("do_sample")
    temperature = float(gen_kwargs.get("temperature", 1.0 if sample else 0.0))
    until = gen_kwargs.get("until") or []
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    ignored = sorted(set(gen_kwargs) - {*_LENGTHS, *_SAMPLING, "do_sample", "temperature", "until"})
    if ignored:
        log.warning("generation_kwargs that mean nothing here: %s", ", ".join(ignored))
    return SamplingParams(
        max_tokens=max_tokens_of(gen_kwargs), temperature=0.0 if sample is False else temperature, stop=stop,
        **{name: gen_kwargs[name] for name in _SAMPLING if gen_kwargs.get(name) is not None},
    )  # fmt: skip
