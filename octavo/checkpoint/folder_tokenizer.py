"""The tokenizer of a Hugging Face folder: tokenizer.json, or tokenizer.model, or whatever transformers can convert."""

from pathlib import Path
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.checkpoint.bpe import BPEBackend
from octavo.checkpoint.jsonfile import read_json_if_there
from octavo.checkpoint.sentencepiece import PieceKind, SentencePieceBackend, SentencePieceOptions, read_pieces
from octavo.checkpoint.tokenizer import Backend, Tokenizer, merge_ids
from octavo.models.spec import ModelSpec

__all__ = ["tokenizer_of_folder"]

_SLOW_FILES = ("vocab.json", "tiktoken.model", "tokenizer.model")


def tokenizer_of_folder(folder: Path, spec: ModelSpec | None = None) -> Tokenizer:
    """Build it; `spec` adds the ids that end a reply. Raises CheckpointError if there is none or it cannot be read."""
    config = read_json_if_there(folder / "special_tokens_map.json") | {
        name: value for name, value in read_json_if_there(folder / "tokenizer_config.json").items() if value is not None
    }
    special = {name: text for name, value in config.items() if name.endswith("_token") and (text := _text(value))}
    backend = _backend(folder, config, special)
    generation = read_json_if_there(folder / "generation_config.json").get("eos_token_id")
    generation_ends = generation if isinstance(generation, list) else [generation]
    own_end = backend.token_id(special["eos_token"]) if "eos_token" in special else None
    own_start = backend.token_id(special["bos_token"]) if "bos_token" in special else None
    return Tokenizer(
        backend,
        bos_token_id=spec.bos_token_id if own_start is None and spec else own_start,
        eos_token_ids=merge_ids(
            [own_end], spec.eos_token_ids if spec else (), [i for i in generation_ends if type(i) is int and i >= 0]
        ),
        special_tokens=special,
        chat_template=_chat_template(folder, config),
    )


def _text(value: Any) -> str | None:
    """A special token is a string, or an object whose `content` is one. Empty ones (old files) count as absent."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The default template: its own file first, then the config (a text, or a list of named ones)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
    template = config.get("chat_template") or read_json_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _backend(folder: Path, config: dict[str, Any], special: dict[str, str]) -> Backend:
    """Adds to `special` what only the backend's own file says."""
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder / "tokenizer.json", config, special)
    if model := _sentencepiece_model(folder / "tokenizer.model"):
        return _from_sentencepiece(folder, model, config, special)
    if any((folder / name).is_file() for name in _SLOW_FILES):
        return _converted(folder)
    raise CheckpointError(
        f"{folder}: no tokenizer (looked for tokenizer.json, {', '.join(_SLOW_FILES)})",
        hint="name a folder that has one (--tokenizer)",
    )


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """id -> {content, special, lstrip, ...}, from added_tokens.json and `added_tokens_decoder`, in order of id."""
    plain = read_json_if_there(folder / "added_tokens.json")
    described = config.get("added_tokens_decoder", {})
    try:
        added = {int(i): {"content": token} for token, i in plain.items()}
        added |= {int(i): dict(entry) for i, entry in described.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{folder}: the added tokens are not ids and texts") from None
    bad = [i for i, entry in added.items() if not isinstance(entry.get("content"), str)]
    if bad:
        raise CheckpointError(f"{folder}: added token {bad[0]} has no text")
    return dict(sorted(added.items()))


def _from_json(file: Path, config: dict[str, Any], special: dict[str, str]) -> Backend:
    """The `tokenizers` library reads it. What it adds around a text is the file's own business (its post-processor);
    tokens that only the config knows are added behind."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file}: cannot be read: {error}", hint="download the file again") from None
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    for entry in _added_tokens(file.parent, config).values():
        if entry["content"] not in known:
            given = {flag: bool(entry[flag]) for flag in flags if flag in entry}
            given["special"] = given.get("special", False) or entry["content"] in special.values()
            inner.add_tokens([AddedToken(entry["content"], **given)])
            known.add(entry["content"])
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    texts = [*special.values(), *map(_text, listed)]
    inner.add_special_tokens([AddedToken(t, special=True) for t in dict.fromkeys(texts) if t and t not in known])
    return BPEBackend(inner)


def _sentencepiece_model(file: Path) -> bytes | None:
    """Its content, if it is a sentencepiece model: lists of tokens in base64 go by this name too."""
    if not file.is_file():
        return None
    model = file.read_bytes()
    return model if read_pieces(model) else None


def _from_sentencepiece(folder: Path, model: bytes, config: dict[str, Any], special: dict[str, str]) -> Backend:
    """The library itself encodes. BOS is added unless the config says no (as LLaMA's own code does)."""
    found = read_pieces(model)
    assert found, f"{folder}: not a sentencepiece model"
    for name, piece in (("bos_token", found.bos), ("eos_token", found.eos), ("unk_token", found.unknown)):
        if piece:
            special.setdefault(name, piece)
    matched = (PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.USER_DEFINED)
    added = {piece: i for i, (piece, kind) in enumerate(found.pieces) if kind in matched and piece}
    skipped = {i for i, (_, kind) in enumerate(found.pieces) if kind in (PieceKind.CONTROL, PieceKind.UNKNOWN)}
    for i, entry in _added_tokens(folder, config).items():
        if entry["content"]:
            added[entry["content"]] = i
        skipped |= {i} if entry.get("special") else set()
    skipped |= {added[text] for text in special.values() if text in added}
    options = SentencePieceOptions(
        added=added,
        special=frozenset(skipped),
        bos=added.get(special.get("bos_token", "")) if config.get("add_bos_token", True) else None,
        eos=added.get(special.get("eos_token", "")) if config.get("add_eos_token", False) else None,
        prefix_each=config.get("legacy") is True,
    )
    try:
        return SentencePieceBackend(model, options)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / 'tokenizer.model'}: cannot be read: {error}") from None


def _converted(folder: Path) -> Backend:
    """Formats of their own (vocab.json and merges.txt, tiktoken): transformers converts them."""
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        return BPEBackend(inner.backend_tokenizer)
    except Exception as error:  # whatever transformers trips over is about these files
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{folder}: transformers cannot read the tokenizer: {cause[0]}") from None
