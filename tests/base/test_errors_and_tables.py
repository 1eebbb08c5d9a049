"""Errors carry cause and hint; tables suggest the near name."""

import pytest

from octavo.base import errors
from octavo.base.errors import BadValue, CheckFailed, OctavoError, UnknownChoice
from octavo.base.table import Table

COLOURS = Table("colour", {"red": 1, "green": 2, "blue": 3}, aliases={"rouge": "red"})


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "OctavoError"])
def test_every_error_is_an_octavo_error_with_an_exit_code(name):
    kind = getattr(errors, name)
    assert issubclass(kind, OctavoError)
    assert kind("no").exit_code == (1 if kind is CheckFailed else 2)
    assert str(kind("cause", hint="do this")) == "cause\nhint: do this"
    assert str(kind("cause")) == "cause"


def test_values_out_of_range_are_value_errors():
    with pytest.raises(ValueError, match="no"):
        raise BadValue("no")


def test_lookup_by_name_and_alias():
    assert COLOURS["red"] == COLOURS["rouge"] == 1
    assert COLOURS.resolve("rouge") == "red"
    assert "rouge" in COLOURS and "pink" not in COLOURS and 7 not in COLOURS
    assert list(COLOURS) == ["red", "green", "blue"] and len(COLOURS) == 3
    assert COLOURS.get("blue") == 3


def test_a_miss_says_what_there_is_and_what_is_near():
    with pytest.raises(UnknownChoice) as caught:
        COLOURS["gren"]
    assert caught.value.message == "unknown colour: `gren` (have red, green, blue)"
    assert caught.value.hint == "did you mean `green`?"
    with pytest.raises(UnknownChoice) as caught:
        COLOURS["zzzzzz"]
    assert caught.value.hint is None


def test_adding_and_removing():
    table = Table("thing", {"a": 1})
    table.add("b", 2)
    assert table["b"] == 2
    with pytest.raises(UnknownChoice, match="already"):
        table.add("b", 3)
    table.remove("b")
    assert "b" not in table
