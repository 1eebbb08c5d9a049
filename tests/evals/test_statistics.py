"""Formulas against published and hand-made cases."""

import random

import pytest

from octavo.evals.statistics import bootstrap_mean, mcnemar, needed_items, paired_interval, wilson


def test_wilson():
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_is_the_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 3) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(72, 66) == pytest.approx(0.6705, abs=1e-4)
    assert mcnemar(400, 400 + 1) <= 1.0


def test_paired_interval():
    # Newcombe (1998), Statistics in Medicine 17:2635, table II, method 10: (36, 12, 2, 0), (0, 0, 0, 30)
    low, high = paired_interval(36, 2, 12, 0)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=2e-4)
    low, high = paired_interval(0, 0, 0, 30)
    assert low == pytest.approx(-high)
    assert paired_interval(50, 10, 5, 35)[0] == pytest.approx(-paired_interval(50, 5, 10, 35)[1])


def test_the_interval_covers_the_truth():
    """At true difference 2 points, 95 % intervals of 400 items: 300 draws, of which a fair one misses 15 or so."""
    draw, missed = random.Random(0), 0
    for _ in range(300):
        cells = [0, 0, 0, 0]
        for _ in range(400):
            cells[draw.choices(range(4), (0.5, 0.04, 0.06, 0.4))[0]] += 1
        low, high = paired_interval(*cells)
        missed += not low <= 0.02 <= high
    assert missed <= 27


def test_needed_items():
    assert needed_items(0.045, 0.01) == 2783  # (1.645 + 0.842)^2 x 0.045 / 0.0001
    assert needed_items(0.045, 0.02) == pytest.approx(2783 / 4, abs=1)


def test_bootstrap():
    draw = random.Random(1)
    values = [draw.gauss(3.0, 1.0) for _ in range(400)]
    low, high = bootstrap_mean(values)
    assert low < sum(values) / 400 < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap_mean(values) == (low, high)
