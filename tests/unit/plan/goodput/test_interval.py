"""Confidence intervals against exact sums and published quantiles."""

from __future__ import annotations

from math import comb

import pytest

from penstock.plan.goodput.interval import attainment_interval, student, wilson


@pytest.mark.parametrize(("share", "count"), [(0.9, 50), (0.97, 100), (0.6, 30)])
def test_wilson_covers_about_95_percent(share: float, count: int) -> None:
    """Over all binomial outcomes the interval holds the true share 92 to 98 % of times."""
    covered = 0.0
    for good in range(count + 1):
        found = wilson(good / count, count)
        if found.low <= share <= found.high:
            covered += comb(count, good) * share**good * (1 - share) ** (count - good)
    assert 0.92 < covered < 0.98


def test_all_good_is_not_certainty() -> None:
    """With every request good the interval still reaches down (rule of three, about 3.7 / n)."""
    found = wilson(1.0, 100)
    assert found.high == 1.0
    assert 0.95 < found.low < 0.97
    assert wilson(0.5, 0).low == 0.0


def test_student_by_hand() -> None:
    """Three runs: mean +- 4.3027 s / sqrt(3)."""
    found = student([0.90, 0.92, 0.94])
    half = 4.3027 * 0.02 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.92 - half, 0.92 + half))


def test_the_wider_one_counts() -> None:
    """Equal runs leave Wilson's; runs far apart leave Student's."""
    assert attainment_interval([0.9, 0.9], [100, 100]) == wilson(0.9, 200)
    apart = attainment_interval([0.8, 0.9, 1.0], [1000] * 3)
    assert apart == student([0.8, 0.9, 1.0])
