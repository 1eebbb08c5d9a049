"""What an opened checkpoint offers, whatever its format: a spec, named weights, a tokenizer."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from octavo.base.errors import CheckpointError
from octavo.models.families import weight_shapes
from octavo.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["Source"]

_LISTED = 5  # names shown in an error; the rest is a count

# Tensors beside the weights: derived tables that old files still carry, and scales of a quantized KV cache.
_IGNORABLE = re.compile(
    r"(.*\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|rope_freqs(\.weight)?|attn_rot_embd(\.weight)?"
    r"|[qkv]_proj\.output_(scale|zero_point)|(q|k|v|kv)_(scale|zero_point))"
)


class Source(ABC):
    """An opened checkpoint. Opening reads headers only and imports neither torch nor transformers; `load` does."""

    kind: ClassVar[str]

    def __init__(self, path: Path, name: str, spec: ModelSpec, weight_bytes: int):
        self.path = path
        self.name = name
        self.spec = spec
        self.weight_bytes = weight_bytes
        """bytes of the tensors on disk"""

    @abstractmethod
    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file: canonical (Hugging Face) name where there is one, else its own, -> shape."""

    @abstractmethod
    def load(self, name: str) -> "Tensor":
        """The weight of canonical `name` on the CPU: in the stored dtype, or float32 where the file holds quantized
        blocks. Raises CheckpointError if it is missing, unreadable or of a type we cannot read."""

    def load_on(self, name: str, device: str) -> "Tensor":
        """As `load`, on the device: formats that know a faster way there have their own."""
        return self.load(name).to(device)

    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that came with the weights. Raises CheckpointError if there is none or it cannot be read."""

    def names(self) -> tuple[str, ...]:
        """The canonical names of all weights the model needs."""
        return tuple(weight_shapes(self.spec))

    def check(self) -> None:
        """All weights are there, in the right shape, and nothing else is. Raises CheckpointError."""
        wanted, stored = weight_shapes(self.spec), self.stored_shapes()
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise CheckpointError(
                f"{self.path}: {_listed(missing, 'weight')} missing", hint="is the download complete?"
            )
        wrong = [
            f"{name} ({_times(stored[name])}, expected {_times(shape)})"
            for name, shape in wanted.items()
            if stored[name] != shape
        ]
        if wrong:
            raise CheckpointError(f"{self.path}: {_listed(wrong, 'weight')} of the wrong shape")
        extra = [name for name in stored if name not in wanted and not self._ignorable(name)]
        if extra:
            raise CheckpointError(
                f"{self.path}: {_listed(extra, 'tensor')} that a {self.spec.family} model does not have",
                hint="the config describes another model, or this variant is not supported",
            )

    def _ignorable(self, name: str) -> bool:
        return (name == "lm_head.weight" and self.spec.tied_embeddings) or _IGNORABLE.fullmatch(name) is not None


def _listed(names: list[str], noun: str) -> str:
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({shown})"


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
