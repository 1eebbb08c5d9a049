"""The model `octavo` of lm-evaluation-harness: its requests through our engine and its cache.

Pairs are encoded and split by the harness' own code (TemplateLM), windows of running text are cut by it too; here they
become sequences that are scored together, those with the same context once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

from octavo.base.errors import RequestError
from octavo.base.log import log
from octavo.checkpoint.load import resolve_device
from octavo.engine.llm import LLM
from octavo.evals.harness.arguments import FIRST_GPU, engine_options, max_tokens_of, sampling_of
from octavo.evals.scorer import score_rows
from octavo.evals.sequences import Scored

__all__ = ["OctavoLM"]

_WAVE_ROWS, _WAVE_SEQUENCES = 2048, 256
"""scored positions, each with a row of the whole vocabulary, and sequences that are in memory at once"""
_WAVE_PROMPTS = 256
_CPU_PAGE = 8
"""tokens of a page, so that contexts are shared nearly to their end"""
Key = tuple[tuple[int, ...], int]
Pair = tuple[Any, list[int], list[int]]


class OctavoLM(TemplateLM):
    """Keyword arguments: `pretrained`, fields of EngineOptions, and what the harness adds. `batch_size` says nothing
    here: the scheduler fills its batches. `add_bos_token`: None is what the checkpoint asks for."""

    def __init__(
        self, batch_size: Any = None, max_batch_size: Any = None, add_bos_token: bool | None = None, **given: Any
    ):
        super().__init__()
        options = engine_options(given)
        if "block_size" not in options and resolve_device(options.get("device", "auto")) == "cpu":
            options["block_size"] = _CPU_PAGE
        self.llm = LLM(**options)
        if given.get("device") in FIRST_GPU and self.llm.device == "cpu":
            log.warning("no GPU here: %s runs on the CPU", self.llm.source.name)
        self.add_bos_token = add_bos_token

    @property
    def eot_token_id(self) -> int:
        return self.llm.tokenizer.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or the end of the text before."""
        bos = self.llm.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.llm.cache.max_model_len

    @property
    def tokenizer_name(self) -> str:
        return self.llm.source.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.llm.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.llm.tokenizer.render(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the checkpoint asks, but no second BOS where a chat template wrote the first."""
        chosen = self.add_bos_token if add_special_tokens is None else add_special_tokens
        bos = self.llm.tokenizer.special_tokens.get("bos_token")
        if add_special_tokens is None and bos and string.startswith(bos):
            chosen = False
        return self.llm.tokenizer.encode(string, add_special_tokens=True if chosen is None else chosen)

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        """Of each continuation its summed log-probability, and whether greedy decoding would have written it.

        What is too long loses its beginning, as with the harness' own models. Raises RequestError."""
        groups: dict[Key, list[int]] = {}
        for index, (pair, context, continuation) in enumerate(requests):
            if not continuation:
                raise RequestError(f"no token is left to score after the context: {pair!r}")
            whole = (*context, *continuation)[-(self.max_length + 1) :]
            groups.setdefault((whole[:-1], max(len(whole) - 1 - len(continuation), 0)), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for wave in _waves(list(groups)):
            rows = score_rows(self.llm, [Scored(tokens, first, ()) for tokens, first in wave])
            for key, row in zip(wave, rows, strict=True):
                best = row.argmax(-1).tolist()
                for index in groups[key]:
                    pair, wanted = requests[index][0], requests[index][2][-len(best) :]
                    total = sum(float(row[at, token]) for at, token in enumerate(wanted))
                    found[index] = (total, best == wanted)
                    if pair is not None:
                        self.cache_hook.add_partial("loglikelihood", pair, found[index])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text, every token once, in windows of `max_length`."""
        windows: list[Pair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to, and without, the first of `until`. Prompts that leave no room lose their beginning."""
        texts: list[str] = []
        for begin in range(0, len(requests), _WAVE_PROMPTS):
            part = [request.args for request in requests[begin : begin + _WAVE_PROMPTS]]
            prompts = [
                self.tok_encode(context)[-max(self.max_length - max_tokens_of(kwargs), 1) :] for context, kwargs in part
            ]
            found = self.llm.generate(prompts, [sampling_of(kwargs) for _, kwargs in part])
            for args, output in zip(part, found, strict=True):
                texts.append(output.text)
                self.cache_hook.add_partial("generate_until", args, output.text)
        return texts


def _waves(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """Neighbours, which have contexts in common, as many as fit."""
    wave: list[Key] = []
    rows = 0
    for tokens, first in keys:
        count = len(tokens) - first
        if wave and (rows + count > _WAVE_ROWS or len(wave) == _WAVE_SEQUENCES):
            yield wave
            wave, rows = [], 0
        wave.append((tokens, first))
        rows += count
    if wave:
        yield wave
