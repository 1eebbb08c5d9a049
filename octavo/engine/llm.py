"""The offline API: load once, generate, chat, score."""

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from octavo.base.errors import BadValue, OctavoError, RequestError
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.build import LoadedEngine, build_engine
from octavo.engine.options import EngineOptions
from octavo.engine.request import FinishReason, Request, TokenEvent, TokenLogprobs
from octavo.engine.sampling import SamplingParams
from octavo.kv.clips import ClipCount

__all__ = ["LLM", "Completion", "RequestOutput"]

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """One continuation. `token_ids` includes the end-of-sequence token that ended it; `text` does not show it."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True)
class RequestOutput:
    """What one prompt got. `error` is set, and `outputs` empty, when the prompt itself was at fault."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int = 0
    error: OctavoError | None = None

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason


class LLM:
    """A model and its cache in this process. Keyword arguments are the fields of `EngineOptions`."""

    def __init__(self, model: str, **options: Any):
        unknown = set(options) - set(EngineOptions.__dataclass_fields__)
        if unknown:
            raise BadValue(
                f"unknown option{'s' * (len(unknown) > 1)}: {', '.join(sorted(unknown))}",
                hint=f"have {', '.join(EngineOptions.__dataclass_fields__)}",
            )
        resolved = EngineOptions(model=model, **options)
        self._take(resolved, build_engine(resolved))

    def with_cache(self, **options: Any) -> "LLM":
        """Another LLM with the same weights in memory and another cache: to compare the two, or to change its size.

        Raises BadValue for an option of the weights themselves, which cannot change here.
        """
        fixed = sorted({"model", "tokenizer", "dtype", "device", "deterministic"} & set(options))
        if fixed:
            raise BadValue(f"with_cache keeps the weights and cannot change {', '.join(fixed)}", hint="make a new LLM")
        other = object.__new__(LLM)
        changed = replace(self.options, **options)
        other._take(changed, build_engine(changed, self._weights))
        return other

    def _take(self, options: EngineOptions, loaded: LoadedEngine) -> None:
        self.options, self._weights = options, loaded.weights
        self.engine, self.cache = loaded.engine, loaded.facts
        self.source, self.device = loaded.weights.source, loaded.weights.device
        self.dtype = str(loaded.weights.dtype).removeprefix("torch.")
        self._ids = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises RequestError where the checkpoint brought none."""
        if self._weights.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer", hint="give token ids, or name one with --tokenizer")
        return self._weights.tokenizer

    @property
    def clipped(self) -> list[ClipCount]:
        """For each layer and side that is stored with a static scale: how many of its numbers were out of range."""
        clips = self.engine.runner.clips
        return [] if clips is None else clips.report()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[TokenEvent], None] | None = None,
        keep_going: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt (text, or token ids). One `SamplingParams` for all, or one each.

        A prompt that cannot be served raises RequestError before anything runs; with `keep_going` it gets an output
        with `error` set instead and the others are answered.
        """
        many = _as_list(prompts)
        given = sampling_params
        each = list(given) if isinstance(given, Sequence) else [given or SamplingParams()] * len(many)
        if len(each) != len(many):
            raise BadValue(f"{len(many)} prompts and {len(each)} sampling params: give one for all or one each")
        jobs: list[Request | OctavoError] = []
        encoded: list[list[int]] = []
        try:
            for prompt, one in zip(many, each, strict=True):
                try:
                    encoded.append(self._encode(prompt))
                    jobs.append(self.engine.add(self._next_id(), encoded[-1], one))
                except OctavoError as error:
                    if not keep_going:
                        raise
                    encoded += [[]] * (len(jobs) + 1 - len(encoded))
                    jobs.append(error)
            for event in self._drive():
                if on_event is not None:
                    on_event(event)
        except BaseException:
            self.engine.drain()
            raise
        return [_output(p, ids, job) for p, ids, job in zip(many, encoded, jobs, strict=True)]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | None = None,
        **kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: lists of `{"role": ..., "content": ...}` through the chat template."""
        if not messages:
            raise RequestError("no messages were given")
        conversations = [messages] if isinstance(messages[0], Mapping) else messages
        prompts = [self.tokenizer.chat(list(conversation)) for conversation in conversations]  # type: ignore[arg-type]
        return self.generate(prompts, sampling_params, **kwargs)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Generator[TokenEvent]:
        """Continue one prompt, event by event. Closing the iterator aborts the request."""
        request_id = self._next_id()
        self.engine.add(request_id, self._encode(prompt), sampling_params or SamplingParams())
        try:
            for event in self._drive():
                if event.request_id == request_id:
                    yield event
        finally:
            self.engine.abort(request_id)

    def score(self, prompts: Sequence[int] | Sequence[Sequence[int]], first: int | Sequence[int] = 0) -> Any:
        """Log-probabilities of what follows each position, through the cache: fp32 `[T, V]` for token ids `[T]`.

        Row t is the distribution of token t + 1 given tokens 0..t; rows before `first` are left out (one number, or one
        for each sequence), and what comes before them may be read from shared pages. A list of sequences gives a list
        of tensors.
        """
        plain = _plain(prompts)
        single = not plain or isinstance(plain[0], int)
        many: list[Any] = [plain] if single else plain
        starts = [first] * len(many) if isinstance(first, int) else list(first)
        if len(starts) != len(many):
            raise BadValue(f"{len(many)} sequences and {len(starts)} first positions: give one for all or one each")
        params = SamplingParams(max_tokens=1)
        try:
            jobs = [
                self.engine.add(self._next_id(), list(ids), params, scores=True, score_from=start)
                for ids, start in zip(many, starts, strict=True)
            ]
            for _ in self._drive():
                pass
        except BaseException:
            self.engine.drain()
            raise
        scored = [torch.cat(job.scored) for job in jobs]
        return scored[0] if single else scored

    def _drive(self) -> Iterator[TokenEvent]:
        while self.engine.busy:
            yield from self.engine.step()

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty", hint="give at least one character")
            return self.tokenizer.encode(prompt)
        return [int(token) for token in prompt]

    def _next_id(self) -> str:
        return f"offline-{next(self._ids)}"


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    plain = _plain(prompts)
    return [plain] if plain and isinstance(plain[0], int) else plain


def _plain(ids: Any) -> list[Any]:
    """Token ids, or lists of them, as Python numbers: tensors and arrays are welcome too."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return [item.tolist() if hasattr(item, "tolist") else item for item in ids]


def _output(prompt: Prompt, ids: list[int], job: Request | OctavoError) -> RequestOutput:
    text = prompt if isinstance(prompt, str) else None
    if isinstance(job, OctavoError):
        return RequestOutput(text, ids, [], error=job)
    assert job.finish_reason is not None, f"{job.id} was driven to its end but has no finish reason"
    completion = Completion(job.text.text if job.text else "", job.output, job.finish_reason, job.logprobs)
    return RequestOutput(text, ids, [completion], job.prompt_logprobs, job.cached)
