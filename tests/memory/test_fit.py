"""Lines through totals: least squares by hand arithmetic, and where two lines meet."""

import pytest

from octavo.base.errors import BadValue
from octavo.memory.fit import Line, crossing, fit_line

BATCHES = (8, 16, 32, 48)
# MiB of a 7B model served with an fp16 and an int8 cache, by batch size: a table published with the reference system
FP16 = (22337, 30593, 47073, 63553)
INT8 = (18241, 22369, 30625, 38881)


def test_points_on_a_line_give_it_back():
    line = fit_line([(2, 110.0), (4, 120.0), (12, 160.0)])
    assert (line.intercept, line.slope, line.max_residual) == (100.0, 5.0, 0.0)
    assert line.at(0) == 100.0 and line.at(12) == 160.0


def test_residuals_are_those_of_least_squares():
    line = fit_line([(1, 1.0), (2, 4.0), (3, 4.0)])  # means 2 and 3, slope (1 * 2 + 1 * 1) / 2
    assert (line.slope, line.intercept) == (1.5, 0.0)
    assert line.max_residual == 1.0  # the middle point; the others are half as far


def test_the_same_batch_may_be_measured_twice():
    line = fit_line([(1, 9.0), (1, 11.0), (3, 30.0)])
    assert (line.intercept, line.slope, line.max_residual) == pytest.approx((0.0, 10.0, 1.0))


def test_the_reference_table():
    """The int8 column is one line; the fp16 column is another with the same intercept, but for its first row."""
    assert fit_line(list(zip(BATCHES, INT8, strict=True))) == Line(14113.0, 516.0, 0.0)
    points = list(zip(BATCHES, FP16, strict=True))
    straight = fit_line(points[1:])
    assert straight == Line(14113.0, 1030.0, 0.0)
    assert straight.at(8) - FP16[0] == 16
    # 16 MiB too few at batch 8, 18 below the mean of the batches, where the squares of the distances sum to 944
    whole, tilt = fit_line(points), 16 * 18 / 944
    assert whole.slope == pytest.approx(1030 + tilt)
    assert whole.intercept == pytest.approx(14113 - 4 - 26 * tilt)
    assert whole.max_residual == pytest.approx(4 + 10 * tilt)  # at batch 16


@pytest.mark.parametrize("points", [[], [(8, 5.0)], [(8, 5.0), (8, 6.0)]])
def test_fewer_than_two_batches(points):
    with pytest.raises(BadValue, match=f"two batch sizes, not {min(len(points), 1)}"):
        fit_line(points)


def test_crossings():
    assert crossing(Line(100.0, 10.0), Line(200.0, 5.0)) == 20.0
    assert crossing(Line(200.0, 5.0), Line(100.0, 10.0)) == 20.0
    assert crossing(Line(100.0, 10.0), Line(100.0, 5.0)) == 0.0
    assert crossing(Line(100.0, 5.0), Line(200.0, 5.0)) is None  # parallel
    assert crossing(Line(200.0, 10.0), Line(100.0, 5.0)) is None  # at a batch of -20


def test_a_line_moved():
    moved = Line(100.0, 5.0, 2.0).shifted(-30.0)
    assert moved == Line(70.0, 5.0, 2.0)
