"""The verb `calibrate`: text through the model, statistics out of it, a plan, its measurement, an asset."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo.base.device import available_memory_bytes, device_memory
from octavo.base.errors import BadValue
from octavo.base.log import log
from octavo.calibrate.cache_plan import CacheOptions, CachePlan
from octavo.calibrate.charts import remove_charts, write_charts
from octavo.calibrate.choose import Bench, choose, predicted, sensitivities
from octavo.calibrate.corpus import evaluation_set, open_corpus, windows
from octavo.calibrate.divergence import Divergence
from octavo.calibrate.observe import observe
from octavo.calibrate.outliers import outlier_rows
from octavo.calibrate.pareto import pareto_facts
from octavo.calibrate.partial import Partial
from octavo.calibrate.solve import parse_budget
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.fingerprint import fingerprint
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.checkpoint.source import Source
from octavo.kv.asset import FORMAT, PLAN_FILE, KVAsset, check_writable, plan_layers, write_asset
from octavo.kv.plan import parse_dtype
from octavo.kv.statistics import StaticRule, check_statistics
from octavo.memory.law import memory_law
from octavo.models.dense import DenseDecoder

__all__ = ["CalibrateOptions", "Calibration", "Progress", "calibrate"]

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)"""
_HELD_OUT = 4


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What `octavo calibrate` takes. Raises BadValue."""

    model: str
    out: str
    data: str = "bundled"
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    chat: bool = False
    sensitivity: bool = False
    schemes: tuple[str, ...] = ("int8", "int4")
    sensitivity_tokens: int = 256
    """length of the windows that sensitivities and plans are measured on, of which there are four"""
    static: StaticRule = field(default_factory=StaticRule)
    cache: CacheOptions = field(default_factory=CacheOptions)
    dtype: str = "auto"
    device: str = "auto"
    charts: bool = True

    def __post_init__(self) -> None:
        for name in self.schemes:
            if parse_dtype(name)[0] is not parse_dtype(name)[1]:
                raise BadValue(f"schemes to measure: `{name}` is a pair", hint="name single schemes: int8,int4")
        if not 16 <= self.sensitivity_tokens <= 65536:
            raise BadValue(f"sensitivity tokens: {self.sensitivity_tokens} (from 16 to 65536)")
        if self.cache.kv_cache_dtype.startswith("auto:"):
            parse_budget(self.cache.kv_cache_dtype.removeprefix("auto:"))
            object.__setattr__(self, "sensitivity", True)


@dataclass(frozen=True)
class Calibration:
    """What a calibration found: `about` is kv_plan.json."""

    asset: Path
    about: dict[str, Any]
    seconds: dict[str, float]
    charts: tuple[str, ...] = ()
    """names of the files drawn beside it"""


def calibrate(options: CalibrateOptions, progress: Progress) -> Calibration:
    """Run it all and write the asset. Interrupted runs go on where they were. Raises OctavoError."""
    begin = time.perf_counter()
    check_writable(Path(options.out))
    source = open_checkpoint(options.model)
    source.check()
    corpus, tokenizer = open_corpus(options.data), source.tokenizer()
    if (name := evaluation_set(corpus)) is not None:
        log.warning("%s is %s: what is measured on it later will look too good", options.data, name)
    _check_length("--seqlen", options.seqlen, source)
    _check_length("--sensitivity-tokens", options.sensitivity_tokens, source)
    cut = windows(corpus, tokenizer, options.samples, options.seqlen, options.seed, options.chat)
    held_out, text = _held_out(options, tokenizer)
    device = resolve_device(options.device)
    model = _model(options, source, resolve_dtype(options.dtype, device), device)
    loaded = time.perf_counter()

    who = fingerprint(source)
    biased = not (source.spec.has_key_bias and options.cache.kv_bias_free != "off")
    partial = Partial(Path(options.out), f"{who} {cut.digest} {biased} {options.dtype} {device}")
    statistics = observe(model, [torch.tensor(ids, device=device) for ids in cut.ids], biased, partial, progress)
    observed = time.perf_counter()

    sizes = (source.spec.layers, source.spec.kv_heads, source.spec.head_dim)
    about = _about(options, source, who, cut, biased)
    asset = KVAsset(Path(options.out), about, check_statistics(statistics, *sizes, options.out))
    exact_dtype = _exact_dtype(options.dtype, source, device)
    if exact_dtype != model.embedding.dtype:
        del model
        model = _model(options, source, exact_dtype, device)
    bench = Bench(source, model, weight_loader(source, torch.float32, device), device, asset)
    if options.sensitivity:
        first = [torch.tensor(ids[: options.sensitivity_tokens], device=device) for ids in cut.ids[:_HELD_OUT]]
        about["sensitivity"] = sensitivities(bench, options.cache, options.schemes, first, progress)
    progress("plan", 0, 1)
    cache, found = choose(bench, options.cache, [torch.tensor(ids, device=device) for ids in held_out])
    about |= _found(options, bench, cache, found)
    about |= {"held_out": text, "outliers": outlier_rows(asset, cache.plan)}
    write_asset(Path(options.out), about, statistics)
    partial.remove()
    progress("plan", 1, 1)
    charts = _draw(options, about, statistics)
    done = time.perf_counter()
    seconds = {"load": loaded - begin, "observe": observed - loaded, "measure": done - observed}
    about = json.loads((Path(options.out) / PLAN_FILE).read_text(encoding="utf-8"))
    return Calibration(Path(options.out), about, seconds, charts)


def _draw(options: CalibrateOptions, about: dict[str, Any], statistics: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """The charts beside the asset; those of an earlier calibration go. Without them the asset is as good."""
    try:
        remove_charts(Path(options.out))
        return write_charts(Path(options.out), about, statistics) if options.charts else ()
    except Exception as error:
        log.warning("the asset is written, but its charts are not: %s: %s", type(error).__name__, error)
        return ()


def _model(options: CalibrateOptions, source: Source, dtype: torch.dtype, device: str) -> DenseDecoder:
    longest = max(options.seqlen, options.sensitivity_tokens, min(4096, source.spec.max_position))
    return DenseDecoder(source.spec, weight_loader(source, dtype, device), longest, device)


def _exact_dtype(requested: str, source: Source, device: str) -> torch.dtype:
    """What divergences are measured in: `auto` is float32 wherever it fits. In bfloat16 two runs that differ anywhere
    differ by a KL of about 1e-3, in which all that int8 does would drown."""
    if requested != "auto":
        return resolve_dtype(requested, device)
    free = available_memory_bytes() if device == "cpu" else device_memory(device)[0]
    if 4 * source.spec.parameters <= 0.6 * free:
        return torch.float32
    log.warning("float32 weights do not fit in memory: divergences below about 1e-3 cannot be told apart")
    return resolve_dtype(requested, device)


def _check_length(flag: str, tokens: int, source: Source) -> None:
    if tokens > source.spec.max_position:
        raise BadValue(
            f"windows of {tokens} tokens are longer than the model was made for ({source.spec.max_position})",
            hint=f"use {flag} {source.spec.max_position} or less",
        )


def _held_out(options: CalibrateOptions, tokenizer: Any) -> tuple[list[tuple[int, ...]], str]:
    """Four windows that the statistics never saw: the bundled text, or, if that was the corpus, what it says of it."""
    corpus = open_corpus("bundled")
    cut = windows(corpus, tokenizer, _HELD_OUT, options.sensitivity_tokens, options.seed)
    seen = " (which is also what was calibrated on)" if options.data == "bundled" else ""
    return list(cut.ids), f"bundled text, {_HELD_OUT} x {options.sensitivity_tokens} tokens{seen}"


def _about(options: CalibrateOptions, source: Source, who: str, cut: Any, biased: bool) -> dict[str, Any]:
    spec = source.spec
    return {
        "format": FORMAT,
        "model": source.name,
        "fingerprint": who,
        "shape": {"layers": spec.layers, "kv_heads": spec.kv_heads, "heads": spec.heads, "head_dim": spec.head_dim},
        "data": {
            "name": Path(options.data).name, "digest": cut.corpus_digest, "windows_digest": cut.digest,
            "samples": cut.samples, "seqlen": cut.seqlen, "seed": cut.seed, "chat": options.chat,
        },
        "key_bias_stored": bool(spec.has_key_bias and biased),
        "static": asdict(options.static),
        "params_sha256": "",
    }  # fmt: skip


def _found(options: CalibrateOptions, bench: Bench, cache: CachePlan, found: Divergence) -> dict[str, Any]:
    wanted = options.cache.kv_cache_dtype
    law = memory_law(bench.source.spec, cache.plan, options.cache.block_size)
    sensitivity = bench.asset.about.get("sensitivity")
    return {
        "kv_cache_dtype": wanted if wanted.startswith("auto:") else cache.plan.name,
        "layers": plan_layers(cache.plan),
        "bytes_per_token": law.bytes_per_token,
        "bits_per_number": law.bits_per_number,
        "page_tokens": options.cache.block_size,
        "kl_predicted": predicted(sensitivity, cache),
        "kl_measured": found.kl_mean,
        "same_top_measured": found.same_top,
        "tokens_measured": found.tokens,
        "compute_dtype": str(bench.model.embedding.dtype).removeprefix("torch."),
        **pareto_facts(sensitivity, bench.asset.about["shape"], options.cache.block_size),
    }
