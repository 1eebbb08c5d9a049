"""Checkpoints in: open a source (safetensors, GGUF), read its spec, its weights and its tokenizer. Light to import."""

from octavo.checkpoint.open import PACKAGED, SOURCES, open_checkpoint, open_tokenizer
from octavo.checkpoint.source import Source

__all__ = ["PACKAGED", "SOURCES", "Source", "open_checkpoint", "open_tokenizer"]
