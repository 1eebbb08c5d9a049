"""Tokenizers rebuilt from GGUF metadata, against the tokenizers that the metadata was taken from."""

import logging

import pytest
from gguf_files import VOCAB, write_model
from texts import CORPUS, TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.base.errors import CheckpointError
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.bpe import PRE_TOKENIZERS, build_bpe
from octavo.checkpoint.sentencepiece import PieceKind

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def pre_tokenizer(name: str):
    return build_bpe(["a"], [], PRE_TOKENIZERS[name]).pre_tokenizer


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    """A byte-level BPE per rule, trained on the toy corpus."""
    made = {}
    for name in PRE_TOKENIZERS:
        inner = Tokenizer(models.BPE(ignore_merges=PRE_TOKENIZERS[name].whole_words))
        inner.pre_tokenizer, inner.decoder = pre_tokenizer(name), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(CORPUS, trainer)
        made[name] = inner
    return made


def fields_of(inner: Tokenizer, pre: str) -> dict:
    import json

    model = json.loads(inner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    }


def tokenizer_of(path, fields: dict):
    import numpy
    from gguf_files import WIDTH

    data = {"token_embd.weight": numpy.zeros((max(len(fields["tokenizer.ggml.tokens"]), VOCAB), WIDTH), numpy.float32)}
    return open_checkpoint(str(write_model(path / "t.gguf", fields=fields, data=data))).tokenizer()


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_same_ids_as_the_original(pre, trained, tmp_path):
    ours = tokenizer_of(tmp_path, fields_of(trained[pre], pre))
    before = [1] if PRE_TOKENIZERS[pre].adds_bos else []
    for text in TEXTS:
        want = trained[pre].encode(text).ids
        if not PRE_TOKENIZERS[pre].normal_form:
            assert ours.encode(text) == before + want
            assert ours.decode(ours.encode(text)) == text
    assert ours.encode("<|im_start|>hi<|im_end|>", add_special_tokens=False)[0] == 1
    assert ours.decode([1, 2]) == ""
    assert ours.decode([1, 2], skip_special_tokens=False) == "<|im_start|><|im_end|>"


def test_rules_cut_where_they_should():
    def pieces(name: str, text: str) -> list[str]:
        return [text[start:end] for _, (start, end) in pre_tokenizer(name).pre_tokenize_str(text)]

    assert pieces("smollm", "in 2024 it's") == ["in", " ", "2", "0", "2", "4", " it", "'s"]
    assert pieces("gpt-2", "in 2024!") == ["in", " 2024", "!"]
    assert pieces("llama-bpe", "x 12345 IT'S") == ["x", " ", "123", "45", " IT", "'S"]
    assert pieces("qwen2", "x 123\n\ny") == ["x", " ", "1", "2", "3", "\n\n", "y"]
    assert pieces("tekken", "helloWorld 42") == ["hello", "World", " ", "4", "2"]
    assert pieces("deepseek-llm", "ab 狐狸12") == ["ab", " ", "狐狸", "12"]


def test_special_user_defined_and_end_tokens(trained, tmp_path):
    fields = fields_of(trained["gpt-2"], "gpt-2")
    fields["tokenizer.ggml.tokens"] += ["<tool>"]
    fields["tokenizer.ggml.token_type"] += [4]
    fields |= {"tokenizer.ggml.add_eos_token": True, "tokenizer.chat_template": "{{ bos_token }}x"}
    ours = tokenizer_of(tmp_path, fields)
    tool = len(fields["tokenizer.ggml.tokens"]) - 1
    assert ours.encode("<tool>") == [tool, 0]
    assert ours.decode([tool, 0]) == "<tool>"
    assert ours.eos_token_ids == (0, 2)
    assert ours.bos_token_id == 1
    assert ours.vocab_size == tool + 1
    assert ours.decode([tool, 10**6, -1]) == "<tool>"
    assert ours.render([{"role": "user", "content": ""}]) == "<|im_start|>x"


def test_unknown_rule_warns_and_falls_back(trained, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ours = tokenizer_of(tmp_path, fields_of(trained["gpt-2"], "tomorrow"))
    assert "tomorrow" in caplog.text
    assert ours.encode("Hello world") == trained["gpt-2"].encode("Hello world").ids


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.model": "t5"}, "not supported"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "do not fit"),
        ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id"),
        ({"tokenizer.ggml.merges": ["ab"]}, "not two tokens"),
        ({"tokenizer.ggml.merges": ["nothere neither"]}, "cannot be built"),
        ({"tokenizer.ggml.model": "llama"}, "0 scores"),
    ],
)
def test_contradictions_are_named(changes, said, trained, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        tokenizer_of(tmp_path, fields_of(trained["gpt-2"], "gpt-2") | changes)


def test_smollm2():
    tokenizer = open_checkpoint("smollm2").tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.vocab_size) == (1, (2,), 49152)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = tokenizer.encode("12345")
    assert [tokenizer.decode([i]) for i in digits] == list("12345")
    ids = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 1
    assert ids.count(1) == 3
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_smollm2_weights_equal_transformers():
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM

    source = open_checkpoint("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        str(source.path.parent), gguf_file=source.path.name, dtype=torch.float32
    )
    theirs = model.state_dict()
    source.check()
    for name in source.names():
        assert torch.equal(source.load(name), theirs[name]), name


def test_added_tokens_keep_their_kind():
    inner = build_bpe(["a", "<x>"], [], PRE_TOKENIZERS["gpt-2"])
    inner.add_tokens([AddedToken("<x>", normalized=False)])
    assert inner.encode("a<x>").ids == [0, 1]
    assert PieceKind.BYTE == 6
