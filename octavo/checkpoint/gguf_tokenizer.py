"""The tokenizer inside a GGUF file: tokens, merges or scores, kinds and a chat template, all in the metadata."""

from collections.abc import Sequence
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.checkpoint.bpe import BPEBackend, build_bpe, split_rule
from octavo.checkpoint.gguf_header import GGUFHeader
from octavo.checkpoint.sentencepiece import PieceKind, SentencePieceBackend, SentencePieceOptions, build_model
from octavo.checkpoint.tokenizer import Backend, Tokenizer, merge_ids
from octavo.models.spec import ModelSpec

__all__ = ["tokenizer_of_gguf"]

_PREFIX = "tokenizer.ggml."
_SPECIAL_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_MATCHED = (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
_SKIPPED = (PieceKind.UNKNOWN, PieceKind.CONTROL)
# Files of chat models often name only the end of the document as EOS; these control tokens end a turn.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>")


def tokenizer_of_gguf(header: GGUFHeader, spec: ModelSpec) -> Tokenizer:
    """Build it. Raises CheckpointError if a part is missing or the parts contradict each other."""
    model = header.metadata.get(f"{_PREFIX}model")
    tokens = header.array(f"{_PREFIX}tokens")
    if model is None or not tokens:
        raise CheckpointError(f"{header.path}: holds no tokenizer", hint="name a folder that has one (--tokenizer)")
    if not all(isinstance(token, str) for token in tokens) or len(tokens) > spec.vocab_size:
        raise CheckpointError(f"{header.path}: {len(tokens)} tokens do not fit {spec.vocab_size} embedding rows")
    kinds = header.array(f"{_PREFIX}token_type") or [PieceKind.NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{header.path}: {len(tokens)} tokens but {len(kinds)} token types")
    builders = {"gpt2": _bpe, "llama": _sentencepiece}
    if model not in builders:
        raise CheckpointError(f"{header.path}: tokenizer model {model!r} is not supported (have {', '.join(builders)})")
    ids = {name: _token_id(header, name, len(tokens)) for name in (*_SPECIAL_NAMES, "eot", "eom")}
    if model == "llama":
        ids["bos"], ids["eos"] = (default if ids[n] is None else ids[n] for n, default in (("bos", 1), ("eos", 2)))
    try:
        backend = builders[model](header, tokens, kinds, ids)
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise bare Exception or RuntimeError for vocabularies they refuse
        raise CheckpointError(f"{header.path}: the tokenizer cannot be built: {error}") from None
    turn_ends = [tokens.index(end) for end in _TURN_ENDS if end in tokens]
    turn_ends = [i for i in turn_ends if kinds[i] == PieceKind.CONTROL]
    template = header.metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        bos_token_id=ids["bos"],
        eos_token_ids=merge_ids([ids["eos"], ids["eot"], ids["eom"]], spec.eos_token_ids, turn_ends),
        special_tokens={name: tokens[i] for key, name in _SPECIAL_NAMES.items() if (i := ids[key]) is not None},
        chat_template=template if isinstance(template, str) else None,
    )


def _token_id(header: GGUFHeader, name: str, count: int) -> int | None:
    value = header.metadata.get(f"{_PREFIX}{name}_token_id")
    if value is not None and (not isinstance(value, int) or not 0 <= value < count):
        raise CheckpointError(
            f"{header.path}: `{_PREFIX}{name}_token_id` is {value!r}, the vocabulary has {count} tokens"
        )
    return value


def _switch(header: GGUFHeader, name: str, default: bool) -> bool:
    return bool(header.metadata.get(f"{_PREFIX}{name}", default))


def _bpe(header: GGUFHeader, tokens: Sequence[str], kinds: Sequence[int], ids: dict[str, int | None]) -> Backend:
    """Byte-level BPE, cut by the rule that `tokenizer.ggml.pre` names."""
    from tokenizers import AddedToken

    rule = split_rule(str(header.metadata.get(f"{_PREFIX}pre", "default")))
    spelled = header.array(f"{_PREFIX}merges") or []
    merges = [(merge[:at], merge[at + 1 :]) for merge in spelled if (at := merge.find(" ", 1)) > 0]
    if len(merges) != len(spelled):
        raise CheckpointError(f"{header.path}: `{_PREFIX}merges` holds entries that are not two tokens")
    inner = build_bpe(tokens, merges, rule)
    marked = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in _MATCHED and token]
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in marked if kind in _SKIPPED])
    inner.add_tokens([AddedToken(t, normalized=False) for t, kind in marked if kind not in _SKIPPED])
    bos, eos = _added_ends(header, ids, adds_bos=rule.adds_bos)
    return BPEBackend(inner, [i for i in [bos] if i is not None], [i for i in [eos] if i is not None])


def _sentencepiece(
    header: GGUFHeader, tokens: Sequence[str], kinds: Sequence[int], ids: dict[str, int | None]
) -> Backend:
    """Sentencepiece BPE: the pair with the best score is merged first."""
    scores: list[Any] | None = header.array(f"{_PREFIX}scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(f"{header.path}: {len(tokens)} tokens but {len(scores or [])} scores")
    if PieceKind.UNKNOWN not in kinds:
        raise CheckpointError(f"{header.path}: the vocabulary has no unknown token")
    bos, eos = _added_ends(header, ids, adds_bos=True)
    options = SentencePieceOptions(
        added={token: i for i, token in enumerate(tokens) if kinds[i] in _MATCHED and token},
        special=frozenset(i for i, kind in enumerate(kinds) if kind in _SKIPPED),
        bos=bos,
        eos=eos,
        prefix_each=True,
    )
    spaces = _switch(header, "add_space_prefix", True), _switch(header, "remove_extra_whitespaces", False)
    return SentencePieceBackend(build_model(tokens, scores, kinds, *spaces), options)


def _added_ends(header: GGUFHeader, ids: dict[str, int | None], adds_bos: bool) -> tuple[int | None, int | None]:
    """The ids that encoding puts before and after a text."""
    bos = ids["bos"] if _switch(header, "add_bos_token", adds_bos) else None
    return bos, ids["eos"] if _switch(header, "add_eos_token", False) else None
