"""Bytes in and out of text: `512MiB` -> 536870912 and back."""

import re

from octavo.base.errors import BadValue

__all__ = ["format_bytes", "parse_bytes"]

_FACTORS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Bytes meant by `24GiB`, `512 MB`, `1.5G` (powers of 1024 without the B) or a plain number. Raises BadValue."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    factor = _FACTORS.get(found[2].upper()) if found else None
    if found is None or factor is None or float(found[1]) * factor == float("inf"):
        raise BadValue(f"not a size: `{text}`", hint="write bytes as 24GiB, 512MiB, 1.5GB or a plain number")
    return int(float(found[1]) * factor)


def format_bytes(count: float) -> str:
    """`1536` -> `1.50 KiB`; whole bytes below 1 KiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"
