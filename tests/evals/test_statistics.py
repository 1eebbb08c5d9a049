"""Formulas against published tables, scipy and statsmodels, and simulations."""

import random

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from octavo.evals.statistics import bootstrap_mean, mcnemar, needed_items, paired_interval, wilson

# Newcombe (1998), Statistics in Medicine 17:2635, table III, method 10. Cells are his e, f, g, h: both positive, only
# the first, only the second, neither; the limits are of (f - g) / n. He prints four decimals, one of them cut off
# instead of rounded (0.8736 is 0.87367), and takes z = 1.96. The values are as several programs transcribe them.
NEWCOMBE = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((35, 14, 0, 1), (0.1461, 0.4175)),
    ((18, 14, 0, 18), (0.1441, 0.3963)),
    ((2, 97, 1, 0), (0.8721, 0.9854)),
    ((1, 97, 1, 1), (0.8736, 0.9850)),
    ((0, 29, 1, 0), (0.6666, 0.9882)),
    ((2, 98, 0, 0), (0.9178, 0.9945)),
    ((1, 98, 0, 1), (0.9171, 0.9916)),
    ((0, 30, 0, 0), (0.8395, 1.0)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ((53, 0, 0, 1), (-0.0729, 0.0729)),
    ((30, 0, 0, 24), (-0.0358, 0.0358)),
    ((29, 0, 0, 25), (-0.0354, 0.0354)),
    ((28, 0, 0, 26), (-0.0352, 0.0352)),
    ((27, 0, 0, 27), (-0.0351, 0.0351)),
]


def test_wilson():
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 29, 400, 3077])
def test_wilson_is_that_of_statsmodels(n):
    for right in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        assert wilson(right, n) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-12)
        one_sided = proportion_confint(right, n, alpha=0.1, method="wilson")
        assert wilson(right, n, z=stats.norm.ppf(0.95)) == pytest.approx(one_sided, abs=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 3) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(72, 66) == pytest.approx(0.67, abs=0.005)
    assert mcnemar(400, 400 + 1) <= 1.0


def test_mcnemar_is_that_of_scipy_and_statsmodels():
    draw = random.Random(0)
    tables = [(gained, lost) for gained in range(12) for lost in range(12) if gained + lost]
    tables += [(72, 66), (66, 72), (0, 40), (13, 25), (54, 67)]
    tables += [(draw.randrange(2000), draw.randrange(2000)) for _ in range(20)]
    for gained, lost in tables:
        want = stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar(gained, lost) == pytest.approx(want, rel=1e-9, abs=1e-300), (gained, lost)
        theirs = statsmodels_mcnemar([[500, lost], [gained, 700]], exact=True).pvalue
        assert mcnemar(gained, lost) == pytest.approx(theirs, rel=1e-9, abs=1e-300), (gained, lost)


@pytest.mark.parametrize(("cells", "limits"), NEWCOMBE)
def test_paired_interval_is_the_published_one(cells, limits):
    e, f, g, h = cells
    assert paired_interval(e, g, f, h, z=1.96) == pytest.approx(limits, abs=1.1e-4)
    low, high = paired_interval(e, f, g, h, z=1.96)  # the other way round
    assert (-high, -low) == pytest.approx(limits, abs=1.1e-4)


def test_paired_interval_of_a_textbook():
    # Altman et al. (2000), Statistics with Confidence, page 52: 14, 5, 0, 22
    assert paired_interval(14, 0, 5, 22) == pytest.approx((0.011, 0.226), abs=6e-4)


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (400, (0.50, 0.04, 0.06, 0.40)),
        (3077, (0.29, 0.0042, 0.0033, 0.7025)),  # int8 beside bf16 on 3077 questions
        (1000, (0.25, 0.02, 0.02, 0.71)),
        (60, (0.60, 0.10, 0.15, 0.15)),
    ],
)
def test_the_interval_covers_the_truth(n, shares):
    """1500 draws at 95 %: the share that is covered has a standard error of 0.56 points, and the interval, which is no
    exact one, may be a little wide."""
    truth = shares[2] - shares[1]
    draws = np.random.default_rng(0).multinomial(n, shares, size=1500)
    limits = [paired_interval(*map(int, cells)) for cells in draws]
    covered = np.mean([low <= truth <= high for low, high in limits])
    assert 0.935 <= covered <= 0.985
    # the verdict's one-sided bound: a drop of just the margin is called smaller in 5 % of runs, not more
    bounds = [paired_interval(*map(int, cells), z=stats.norm.ppf(0.95))[0] for cells in draws]
    assert np.mean([low > truth for low in bounds]) <= 0.07


def test_needed_items():
    assert needed_items(0.045, 0.01) == 2783  # (1.645 + 0.842)^2 x 0.045 / 0.0001
    assert needed_items(0.045, 0.02) == pytest.approx(2783 / 4, abs=1)
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    assert needed_items(0.1, 0.01) == int(np.ceil(z**2 * 0.1 / 1e-4))


@pytest.mark.parametrize(("discordant", "margin"), [(0.045, 0.01), (0.015, 0.01), (0.2, 0.03)])
def test_needed_items_have_the_power_they_promise(discordant, margin):
    """With so many items, and no drop, the verdict says so in about 80 % of 1500 runs (standard error 1 point)."""
    n = needed_items(discordant, margin)
    shares = (0.4, discordant / 2, discordant / 2, 0.6 - discordant)
    draws = np.random.default_rng(1).multinomial(n, shares, size=1500)
    z = stats.norm.ppf(0.95)
    shown = np.mean([paired_interval(*map(int, cells), z=z)[0] > -margin for cells in draws])
    assert 0.76 <= shown <= 0.85


def test_bootstrap():
    draw = random.Random(1)
    values = [draw.gauss(3.0, 1.0) for _ in range(400)]
    low, high = bootstrap_mean(values)
    assert low < sum(values) / 400 < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap_mean(values) == (low, high)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_bootstrap_is_that_of_scipy(shape):
    generator = np.random.default_rng(2)
    values = generator.normal(size=300) if shape == "normal" else generator.lognormal(-8, 2, size=300)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3).confidence_interval
    width = theirs.high - theirs.low
    got = bootstrap_mean(list(values), draws=4000)
    assert got == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)
