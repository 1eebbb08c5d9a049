"""Statistics of keys, queries and values over calibration windows: running sums that can be kept and taken up again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.base.errors import AssetError
from octavo.calibrate.forward import Vectors, attention_output, embed, layer_step, project
from octavo.calibrate.partial import Partial
from octavo.kv.transform import rotate
from octavo.models.dense import DenseDecoder

__all__ = ["Observer", "observe"]

_SUMS = ("k.mean", "k.moment", "q.moment", "tokens")


class Observer:
    """Everything that `octavo.kv.statistics` names, for one model. Windows add up in fp64: their order is not seen."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        """`layers.N.<name>`: running extremes and sums"""

    def take(self, layer: int, vectors: Vectors, biased: bool) -> None:
        """Add one window's vectors of one layer. `biased`: stored keys carry the model's bias."""
        keys = vectors.k if biased else vectors.k_free
        kv_heads = keys.shape[1]
        queries = vectors.q.unflatten(1, (kv_heads, -1))  # [T, G, H / G, D]
        self._least(layer, "k.first", -keys[:1].abs())
        self._least(layer, "v.first", -vectors.v[:1].abs())
        if vectors.k is not vectors.k_free:
            self._least(layer, "k.biased.absmax", -vectors.k.abs())
        keys, values, queries = keys[1:], vectors.v[1:], queries[1:]
        for name, side in (("k", keys), ("v", values)):
            for prefix, numbers in ((name, side), (f"{name}.turned", rotate(side))):
                low, high = numbers.aminmax(dim=0)
                self._least(layer, f"{prefix}.min", low[None])
                self._least(layer, f"{prefix}.max", -high[None])
                self._add(layer, f"{prefix}.counts", _counts(numbers))
        low, high = queries.amin((0, 2)), queries.amax((0, 2))
        self._least(layer, "q.absmax", -low.abs().maximum(high.abs())[None])
        self._add(layer, "k.mean", keys.sum(0).double())
        self._add(layer, "k.moment", _moment(keys.transpose(0, 1)))
        self._add(layer, "q.moment", _moment(queries.permute(1, 0, 2, 3).flatten(1, 2)) / queries.shape[2])
        self._add(layer, "v.squares", (values * values).sum(0).double())
        self._add(layer, "tokens", torch.tensor(float(len(keys)), dtype=torch.float64))

    def _least(self, layer: int, name: str, numbers: Tensor) -> None:
        key, low = f"layers.{layer}.{name}", numbers.amin(0).cpu()
        self.state[key] = torch.minimum(self.state[key], low) if key in self.state else low

    def _add(self, layer: int, name: str, numbers: Tensor) -> None:
        key, numbers = f"layers.{layer}.{name}", numbers.cpu()
        self.state[key] = self.state[key] + numbers if key in self.state else numbers

    def statistics(self) -> dict[str, Tensor]:
        """fp32 tensors by the names of `octavo.kv.statistics`."""
        found: dict[str, Tensor] = {}
        for key, numbers in self.state.items():
            prefix, name = key.split(".", 2)[:2], key.split(".", 2)[2]
            where = ".".join(prefix)
            count = self.state[f"{where}.tokens"].clamp_min(1)
            if name == "tokens":
                continue
            if name == "v.squares":
                found[f"{where}.v.rms"] = (numbers / count).sqrt().float()
            elif name.endswith(".counts"):
                found[f"{where}.{name.removesuffix('.counts')}.clip"] = _clip_share(numbers)
            elif name in _SUMS:
                found[key] = (numbers / count).float()
                if name.endswith(".moment"):
                    found[f"{where}.{name[0]}.rms"] = (numbers / count).diagonal(dim1=1, dim2=2).sqrt().float()
            else:
                least = name.endswith(".min")
                found[key] = (numbers if least else -numbers).float()
        for key in [key for key in found if key.endswith((".k.min", ".v.min")) and ".turned" not in key]:
            stem = key.removesuffix(".min")
            found[f"{stem}.absmax"] = torch.maximum(-found[key], found[f"{stem}.max"])
        return found


_LOWEST, _BINS = -24, 32 * 36
"""sizes are counted in bins of a 32nd of an octave, from 2^-24 to 2^12"""


def _counts(vectors: Tensor) -> Tensor:
    """How many numbers of each size a head of `[T, G, D]` has: int64 `[G, _BINS]`. A float's top bits are its bin."""
    heads = vectors.shape[1]
    bits = vectors.contiguous().view(torch.int32)
    bins = ((bits & 0x7FFFFFFF) >> 18).sub_((127 + _LOWEST) * 32).clamp_(0, _BINS - 1)
    bins += torch.arange(heads, dtype=torch.int32, device=bins.device)[:, None] * _BINS
    return torch.bincount(bins.flatten(), minlength=heads * _BINS).view(heads, _BINS)


def _clip_share(counts: Tensor) -> Tensor:
    """Of the largest size, the share at which 255 levels have the least squared error, `[G]`: within it steps of
    reach / 127, beyond it the distance to it."""
    edges = 2.0 ** (_LOWEST + torch.arange(_BINS + 1, dtype=torch.float64) / 32)
    sizes, numbers = (edges[:-1] + edges[1:]) / 2, counts.double()
    shares = []
    for head in numbers:
        last = int(head.nonzero().max())
        reach = edges[last + 1] * torch.linspace(0.2, 1.0, 81, dtype=torch.float64)
        beyond = (sizes - reach[:, None]).clamp_min(0).square() @ head
        shares.append(reach[int((beyond + head.sum() * (reach / 127) ** 2 / 12).argmin())] / edges[last + 1])
    return torch.stack(shares).float()


def _moment(by_head: Tensor) -> Tensor:
    """Sum of outer products of `[G, N, D]`: fp64 `[G, D, D]`, of one window multiplied in fp32."""
    return (by_head.mT @ by_head).double()


@torch.inference_mode()
def observe(
    model: DenseDecoder, windows: Sequence[Tensor], biased: bool, partial: Partial,
    progress: Callable[[str, int, int], None],
) -> dict[str, Tensor]:  # fmt: skip
    """The statistics of all windows, layer by layer and window by window. Raises AssetError for a model that breaks."""
    observer = Observer()
    done, observer.state = partial.load()
    for number in range(done, len(windows)):
        progress("statistics", number, len(windows))
        hidden = embed(model, windows[number])
        for layer in range(model.spec.layers):
            vectors = project(model, layer, hidden)
            observer.take(layer, vectors, biased)
            mixed = attention_output(vectors.q, vectors.k, vectors.v, model.spec.window(layer))
            hidden = layer_step(model, layer, hidden, mixed)
        if not bool(hidden.isfinite().all()):
            raise AssetError(f"window {number}: the model's hidden states are not finite", hint="try --dtype float32")
        partial.save(number + 1, observer.state)
    progress("statistics", len(windows), len(windows))
    return observer.statistics()
