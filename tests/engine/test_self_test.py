"""At load: a cache that is good passes; one that breaks its model is repaired aloud, or refused, layers named."""

import json
import shutil

import pytest
import torch

from octavo.base.errors import BadValue, CheckFailed, UsageError
from octavo.engine.llm import LLM
from tests.engine.conftest import write_byte_tokenizer

SIZE = {"kv_cache_memory": "2048tok", "dtype": "float32"}


@pytest.fixture(scope="module")
def biased(checkpoint, tmp_path_factory) -> str:
    """A Qwen2 with the key bias of real ones (60 on two RoPE pairs, 6 on the queries'), and a tokenizer."""
    _, model = checkpoint("qwen2", head_dim=16)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection, size in ((layer.self_attn.k_proj, 60.0), (layer.self_attn.q_proj, 6.0)):
                bias = projection.bias.view(-1, 16)
                bias[:, [5, 13]], bias[:, [7, 15]] = size, -size
    folder = tmp_path_factory.mktemp("biased")
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return str(folder)


def test_a_good_cache_passes_and_says_so(readable):
    tested = LLM(readable, kv_cache_dtype="int8", **SIZE).cache.self_test
    assert (tested.status, tested.changes, tested.tokens) == ("passed", (), 512)
    assert 0 < tested.kl_mean < 0.01 and tested.same_top > 0.95


def test_it_measures_what_score_measures(readable):
    """The self-test's KL is that of the engine's own log-probabilities."""
    from octavo.calibrate.corpus import open_corpus, windows
    from octavo.calibrate.divergence import measure

    llm = LLM(readable, kv_cache_dtype="int4", **SIZE)
    texts = windows(open_corpus("bundled"), llm.tokenizer, 4, 128, 0).ids
    exact = llm.with_cache(kv_cache_dtype="fp32")
    found = measure([(exact.score(ids), llm.score(ids)) for ids in texts])
    assert llm.cache.self_test.kl_mean == pytest.approx(found.kl_mean, rel=0.02)


def test_the_biased_model_is_served_without_anyone_knowing(biased):
    for dtype in ("int8", "int4", "fp8"):
        llm = LLM(biased, kv_cache_dtype=dtype, **SIZE)
        assert llm.cache.self_test.status == "passed" and "bias-free" in llm.cache.plan, dtype


@pytest.mark.parametrize("dtype", ["int4", "fp8"])
def test_the_bias_stored_is_repaired(biased, dtype, caplog):
    """What was fixed stays; the bits do not."""
    plain = {"kv_bias_free": "off", "kv_rotate": "off", "kv_balance": "off", "kernels": "reference"}
    broken = LLM(biased, kv_cache_dtype=dtype, kv_self_test="100", **plain, **SIZE).cache.self_test.kl_mean
    llm = LLM(biased, kv_cache_dtype=dtype, kv_self_test=broken / 3, **plain, **SIZE)
    tested = llm.cache.self_test
    assert tested.status == "repaired" and tested.kl_mean <= broken / 3
    assert any("int8 keys" in change for change in tested.changes)
    assert "bias-free" not in llm.cache.plan and "rotation" not in llm.cache.plan
    assert "more than" in caplog.text and "int8 keys" in caplog.text


def test_remedies_come_mildest_first(biased, tmp_path):
    """A plan that stores the bias, from an asset: leaving the bias out is enough, and no byte is added."""
    llm = LLM(biased, kv_cache_dtype="int4", kv_rotate="off", kv_self_test="0.3", **SIZE)
    assert llm.cache.self_test.status in ("passed", "repaired")
    assert llm.cache.bytes_per_token == LLM(biased, kv_cache_dtype="int4", **SIZE).cache.bytes_per_token


def test_what_no_remedy_helps_is_refused(readable):
    with pytest.raises(CheckFailed, match=r"int4 breaks this model: KL .* layers alone: [01] \(K .*, V .*\)") as caught:
        LLM(readable, kv_cache_dtype="int4", kv_self_test="1e-9", **SIZE)
    assert "--kv-self-test off" in caught.value.hint
    with pytest.raises(CheckFailed, match="--kv-rotate off left no remedy"):
        LLM(readable, kv_cache_dtype="int4", kv_self_test="1e-9", kv_rotate="off", **SIZE)


def test_when_it_does_not_run(readable, checkpoint, caplog):
    assert LLM(readable, kv_cache_dtype="bf16", **SIZE).cache.self_test.status == "skipped"
    assert not caplog.text
    assert LLM(readable, kv_cache_dtype="bf16", kv_self_test="on", **SIZE).cache.self_test.status == "passed"
    mute, _ = checkpoint("llama")
    assert LLM(mute, kv_cache_dtype="int8", **SIZE).cache.self_test.status == "skipped"
    assert "the cache was not tested" in caplog.text
    with pytest.raises(UsageError, match="no tokenizer"):
        LLM(mute, kv_cache_dtype="int8", kv_self_test="on", **SIZE)
    assert LLM(readable, kv_self_test=False, **SIZE).cache.self_test.status == "off"


@pytest.mark.parametrize("option", ["never", "-1", "nan", "0", "inf"])
def test_thresholds_that_cannot_be(readable, option):
    with pytest.raises(BadValue, match="kv_self_test"):
        LLM(readable, kv_self_test=option, **SIZE)


def test_text_that_the_model_has_no_ids_for(readable, tmp_path, caplog):
    folder = tmp_path / "small"
    shutil.copytree(readable, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {piece: 2 * number for piece, number in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert LLM(str(folder), **SIZE).cache.self_test.status == "skipped"
    assert "was not tested" in caplog.text
