"""The number in what a model wrote."""

import pytest

from octavo.evals.tasks.extraction import NO_ANSWER, RULES, number_text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("So 3 + 4 = 7.\n#### 7", "7"),
        ("#### $1,234.50.\n\nIt is 9.", "1234.5"),
        ("####18\n#### 19", "18"),
        ("#### 18.00", "18"),
        ("#### -3", "-3"),
        ("#### -$5", "-5"),
        ("#### so it is 12 apples", "12"),
        ("#### none\nbut 4", "4"),
        ("There are 5-3 = 2 left.", "2"),
        ("It costs $70,000.", "70000"),
        ("pick 1,2,3", "3"),
        ("1,2345", "2345"),
        ("between .5 and 0.750", "0.75"),
        ("from 10-12", "12"),
        ("minus is -12", "-12"),
        ("I do not know.", NO_ANSWER),
        ("", NO_ANSWER),
        ("x2 - y", "2"),
    ],
)
def test_marked_or_last(text, want):
    assert RULES["marked or last number"](text) == want


def test_first():
    assert RULES["first number"](" <2416>, not 9") == "2416"
    assert RULES["first number"]("no") == NO_ANSWER


def test_one_spelling():
    assert {number_text(text) for text in ("18", "18.", "18.0", "$18", "018")} == {"18"}
    assert [number_text(text) for text in ("0", "-0", "0.00", "1000000", "1,000")] == ["0", "0", "0", "1000000", "1000"]
