"""Small GGUF files for tests, written with the `gguf` package."""

from pathlib import Path
from typing import Any

import gguf
import numpy
from gguf import GGMLQuantizationType as Kind

WIDTH, MLP, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 64, 96, 4, 2, 16, 300, 2
PYTHON_QUANTIZES = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
PYTHON_ONLY_DEQUANTIZES = (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)


def metadata(arch: str) -> dict[str, Any]:
    return {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": WIDTH,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": HEAD_DIM,
        f"{arch}.attention.value_length": HEAD_DIM,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.rope.dimension_count": HEAD_DIM,
    }


def tensors(qkv_bias: bool = False, qk_norm: bool = False, seed: int = 0) -> dict[str, numpy.ndarray]:
    """float32 tensors in GGUF's names and numpy's order of dimensions, output matrix left out (tied)."""
    rng = numpy.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (WIDTH,),
            "attn_q.weight": (q, WIDTH),
            "attn_k.weight": (kv, WIDTH),
            "attn_v.weight": (kv, WIDTH),
            "attn_output.weight": (WIDTH, q),
            "ffn_norm.weight": (WIDTH,),
            "ffn_gate.weight": (MLP, WIDTH),
            "ffn_up.weight": (MLP, WIDTH),
            "ffn_down.weight": (WIDTH, MLP),
        }
        if qkv_bias:
            block |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        if qk_norm:
            block |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape, numpy.float32) for name, shape in shapes.items()}


def random_blocks(rows: int, columns: int, kind: Kind, seed: int = 0) -> numpy.ndarray:
    """Bytes [rows, row bytes] of a type that the `gguf` package cannot write; scales are small finite halves."""
    items, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = numpy.random.default_rng(seed).integers(0, 256, (rows, columns // items, size), numpy.uint8)
    for at in {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}[kind]:
        blocks[..., at : at + 2] = numpy.frombuffer(numpy.float16(0.01).tobytes(), numpy.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path, arch: str, fields: dict[str, Any], data: dict[str, Any]) -> Path:
    """`data`: name -> array, or (bytes [rows, row bytes], type) for quantized ones."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in data.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, arch: str = "llama", **changes: Any) -> Path:
    """A tiny model. `changes`: `fields` to add (None removes), `data` to add (None removes), rest for `tensors`."""
    fields = metadata(arch) | changes.pop("fields", {})
    extra = changes.pop("data", {})
    data = tensors(**changes) | extra
    kept = {k: v for k, v in fields.items() if v is not None}
    return write(path, arch, kept, {k: v for k, v in data.items() if v is not None})
