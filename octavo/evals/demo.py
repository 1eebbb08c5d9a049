"""The main job of `make demo`: one model, two caches, sixteen chats; what each cost and where they differ."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from octavo.calibrate.divergence import Divergence, measure
from octavo.engine.llm import LLM, RequestOutput
from octavo.engine.sampling import SamplingParams
from octavo.kv.schemes import SCHEMES

__all__ = ["CHATS", "Answer", "CacheRun", "DemoReport", "run_demo"]

CHATS = (
    "What is the capital of France, and which river runs through it?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about a library at night.",
    "List three uses for an old newspaper.",
    "What is a page of a book called when a sheet is folded to eight leaves?",
    "How do I boil an egg so that the yolk stays soft?",
    "Translate 'good morning, my friend' into Spanish.",
    "What is the difference between weather and climate?",
    "Give me a short definition of photosynthesis.",
    "Write one polite sentence that declines a meeting.",
    "Name four planets of the solar system.",
    "What does a compiler do?",
    "Suggest a name for a small bakery, and say why.",
    "Why do we have leap years?",
    "Describe the taste of a lemon to someone who has never had one.",
    "Give me a tip for learning a new language.",
)


@dataclass(frozen=True)
class CacheRun:
    """One cache: what it is, what it took, how fast it was."""

    dtype: str
    plan: str
    kernels: str
    bytes_per_token: float
    allocated_bytes: int
    capacity_tokens: int
    pages: int
    peak_pages: int
    peak_bytes: int
    """bytes of the pages that were in use at the fullest moment"""
    prompt_tokens: int
    output_tokens: int
    seconds: float
    output_tokens_per_second: float


@dataclass(frozen=True)
class Answer:
    """One chat, answered through both caches."""

    prompt: str
    baseline: str
    folded: str
    identical: bool
    same_top: float
    """at how many positions of the baseline's answer the folded cache's model ranks the same token first"""
    kl_mean: float


@dataclass(frozen=True)
class DemoReport:
    model: str
    parameters: int
    compute_dtype: str
    device: str
    load_seconds: float
    baseline: CacheRun
    folded: CacheRun
    answers: tuple[Answer, ...]
    identical_answers: int
    divergence: Divergence
    control: Divergence
    """the baseline against an exact cache: how far apart two caches nobody doubts are, in this compute dtype"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_demo(model: str, dtype: str, folded: str, baseline: str, max_tokens: int) -> DemoReport:
    """Greedy answers to `CHATS` through both caches, in one batch each; then the folded cache's model is asked for its
    distribution at every position of the baseline's answers (teacher forcing through the cache), and so is an exact
    cache, as a control."""
    begin = time.perf_counter()
    capacity = len(CHATS) * 512
    options = {"kv_cache_memory": f"{capacity}tok", "max_num_seqs": len(CHATS)}
    reference = LLM(model, dtype=dtype, kv_cache_dtype=baseline, **options)
    load_seconds = time.perf_counter() - begin
    other = reference.with_cache(kv_cache_dtype=folded)
    answers = {}
    runs = {}
    for name, llm in (("baseline", reference), ("folded", other)):
        answers[name], runs[name] = _generate(llm, max_tokens)
    control = reference.with_cache(kv_cache_dtype=_exact_scheme())
    pairs, control_pairs = _teacher_forced(reference, (other, control), answers["baseline"])
    rows = [_answer(*row) for row in zip(CHATS, answers["baseline"], answers["folded"], pairs, strict=True)]
    return DemoReport(
        model=reference.source.name,
        parameters=reference.source.spec.parameters,
        compute_dtype=reference.dtype,
        device=reference.device,
        load_seconds=load_seconds,
        baseline=runs["baseline"],
        folded=runs["folded"],
        answers=tuple(rows),
        identical_answers=sum(row.identical for row in rows),
        divergence=measure(pairs),
        control=measure(control_pairs),
    )


def _exact_scheme() -> str:
    return next(name for name, scheme in SCHEMES.items() if scheme.exact)


def _generate(llm: LLM, max_tokens: int) -> tuple[list[RequestOutput], CacheRun]:
    prompts = [llm.tokenizer.chat([{"role": "user", "content": text}]) for text in CHATS]
    llm.generate([prompts[0]], SamplingParams(max_tokens=2, temperature=0))  # kernels compile or load here
    peak = 0

    def watch(_: object) -> None:
        nonlocal peak
        peak = max(peak, llm.engine.pages.held)

    begin = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=max_tokens, temperature=0), on_event=watch)
    seconds = time.perf_counter() - begin
    produced = sum(len(output.token_ids) for output in outputs)
    cache = llm.cache
    page_bytes = cache.bytes_per_token * cache.page_tokens
    run = CacheRun(
        cache.dtype, cache.plan, cache.kernels, cache.bytes_per_token, cache.allocated_bytes, cache.capacity_tokens,
        cache.pages, peak, int(peak * page_bytes), sum(map(len, prompts)), produced, seconds, produced / seconds,
    )  # fmt: skip
    return outputs, run


def _teacher_forced(
    reference: LLM, others: tuple[LLM, ...], answers: list[RequestOutput]
) -> tuple[list[tuple[Tensor, Tensor]], ...]:
    """For each of `others`: log-probabilities (reference, other) at the positions that chose each baseline token."""
    pairs: tuple[list[tuple[Tensor, Tensor]], ...] = tuple([] for _ in others)
    for output in answers:
        ids = output.prompt_token_ids + output.token_ids
        first = len(output.prompt_token_ids) - 1
        want = reference.score(ids)[first:-1]
        for found, llm in zip(pairs, others, strict=True):
            found.append((want, llm.score(ids)[first:-1]))
    return pairs


def _answer(prompt: str, baseline: RequestOutput, folded: RequestOutput, pair: tuple[Tensor, Tensor]) -> Answer:
    found = measure([pair])
    identical = baseline.token_ids == folded.token_ids
    return Answer(prompt, baseline.text, folded.text, identical, found.same_top, found.kl_mean)
