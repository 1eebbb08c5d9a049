"""Models with random weights behind the interface of a checkpoint, so that the real engine can be built over them."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.checkpoint.load import resolve_device, resolve_dtype, weight_loader
from octavo.checkpoint.source import Source
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.build import LoadedWeights
from octavo.models.dense import DenseDecoder
from octavo.models.families import spec_of_config, weight_shapes
from octavo.models.spec import ModelSpec

__all__ = ["CONFIGS", "MadeUpSource", "config_of", "made_up_weights"]

CONFIGS: dict[str, dict[str, int]] = {
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 49954},
    "8b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320},
}  # fmt: skip


def config_of(name: str, longest: int = 4096) -> dict[str, object]:
    """The config.json of a shape whose sequences have up to `longest` tokens."""
    return {"model_type": "llama", "max_position_embeddings": longest, "torch_dtype": "bfloat16"} | CONFIGS[name]


class MadeUpSource(Source):
    """A model's shape. Each weight is random, made on the device, and the same whenever it is asked for: vectors
    (norms) are ones, matrices normal with a deviation of 0.02."""

    kind = "made up"

    def __init__(self, name: str, spec: ModelSpec, device: str):
        self._shapes, self._device = weight_shapes(spec), device
        count = sum(torch.Size(shape).numel() for shape in self._shapes.values())
        # nothing is there: whoever looks beside the weights for scales or a calibration finds none
        super().__init__(Path("made-up", name, "weights"), name, spec, 2 * count)

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def load(self, name: str) -> Tensor:
        dtype = torch.bfloat16 if self._device != "cpu" else torch.float32
        weight = torch.empty(self._shapes[name], dtype=dtype, device=self._device)
        if weight.dim() == 1:
            return weight.fill_(1.0)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        return weight.normal_(0.0, 0.02, generator=generator)

    def tokenizer(self) -> Tokenizer:
        raise CheckpointError(f"{self.name}: a made-up model has no tokenizer")


def made_up_weights(name: str, device: str = "auto", longest: int = 4096) -> LoadedWeights:
    """The weights of shape `name`, in bfloat16 on a GPU and float32 on a CPU, for any number of engines."""
    device = resolve_device(device)
    source = MadeUpSource(name, spec_of_config(config_of(name, longest)), device)
    dtype = resolve_dtype("auto", device) if device != "cpu" else torch.float32
    with torch.inference_mode():
        model = DenseDecoder(source.spec, weight_loader(source, dtype, device), longest, device)
    return LoadedWeights(source, model, None, dtype, device, longest)
