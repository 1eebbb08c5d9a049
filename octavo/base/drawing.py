"""How charts look in this house: colours, markers and lines that are told apart by nearly everyone, and fixed settings.

matplotlib is imported when something is drawn, never before. The same figure gives the same bytes.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GRID", "KINDS", "LINES", "MARKERS", "drawn", "look_of", "style"]

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

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def drawn(figure: "Figure", kind: str, **options: Any) -> bytes:
    """The bytes of a `png` or `svg` file; `options` go to `savefig`."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata=dict(KINDS[kind]), **options)
    return out.getvalue()


def look_of(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series with this number: no two of the first seven share colour or marker."""
    return {
        "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }  # fmt: skip
