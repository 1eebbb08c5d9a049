"""The plan of a cache: for every layer, the K scheme, the V scheme and what is done to each before. Pure: no torch."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from octavo.base.errors import BadValue, UnknownChoice
from octavo.kv.layout import PAGE_TOKENS, PageLayout
from octavo.kv.scheme import Scheme
from octavo.kv.schemes import SCHEMES

__all__ = [
    "DEFAULT_DTYPE", "KVPlan", "LayerPlan", "Rotate", "SidePlan", "check_width", "dtype_name", "parse_dtype",
    "split_dtypes", "uniform_plan",
]  # fmt: skip

DEFAULT_DTYPE = "int8"
Rotate = Literal["auto", "on", "off"]

_LEGACY = {"4": "int8 in one release of LMDeploy, int4 in later ones", "8": "int8 in later releases of LMDeploy"}


@dataclass(frozen=True)
class SidePlan:
    """How the keys, or the values, of one layer are stored."""

    scheme: Scheme
    rotated: bool
    bias_free: bool = False
    """keys only: stored without the model's own bias, whose share of the score is added back exactly (bias_free.py)"""
    fitted: tuple[str, ...] = ()
    """transforms with numbers of their own, from the weights or from a calibration (fit.py), in the order applied"""

    @property
    def transforms(self) -> tuple[str, ...]:
        """Everything done to a vector before it is encoded, by name."""
        return (
            ("bias-free",) * self.bias_free
            + tuple(name for name in self.fitted if name != "static")
            + ("rotation",) * self.rotated
            + ("static",) * ("static" in self.fitted)
        )

    def __str__(self) -> str:
        return "+".join((self.scheme.name, *self.transforms))


@dataclass(frozen=True)
class LayerPlan:
    key: SidePlan
    value: SidePlan


@dataclass(frozen=True)
class KVPlan:
    """One `LayerPlan` per layer. `name` is what the user asked for, in our spelling (`int8`, `int8,int4`)."""

    name: str
    layers: tuple[LayerPlan, ...]
    params_digest: str = ""
    """of the numbers that the fitted transforms use; empty where there are none"""

    def layouts(self, kv_heads: int, head_dim: int, page_tokens: int = PAGE_TOKENS) -> tuple[PageLayout, ...]:
        return tuple(
            PageLayout(layer.key.scheme, layer.value.scheme, kv_heads, head_dim, page_tokens) for layer in self.layers
        )

    def describe(self) -> str:
        """`K int8+rotation, V int8+rotation (30 layers)`, one clause per distinct layer plan."""
        kinds = Counter(f"K {layer.key}, V {layer.value}" for layer in self.layers)
        return "; ".join(f"{kind} ({count} layers)" for kind, count in kinds.items())

    def fingerprint(self) -> str:
        """A digest of everything that changes stored bytes; part of every prefix-cache key."""
        text = "|".join([*(f"{layer.key}/{layer.value}" for layer in self.layers), self.params_digest])
        return hashlib.sha256(text.encode()).hexdigest()


def parse_dtype(text: str) -> tuple[Scheme, Scheme]:
    """`int8` -> both sides; `int8,int4` or `8,4` -> K, V. Raises UnknownChoice or BadValue."""
    if text in _LEGACY:
        raise BadValue(
            f"kv cache dtype `{text}` is ambiguous: it meant {_LEGACY[text]}",
            hint="name the scheme: int8, int4 or a K,V pair such as int8,int4",
        )
    names = [name.strip() for name in text.split(",")]
    if not 1 <= len(names) <= 2 or not all(names):
        raise BadValue(f"not a cache scheme or K,V pair: `{text}`", hint="write one name (int8) or two (int8,int4)")
    if names[0].startswith("auto"):
        raise UnknownChoice(f"`{text}`: a budget is solved for one model, from its calibration", hint="name a scheme")
    key, value = SCHEMES[names[0]], SCHEMES[names[-1]]
    return key, value


def split_dtypes(values: Iterable[str]) -> tuple[str, ...]:
    """Several caches in one flag: commas stand between them, so that a K,V pair is written `int8/int4`."""
    return tuple(name.strip().replace("/", ",") for value in values for name in value.split(",") if name.strip())


def dtype_name(text: str) -> str:
    """Our spelling of a scheme or K,V pair: `8,4` -> `int8,int4`."""
    key, value = parse_dtype(text)
    return key.name if key.name == value.name else f"{key.name},{value.name}"


def check_width(dtype: str, head_dim: int) -> None:
    """Raise BadValue where a scheme packs pairs of dimensions and the width is odd."""
    pair = parse_dtype(dtype)
    if head_dim % 2 and any(plane.items(head_dim) * 2 == head_dim - 1 for s in pair for plane in s.planes):
        raise BadValue(f"{dtype} packs pairs of dimensions; the model's head width is {head_dim}", hint="use int8")


def uniform_plan(dtype: str, layers: int, head_dim: int, rotate: Rotate = "auto", bias_free: bool = False) -> KVPlan:
    """The same schemes in every layer. `rotate`: auto = each scheme's default, on = both sides, off = neither.
    `bias_free`: keys are stored without the bias that the model adds to them."""
    if rotate not in ("auto", "on", "off"):
        raise BadValue(f"kv rotate: `{rotate}` (have auto, on, off)")
    key, value = parse_dtype(dtype)
    check_width(dtype, head_dim)
    sides = [SidePlan(scheme, scheme.rotates if rotate == "auto" else rotate == "on") for scheme in (key, value)]
    sides[0] = replace(sides[0], bias_free=bias_free)
    return KVPlan(dtype_name(dtype), (LayerPlan(sides[0], sides[1]),) * layers)
