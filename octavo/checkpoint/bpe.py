"""Tokenizers run by the `tokenizers` library: a tokenizer.json, or a byte-level BPE built from tokens and merges."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.base.table import Table

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PRE_TOKENIZERS", "BPEBackend", "SplitRule", "build_bpe", "split_rule"]

log = logging.getLogger(__name__)


class BPEBackend:
    """A `tokenizers.Tokenizer`, without padding or truncation. `before` and `after` are ids to put around a text,
    beyond those that its own post-processor adds."""

    def __init__(self, inner: "tokenizers.Tokenizer", before: Sequence[int] = (), after: Sequence[int] = ()):
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self._before, self._after = list(before), list(after)
        self._size = inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # of a batch, since that lets other threads run meanwhile, and without offsets it takes half the time
        ids = self.inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return self._before + ids + self._after if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def vocab_size(self) -> int:
        return self._size

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)

    def vocabulary(self) -> str:
        return self.inner.to_str()


@dataclass(frozen=True)
class SplitRule:
    """How text is cut before merging: `patterns` one after the other, each isolating what it matches. `whole_words`: a
    piece that is a token is taken whole, whatever the merges say. `adds_bos` when the file does not say."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    normal_form: bool = False
    """normalize to NFC first"""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _SYMBOLS, _SPACES = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = "|".join([_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES])
_QWEN2 = "|".join([_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS, _SPACES])
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = "|".join([_CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES])
_CJK = r"[一-龥ࠀ-一가-퟿]+"
# The published rule lists letters one range after the other; they are the cased ones.
_DEEPSEEK_LLM = ("[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+")
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")

# By `tokenizer.ggml.pre`. Beware: `tokenizers` and the files' own authors must agree on every token of every text.
PRE_TOKENIZERS: Table[SplitRule] = Table(
    "pre-tokenizer",
    {
        "gpt-2": SplitRule((_GPT2,)),
        "smollm": SplitRule((r"\p{N}", _GPT2)),
        "llama-bpe": SplitRule((_LLAMA3,), whole_words=True, adds_bos=True),
        "qwen2": SplitRule((_QWEN2,), normal_form=True),
        "tekken": SplitRule((_TEKKEN,), whole_words=True, adds_bos=True),
        "deepseek-llm": SplitRule(_DEEPSEEK_LLM),
        "deepseek-coder": SplitRule(_DEEPSEEK_CODER),
    },
    aliases={
        "default": "gpt-2",
        "phi-2": "gpt-2",
        "starcoder": "smollm",
        "refact": "smollm",
        "codeshell": "smollm",
        "llama3": "llama-bpe",
        "llama-v3": "llama-bpe",
        "falcon3": "llama-bpe",
        "pixtral": "llama-bpe",
        "smaug-bpe": "llama-bpe",
        "stablelm2": "qwen2",
        "deepseek-r1-qwen": "qwen2",
        "megrez": "qwen2",
    },
)


def split_rule(name: str) -> SplitRule:
    """The rule called `name`; for an unknown name GPT-2's, aloud."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    log.warning(
        "unknown pre-tokenizer `%s` (have %s): text is cut by the rule of gpt-2", name, ", ".join(PRE_TOKENIZERS)
    )
    return PRE_TOKENIZERS["gpt-2"]


def build_bpe(tokens: Sequence[str], merges: Sequence[tuple[str, str]], rule: SplitRule) -> "tokenizers.Tokenizer":
    """A byte-level BPE; ids are positions in `tokens`. Raises what `tokenizers` raises for merges of unknown tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocabulary.setdefault(token, i)
    inner = Tokenizer(models.BPE(vocabulary, list(merges), ignore_merges=rule.whole_words))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns]
    bytes_to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_to_characters])  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if rule.normal_form:
        inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
    return inner
