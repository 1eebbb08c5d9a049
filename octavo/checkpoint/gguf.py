"""GGUF files as a checkpoint: names and rows put back into Hugging Face's order, blocks dequantized to float32."""

from pathlib import Path
from typing import TYPE_CHECKING

from octavo.base.errors import CheckpointError
from octavo.checkpoint.gguf_header import TENSOR_TYPES, GGUFHeader, TensorInfo, read_header
from octavo.checkpoint.gguf_spec import ARCHITECTURES, read_spec
from octavo.checkpoint.source import Source

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["GGUFSource", "canonical_name"]


_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFSource(Source):
    """One GGUF file. Dense and quantized tensors alike load as float32."""

    kind = "gguf"

    def __init__(self, path: Path, name: str | None = None):
        self.header = read_header(path)
        self._stored = {canonical_name(info.name): info for info in self.header.tensors.values()}
        spec = read_spec(self.header, set(self._stored))
        counted = [info.stored_bytes for info in self.header.tensors.values() if info.stored_bytes is not None]
        all_counted = len(counted) == len(self.header.tensors)
        super().__init__(path, name or path.stem, spec, sum(counted) if all_counted else self.header.tensor_bytes)
        self._permuted = ARCHITECTURES[spec.family].permuted

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self._stored.items()}

    def check(self) -> None:
        super().check()
        for info in self._stored.values():
            self._require_readable(info)

    def load(self, name: str) -> "Tensor":
        info = self._stored.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: weight {name} is missing")
        self._require_readable(info)
        import torch

        rows = _dequantize(self.header, info)
        part = name.rsplit(".", 2)[-2]
        if self._permuted and part in ("q_proj", "k_proj"):
            heads = self.spec.heads if part == "q_proj" else self.spec.kv_heads
            rows = _unpermute(rows, heads)
        return torch.from_numpy(rows)

    def tokenizer(self) -> "Tokenizer":
        from octavo.checkpoint.gguf_tokenizer import tokenizer_of_gguf

        return tokenizer_of_gguf(self.header, self.spec)

    def _require_readable(self, info: TensorInfo) -> None:
        if info.type is None:
            from gguf import GGMLQuantizationType

            named = {kind.value: kind.name for kind in GGMLQuantizationType}.get(info.type_id, f"type {info.type_id}")
            readable = ", ".join(kind.name for kind in TENSOR_TYPES.values())
            raise CheckpointError(f"{self.path}: tensor `{info.name}` is stored as {named} (can read {readable})")


def canonical_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; names it does not know stay as they are."""
    stem, _, what = name.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{what}"
    prefix, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if prefix == "blk" and part in _BLOCK_NAMES:
        return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{what}"
    return name


def _dequantize(header: GGUFHeader, info: TensorInfo) -> "numpy.ndarray":
    """float32, a copy that the caller owns."""
    import numpy
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    assert info.type, f"{info.name}: type {info.type_id} was let through"
    assert info.stored_bytes, f"{info.name}: {info.stored_bytes} bytes"
    stored = numpy.frombuffer(header.data, numpy.uint8, info.stored_bytes, info.start)
    row_bytes = info.shape[-1] // info.type.block_items * info.type.block_bytes
    rows = dequantize(stored.reshape(-1, row_bytes), GGMLQuantizationType(info.type_id))
    return numpy.array(rows, numpy.float32, copy=not rows.flags.owndata).reshape(info.shape)


def _unpermute(rows: "numpy.ndarray", heads: int) -> "numpy.ndarray":
    """[heads * D, ...] from interleaved rotary pairs to halves."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
