"""Sizes in and out of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.base.errors import BadValue
from octavo.base.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * 2**30), ("512 MB", 512 * 10**6), ("1.5G", 3 * 2**29), ("0", 0), (" 7b ", 7), ("300kib", 300 * 1024),
     (12345, 12345), ("2T", 2**41)],
)  # fmt: skip
def test_parse(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1 Gib B", "1,5G", "1e9", "nan", "24GiBs", "0x10", "0Gib B", "0x", "9" * 400]
)
def test_refuse(text):
    with pytest.raises(BadValue, match="not a size") as caught:
        parse_bytes(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**30, "1.00 GiB"), (-(2**20), "-1.00 MiB")]
)
def test_format(count, text):
    assert format_bytes(count) == text


@given(st.integers(0, 2**50))
def test_what_is_printed_is_read_back(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006, abs=1)
