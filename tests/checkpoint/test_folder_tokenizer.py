"""Tokenizers of folders, against transformers and sentencepiece."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from gguf_files import VOCAB, WIDTH, write_model
from texts import CORPUS, TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from octavo.base.errors import CheckpointError
from octavo.checkpoint import open_checkpoint, open_tokenizer

FLAGS = [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}]


def byte_level() -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.enable_truncation(4)
    inner.enable_padding(length=8, pad_id=1, pad_token="</s>")
    return inner


def config_of(**changes) -> dict:
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **changes}


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def spm_model() -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        model_type="bpe",
        vocab_size=540,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return made.getvalue()


@pytest.mark.parametrize("flags", FLAGS)
def test_tokenizer_json_gives_transformers_ids(flags, tmp_path):
    from transformers import AutoTokenizer

    byte_level().save(str(tmp_path / "tokenizer.json"))
    extra = {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": True, "normalized": False}
    added = {"added_tokens_decoder": {"500": extra | {"single_word": False}}, "additional_special_tokens": ["<|more|>"]}
    write_json(tmp_path / "tokenizer_config.json", config_of(**added, **flags))
    ours, theirs = open_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "<s>hi</s>", "a <|tool|> b<|more|>c"]:
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.vocab_size == len(theirs)


def test_ends_are_merged(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", config_of())
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, 7]})
    assert open_tokenizer(str(tmp_path)).eos_token_ids == (1, 7)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 9})
    assert open_tokenizer(str(tmp_path)).eos_token_ids == (1, 9)


def test_chat_templates_of_folders(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    messages = [{"role": "user", "content": "hi"}]
    for template in ("{{ bos_token }}A", [{"name": "tool", "template": "T"}, {"name": "default", "template": "A"}]):
        write_json(tmp_path / "tokenizer_config.json", config_of(chat_template=template))
        assert open_tokenizer(str(tmp_path)).render(messages).endswith("A")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}B{{ messages[0].content }}")
    tokenizer = open_tokenizer(str(tmp_path))
    assert tokenizer.render(messages) == "<s>Bhi"
    assert tokenizer.chat(messages).count(tokenizer.bos_token_id) == 1


def reference(spm_model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=spm_model)


@pytest.mark.parametrize("flags", FLAGS)
def test_tokenizer_model_equals_sentencepiece(flags, spm_model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm_model)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "", "tokenizer_class": "LLaMATokenizer", **flags})
    ours, theirs = open_tokenizer(str(tmp_path)), reference(spm_model)
    before = [1] if flags.get("add_bos_token", True) else []
    after = [2] if flags.get("add_eos_token") else []
    for text in TEXTS:
        assert ours.encode(text) == before + theirs.encode(text) + after, text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (ours.bos_token_id, ours.eos_token_ids, ours.vocab_size) == (1, (2,), theirs.vocab_size())


def test_extended_vocabulary(spm_model, tmp_path):
    """As in LLaMA with a Chinese extension: tokens past the sentencepiece vocabulary."""
    (tmp_path / "tokenizer.model").write_bytes(spm_model)
    write_json(tmp_path / "added_tokens.json", {"<pad>": 540, "[狐狸]": 541})
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": "<pad>"})
    ours, theirs = open_tokenizer(str(tmp_path)), reference(spm_model)
    assert ours.vocab_size == 542
    assert ours.encode("<pad>", add_special_tokens=False) == [540]
    tail = ours.encode("今天[狐狸]", add_special_tokens=False)
    assert tail == [*theirs.encode("今天"), 541]
    assert ours.decode([*tail, 540]) == "今天[狐狸]"
    assert ours.encode("<s>hi</s>", add_special_tokens=False)[0] == 1
    assert ours.decode([*theirs.encode("狐"), 1]) == "狐"


def test_bytes_of_half_a_character(spm_model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm_model)
    ours = open_tokenizer(str(tmp_path))
    ids = ours.encode("🙂", add_special_tokens=False)
    assert len(ids) == 5
    assert ours.decode(ids[:-1]).startswith("�")
    assert ours.decode(ids) == "🙂"


def test_gguf_of_a_sentencepiece_model(spm_model, tmp_path):
    import numpy

    theirs = reference(spm_model)
    kinds = [
        6 if theirs.is_byte(i) else 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 1
        for i in range(theirs.vocab_size())
    ]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in range(theirs.vocab_size())],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in range(theirs.vocab_size())],
        "tokenizer.ggml.token_type": kinds,
    }
    data = {"token_embd.weight": numpy.zeros((max(VOCAB, len(kinds)), WIDTH), numpy.float32)}
    path = write_model(tmp_path / "s.gguf", fields=fields, data=data)
    ours = open_checkpoint(str(path)).tokenizer()
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text)]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    path = write_model(tmp_path / "s.gguf", fields=fields | {"tokenizer.ggml.add_space_prefix": False}, data=data)
    spaceless = open_checkpoint(str(path)).tokenizer()
    assert spaceless.decode(spaceless.encode("Hello")) == "Hello"
    assert spaceless.encode("Hello") != ours.encode("Hello")


def test_formats_that_transformers_converts(tmp_path):
    inner = byte_level()
    model = json.loads(inner.to_str())["model"]
    write_json(tmp_path / "vocab.json", model["vocab"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"})
    write_json(tmp_path / "config.json", {"model_type": "qwen2"})
    from octavo.checkpoint.folder_tokenizer import tokenizer_of_folder

    ours = tokenizer_of_folder(tmp_path)
    assert ours.decode(ours.encode("Hello 今天")) == "Hello 今天"
    assert ours.eos_token_ids == (1,)


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model"]
)
def test_corrupt_files_are_named(file, tmp_path):
    if file != "tokenizer.model":
        byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_bytes(b'{"model": ')
    with pytest.raises(CheckpointError):
        open_tokenizer(str(tmp_path))


def test_unigram_models_too(tmp_path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=made, vocab_size=250, num_threads=1, minloglevel=2,
        character_coverage=0.98, hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    ours, theirs = open_tokenizer(str(tmp_path)), reference(made.getvalue())
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text)]
