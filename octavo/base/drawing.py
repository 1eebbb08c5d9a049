"""How charts look in this house: colours, markers and lines that are told apart by nearly everyone, and fixed settings.

matplotlib is imported when something is drawn, never before. The same figure gives the same bytes.
"""

import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GRID", "KINDS", "LINES", "MARKERS", "clean", "drawn", "label", "style"]

KINDS = {"png": {"Software": None}, "svg": {"Date": None}}
"""kind of file -> metadata that would change from run to run, or say nothing"""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""of Okabe and Ito (2008), told apart by nearly everyone; without the yellow, which paper loses"""
GRID = "#DDDDDD"
MARKERS, LINES = "os^Dvp*", ("-", "--", "-.", ":")

_STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 10.5, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "legend.frameon": False, "svg.hashsalt": "octavo", "savefig.dpi": 160,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Our settings and no others: a user's matplotlibrc changes nothing. Draw and save inside."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in other scripts: boxes will do
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def drawn(figure: "Figure", kind: str, **options: Any) -> bytes:
    """The bytes of a `png` or `svg` file; `options` go to `savefig`."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata=dict(KINDS[kind]), **options)
    return out.getvalue()


def clean(text: Any) -> str:
    """Without what no document can hold or show: control characters, lone surrogates, letters that turn the direction
    of others. Each becomes a replacement character; newlines and tabs stay."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_bad(letter) else letter for letter in str(text))


def _is_bad(letter: str) -> bool:
    if letter in "\n\t":
        return False
    turns = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return turns or unicodedata.category(letter) in ("Cc", "Cs") or letter in "\ufffe\uffff"


def label(text: Any, longest: int = 48) -> str:
    """A name as matplotlib shows it: on one line, no mathematics between dollars, not hidden by a first underscore."""
    flat = " ".join(clean(text).split())
    short = flat if len(flat) <= longest else flat[: longest - 1] + "…"
    return short.replace("$", r"\$").lstrip("_")
