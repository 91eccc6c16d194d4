"""Pooled seconds against the samples written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.measure import pooled
from penstock.measure.pooled import RESOLUTION, PooledSeconds

PAIRS = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9)), max_size=40)
FRACTIONS = np.linspace(0, 1, 23)


def pool(parts: list[list[tuple[float, int]]]) -> tuple[PooledSeconds, np.ndarray]:
    """A sample made by adding and merging, and the same written out."""
    result = PooledSeconds()
    for number, part in enumerate(parts):
        seconds = np.array([second for second, _ in part], float)
        counts = np.array([count for _, count in part], np.int64)
        target = PooledSeconds() if number % 2 else result
        target.add(seconds, counts)
        if target is not result:
            result.merge(target)
    flat = [second for part in parts for second, count in part for _ in range(count)]
    return result, np.array(flat)


@given(parts=st.lists(PAIRS, max_size=4))
def test_pairs_stand_for_the_samples(parts: list[list[tuple[float, int]]]) -> None:
    """Moments, extremes and order statistics are NumPy's over the samples."""
    found, flat = pool(parts)
    assert found.count == len(flat)
    if not len(flat):
        assert np.isnan([found.mean, found.std, found.minimum, found.maximum]).all()
        return
    assert found.mean == pytest.approx(flat.mean(), rel=1e-12)
    assert found.std == pytest.approx(flat.std(), rel=1e-7, abs=1e-7)
    assert (found.minimum, found.maximum) == (flat.min(), flat.max())
    np.testing.assert_allclose(found.quantiles(FRACTIONS), np.quantile(flat, FRACTIONS), rtol=1e-9)
    np.testing.assert_array_equal(found.at_ranks(np.arange(len(flat))), np.sort(flat))
    np.testing.assert_array_equal(found.values(10**6), np.sort(flat))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_merging_keeps_order_statistics_within_the_resolution(seed: int) -> None:
    """Beyond the exact pairs every rank is off by less than a bin, and the moments by nothing."""
    rng = np.random.default_rng(seed)
    parts = [rng.lognormal(-4, 1.5, 300) for _ in range(6)]
    found = PooledSeconds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "EXACT_PAIRS", 500)
        for part in parts:
            found.add(part)
    flat = np.sort(np.concatenate(parts))
    np.testing.assert_allclose(
        found.at_ranks(np.arange(len(flat))), flat, rtol=1.01 * RESOLUTION, atol=0
    )
    assert not np.array_equal(found.at_ranks(np.arange(len(flat))), flat), "nothing was merged"
    assert found.mean == pytest.approx(flat.mean(), rel=1e-12)
    assert found.std == pytest.approx(flat.std(), rel=1e-9)
    assert (found.minimum, found.maximum) == (flat[0], flat[-1])


def test_memory_is_bounded() -> None:
    """However many seconds come, the pairs kept stay few."""
    rng = np.random.default_rng(1)
    found = PooledSeconds()
    for _ in range(12):
        found.add(rng.lognormal(-4, 1.0, 100_000))
    assert found.count == 1_200_000
    assert len(found.values(10**7)) == found.count
    assert sum(len(part) for part in found._seconds) <= pooled.EXACT_PAIRS
