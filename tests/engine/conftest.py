"""Tiny checkpoints on disk, written by transformers, and engines over them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octavo.calibrate.run import CalibrateOptions, calibrate
from octavo.engine.llm import LLM

CONFIGS = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def write_checkpoint(folder: Path, family: str, **overrides) -> torch.nn.Module:
    """A random two-layer model of `family` in `folder`; returns the transformers model, fp32."""
    import transformers

    config = getattr(transformers, CONFIGS[family])(**(SIZES | overrides))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:  # far from uniform attention, so that a wrong position or head shows
                parameter.mul_(4.0)
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[..., tuple[str, torch.nn.Module]]:
    """`checkpoint(family, **overrides)` -> (folder, transformers model), each written once."""
    made: dict = {}

    def make(family: str, **overrides) -> tuple[str, torch.nn.Module]:
        key = (family, repr(sorted(overrides.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            made[key] = (str(folder), write_checkpoint(folder, family, **overrides))
        return made[key]

    return make


@pytest.fixture(scope="session")
def biased_checkpoint(checkpoint, tmp_path_factory) -> Callable[[int], tuple[str, torch.nn.Module]]:
    """`biased_checkpoint(head_dim)`: a Qwen2 whose K has a bias of 60 on two RoPE pairs of each head, and its Q one of
    6, as real ones have."""

    def make(head_dim: int) -> tuple[str, torch.nn.Module]:
        _, model = checkpoint("qwen2", head_dim=head_dim)
        with torch.no_grad():
            for layer in model.model.layers:
                for projection, size in ((layer.self_attn.k_proj, 60.0), (layer.self_attn.q_proj, 6.0)):
                    bias = projection.bias.view(-1, head_dim)
                    bias[:, [5, 5 + head_dim // 2]] = size  # a pair that RoPE turns slowly
                    bias[:, [7, 7 + head_dim // 2]] = -size
        folder = tmp_path_factory.mktemp("biased")
        model.save_pretrained(folder)
        return str(folder), model

    return make


@pytest.fixture(scope="session")
def tiny(checkpoint) -> LLM:
    """A tiny Llama in fp32; take caches of it by `tiny.with_cache(...)`."""
    folder, _ = checkpoint("llama")
    return LLM(folder, dtype="float32", kv_cache_dtype="fp32", kv_cache_memory="4096tok")


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = (1, 5, 63, 64, 65, 130, 200)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in lengths]


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of 256 bytes after five special ids, for the tiny models: any text becomes ids below 261."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<a>": 3, "<b>": 4}
    alphabet = {letter: 5 + number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(specials | alphabet, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def readable(checkpoint, tmp_path_factory) -> str:
    """The tiny Llama's folder, with a tokenizer."""
    folder = tmp_path_factory.mktemp("readable")
    shutil.copytree(checkpoint("llama")[0], folder, dirs_exist_ok=True)
    write_byte_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_asset(readable, tmp_path_factory) -> str:
    """A calibration of the tiny Llama on random-looking text, with sensitivities."""
    out = tmp_path_factory.mktemp("asset")
    generator = torch.Generator().manual_seed(5)
    text = "".join(chr(32 + int(code)) for code in torch.randint(0, 90, (6000,), generator=generator))
    (out / "text.txt").write_text(text)
    options = CalibrateOptions(
        model=readable, out=str(out / "asset"), data=str(out / "text.txt"), samples=8, seqlen=256, sensitivity=True,
        sensitivity_tokens=128, dtype="float32", charts=False,
    )  # fmt: skip
    calibrate(options, lambda *step: None)
    return str(out / "asset")
