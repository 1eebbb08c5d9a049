"""The chart of memory against batch: the files it says, the same each time, and crossings where the data have them."""

import xml.etree.ElementTree as ElementTree

import pytest

from octavo.base.drawing import style
from octavo.base.errors import BadValue, UsageError
from octavo.memory.plots import memory_chart, memory_figure

ROWS = [
    {"batch": batch, "dtype": name, "process_mib": 50.0, "device_mib": 1024 + slope * batch}
    for name, slope in (("bf16", 64.0), ("int8", 33.0))
    for batch in (8, 16)
]
LINES = {
    "KV bf16": {"intercept_mib": 1024.0, "slope_mib": 64.0, "measured": True},
    "KV int8": {"intercept_mib": 1024.0, "slope_mib": 33.0, "measured": True},
    "weights int4, $x_1$": {"intercept_mib": 714.0, "slope_mib": 64.0, "measured": False},
}
DATA = {
    "model": "_tiny $", "tokens": 64, "rows": ROWS, "lines": LINES,
    "law": {"bf16": {"slope_mib": 64.0, "intercept_mib": 1024.0}, "int8": {"slope_mib": 33.0, "intercept_mib": 1024.0}},
    "crossings": [
        {"first": "weights int4, $x_1$", "second": "KV int8", "batch": 10.0},
        {"first": "KV bf16", "second": "KV int8", "batch": 1e6},
    ],
}  # fmt: skip


def test_files(tmp_path):
    for name in ("a.png", "a.svg", "b.png", "b.svg"):
        memory_chart(DATA, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_points_are_what_was_measured_and_lines_go_through_them():
    with style():
        axes = memory_figure(DATA).axes[0]
        points, fitted = {}, {}
        for line in axes.lines:
            where = tuple(zip(*line.get_data(), strict=True))
            if line.get_linestyle() == "None" and len(where) == 2:
                points[line.get_color()] = where
            elif line.get_linestyle() == "-" and where:
                fitted[line.get_color()] = where
        assert sorted(points.values()) == [((8, 1.2578125), (16, 1.515625)), ((8, 1.5), (16, 2.0))]
        for colour, ((_, begin), (last, end)) in fitted.items():
            for batch, total in points[colour]:
                assert total == pytest.approx(begin + (end - begin) * batch / last)
        assert axes.get_ylabel().startswith("memory of the device")


def test_only_crossings_in_sight_are_marked():
    with style():
        axes = memory_figure(DATA).axes[0]
        assert [text.get_text() for text in axes.texts] == ["10.0"]
        (ring,) = [line for line in axes.lines if line.get_label().startswith("the same memory")]
        assert ring.get_xdata() == [10.0] and ring.get_ydata() == [pytest.approx((714 + 640) / 1024)]


def test_a_cache_without_law_or_lines_is_drawn():
    with style():
        figure = memory_figure({"model": "m", "tokens": 8, "rows": [{"batch": 1, "dtype": "x", "process_mib": 9.0}]})
        assert figure.axes[0].get_ylabel().startswith("memory of the process")


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(BadValue, match=r"ends in `\.pdf` \(have \.png, \.svg\)"):
        memory_chart(DATA, tmp_path / "a.pdf")
    with pytest.raises(UsageError, match="cannot write"):
        memory_chart(DATA, tmp_path / "no" / "a.png")
