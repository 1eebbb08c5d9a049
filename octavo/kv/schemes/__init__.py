"""The table of schemes. Adding one touches its own file and one line here; no other file names a format."""

from octavo.base.table import Table
from octavo.kv.scheme import Scheme
from octavo.kv.schemes.floats import BF16, FP8, FP16, FP32
from octavo.kv.schemes.int4 import INT4
from octavo.kv.schemes.int8 import INT8
from octavo.kv.schemes.int8_static import INT8_STATIC

__all__ = ["SCHEMES"]

_ALL = (BF16, FP16, FP8, INT8, INT8_STATIC, INT4, FP32)

SCHEMES: Table[Scheme] = Table(
    "cache scheme",
    {scheme.name: scheme for scheme in _ALL},
    aliases={alias: scheme.name for scheme in _ALL for alias in scheme.aliases},
)
