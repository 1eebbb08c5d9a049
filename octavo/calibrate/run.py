"""The verb `calibrate`: text through the model, statistics out of it, a plan, its measurement, an asset."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.base.device import available_memory_bytes, device_memory
from octavo.base.errors import AssetError, BadValue
from octavo.base.log import log
from octavo.calibrate.budgets import solve_budget
from octavo.calibrate.cache_plan import CacheOptions, CachePlan, make_transforms, plan_for
from octavo.calibrate.corpus import evaluation_set, open_corpus, windows
from octavo.calibrate.forward import attention_output, embed, layer_step, project
from octavo.calibrate.observe import Observer
from octavo.calibrate.outliers import outlier_rows
from octavo.calibrate.sensitivity import measure_plan, measure_sensitivity
from octavo.calibrate.solve import parse_budget
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.fingerprint import fingerprint
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.checkpoint.source import Source
from octavo.kv.asset import FORMAT, KVAsset, plan_layers, write_asset
from octavo.kv.plan import parse_dtype
from octavo.kv.statistics import StaticRule, check_statistics
from octavo.memory.law import memory_law
from octavo.models.dense import DenseDecoder

__all__ = ["CalibrateOptions", "Calibration", "Progress", "calibrate"]

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)"""
_HELD_OUT = 4
_KEPT_EVERY_SECONDS = 20.0


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


def calibrate(options: CalibrateOptions, progress: Progress) -> Calibration:
    """Run it all and write the asset. Interrupted runs go on where they were. Raises OctavoError."""
    begin = time.perf_counter()
    source = open_checkpoint(options.model)
    source.check()
    corpus, tokenizer = open_corpus(options.data), source.tokenizer()
    if (name := evaluation_set(corpus)) is not None:
        log.warning("%s is %s: what is measured on it later will look too good", options.data, name)
    _check_length(options.seqlen, source)
    cut = windows(corpus, tokenizer, options.samples, options.seqlen, options.seed, options.chat)
    held_out, text = _held_out(options, tokenizer)
    device = resolve_device(options.device)
    model = _model(options, source, resolve_dtype(options.dtype, device), device)
    loaded = time.perf_counter()

    who = fingerprint(source)
    biased = not (source.spec.has_key_bias and options.cache.kv_bias_free != "off")
    partial = _Partial(Path(options.out), f"{who} {cut.digest} {biased} {options.dtype} {device}")
    statistics = _observe(model, [torch.tensor(ids, device=device) for ids in cut.ids], biased, partial, progress)
    observed = time.perf_counter()

    tensors = check_statistics(statistics, *_sizes(source), options.out).tensors
    about = _about(options, source, who, cut, biased)
    asset = KVAsset(Path(options.out), about, check_statistics(statistics, *_sizes(source), options.out))
    exact_dtype = _exact_dtype(options.dtype, source, device)
    if exact_dtype != model.embedding.dtype:
        del model
        model = _model(options, source, exact_dtype, device)
    bench = _Bench(source, model, weight_loader(source, torch.float32, device), device, asset)
    measured = [torch.tensor(ids, device=device) for ids in held_out]
    if options.sensitivity:
        first = [torch.tensor(ids[: options.sensitivity_tokens], device=device) for ids in cut.ids[:_HELD_OUT]]
        about["sensitivity"] = _sensitivity(options, bench, first, progress)
    _plan(options, bench, measured, about, progress)
    about["held_out"] = text
    about["outliers"] = outlier_rows(asset, bench.chosen.plan)
    write_asset(Path(options.out), about, tensors)
    partial.remove()
    done = time.perf_counter()
    seconds = {"load": loaded - begin, "observe": observed - loaded, "measure": done - observed}
    about = json.loads((Path(options.out) / "kv_plan.json").read_text(encoding="utf-8"))
    return Calibration(Path(options.out), about, seconds)


def _sizes(source: Source) -> tuple[int, int, int]:
    return source.spec.layers, source.spec.kv_heads, source.spec.head_dim


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


def _check_length(seqlen: int, source: Source) -> None:
    if seqlen > source.spec.max_position:
        raise BadValue(
            f"windows of {seqlen} tokens are longer than the model was made for ({source.spec.max_position})",
            hint=f"use --seqlen {source.spec.max_position} or less",
        )


def _held_out(options: CalibrateOptions, tokenizer: Any) -> tuple[list[tuple[int, ...]], str]:
    """Four windows that the statistics never saw: the bundled text, or, if that was the corpus, what it says of it."""
    corpus = open_corpus("bundled")
    cut = windows(corpus, tokenizer, _HELD_OUT, options.sensitivity_tokens, options.seed)
    seen = " (which is also what was calibrated on)" if options.data == "bundled" else ""
    return list(cut.ids), f"bundled text, {_HELD_OUT} x {options.sensitivity_tokens} tokens{seen}"


class _Partial:
    """Running sums of a calibration that was interrupted, kept beside the asset until that is written."""

    def __init__(self, out: Path, key: str):
        self.file, self.key, self.saved = out / "calibration.partial", key, time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Windows done and the observer's state; nothing where there is none, or of another run."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as handle:
                about = handle.metadata() or {}
                if about.get("key") != self.key:
                    return 0, {}
                return int(about["windows"]), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return 0, {}

    def save(self, done: int, state: dict[str, Tensor]) -> None:
        if time.monotonic() - self.saved < _KEPT_EVERY_SECONDS:
            return
        from safetensors.torch import save_file

        self.saved = time.monotonic()
        new = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(state, new, metadata={"key": self.key, "windows": str(done)})
            new.replace(self.file)
        except Exception as error:  # it can still end well: only going on after an interruption is lost
            new.unlink(missing_ok=True)
            log.warning("cannot keep the state of this calibration: %s", error)

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


@torch.inference_mode()
def _observe(
    model: DenseDecoder, tokens: list[Tensor], biased: bool, partial: _Partial, progress: Progress
) -> dict[str, Tensor]:  # fmt: skip
    observer = Observer()
    done, observer.state = partial.load()
    for number in range(done, len(tokens)):
        progress("statistics", number, len(tokens))
        hidden = embed(model, tokens[number])
        for layer in range(model.spec.layers):
            vectors = project(model, layer, hidden)
            observer.take(layer, vectors, biased)
            mixed = attention_output(vectors.q, vectors.k, vectors.v, model.spec.window(layer))
            hidden = layer_step(model, layer, hidden, mixed)
        if not bool(hidden.isfinite().all()):
            raise AssetError(f"window {number}: the model's hidden states are not finite", hint="try --dtype float32")
        partial.save(number + 1, observer.state)
    progress("statistics", len(tokens), len(tokens))
    return observer.statistics()


@dataclass
class _Bench:
    """What plans are made and measured with."""

    source: Source
    model: DenseDecoder
    load: Callable[[str], Tensor]
    device: str
    asset: KVAsset
    chosen: CachePlan = None  # type: ignore[assignment]

    def plan(self, options: CacheOptions) -> CachePlan:
        return plan_for(options, self.source.spec, self.asset)

    def transforms(self, cache: CachePlan) -> Any:
        return make_transforms(cache, self.source.spec, self.load, self.model.rope, self.device)


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


def _sensitivity(
    options: CalibrateOptions, bench: _Bench, tokens: list[Tensor], progress: Progress
) -> dict[str, Any]:  # fmt: skip
    uniform = {}
    for name in options.schemes:
        cache = bench.plan(replace(options.cache, kv_cache_dtype=name))
        uniform[cache.plan.name] = (cache.plan, bench.transforms(cache))
    total, done = len(tokens) * bench.source.spec.layers, 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("sensitivity", done, total)

    progress("sensitivity", 0, total)
    return measure_sensitivity(bench.model, tokens, uniform, advance)


def _plan(
    options: CalibrateOptions, bench: _Bench, tokens: list[Tensor], about: dict[str, Any], progress: Progress
) -> None:
    """Choose the plan, predict its KL where sensitivities allow, measure it on text that was not used."""
    wanted, wishes = options.cache.kv_cache_dtype, options.cache
    if wanted == "auto":
        wishes = replace(wishes, kv_cache_dtype="int8")
    progress("plan", 0, 1)
    cache = bench.plan(wishes)
    found = measure_plan(bench.model, tokens, cache.plan, bench.transforms(cache))
    if wanted.startswith("auto:kl"):
        cache, found = _tighten(
            parse_budget(wanted.removeprefix("auto:")).kl or 0.0, bench, wishes, tokens, cache, found
        )
    law = memory_law(bench.source.spec, cache.plan, wishes.block_size)
    bench.chosen = cache
    about.update(
        kv_cache_dtype=wanted if wanted.startswith("auto:") else cache.plan.name,
        layers=plan_layers(cache.plan),
        bytes_per_token=law.bytes_per_token,
        bits_per_number=law.bits_per_number,
        page_tokens=wishes.block_size,
        kl_predicted=_predicted(about.get("sensitivity"), cache),
        kl_measured=found.kl_mean,
        same_top_measured=found.same_top,
        tokens_measured=found.tokens,
        compute_dtype=str(bench.model.embedding.dtype).removeprefix("torch."),
    )
    progress("plan", 1, 1)


def _predicted(sensitivity: dict[str, Any] | None, cache: CachePlan) -> float | None:
    """The sum of the layers' own divergences, where all schemes of the plan were measured alone."""
    if sensitivity is None:
        return None
    total = 0.0
    for number, layer in enumerate(cache.plan.layers):
        for side, name in (("k", layer.key.scheme.name), ("v", layer.value.scheme.name)):
            if name not in sensitivity[side]:
                return None
            total += sensitivity[side][name][number]
    return total


def _tighten(
    allowed: float, bench: _Bench, wishes: CacheOptions, tokens: list[Tensor], cache: CachePlan, found: Any
) -> tuple[CachePlan, Any]:  # fmt: skip
    """A budget of KL must hold where it is measured: solve again for less until it does, or say that it does not."""
    aim = allowed
    for _ in range(4):
        if found.kl_mean <= allowed:
            return cache, found
        aim *= 0.9 * allowed / found.kl_mean
        budget = parse_budget(f"kl<{aim:.6g}")
        shape = bench.asset.about["shape"]
        solve_budget(budget, bench.asset.about["sensitivity"], shape, wishes.block_size, 1)
        cache = bench.plan(replace(wishes, kv_cache_dtype=f"auto:kl<{aim:.6g}"))
        found = measure_plan(bench.model, tokens, cache.plan, bench.transforms(cache))
    if found.kl_mean > allowed:
        log.warning("the plan measures KL %.3g on text that was not used, above the %.3g asked", found.kl_mean, allowed)
    return cache, found
