"""Arrivals from counts per minute and per interval: exact counts, right moments, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.spec.minute_bins import (
    MAF2_INTERVAL_S,
    BinRules,
    bin_trace,
    functions_2019,
    functions_2021,
    interval_arrivals,
    power_law_rates,
    spread,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.floats(0.05, 2.0),
    st.sets(st.integers(1, 11), max_size=4),
)
def test_every_bin_holds_its_share(counts: list[int], scale: float, later: set[int]) -> None:
    """A bin's requests lie in its window, ascend, and go to models that are loaded by then."""
    loads = [0, *sorted(b for b in later if b < len(counts))]
    trace = bin_trace(counts, scale, loads)
    assert len(trace.arrival_s) == sum(int(count * scale) for count in counts)
    place = 0
    for index, count in enumerate(counts):
        loaded = sum(first <= index for first in loads)
        start_s = 30 * index + 90 * loaded
        inside = slice(place, place + int(count * scale))
        times = trace.arrival_s[inside]
        assert np.all((times >= start_s) & (times < start_s + 29.9))
        assert np.all(np.diff(times) >= 0)
        assert np.all(trace.model[inside] < loaded)
        place = inside.stop
    assert sum(len(one) for one in trace.per_model()) == len(trace.arrival_s)


def test_the_seed_decides() -> None:
    """Same seed, same trace; another seed, another trace."""
    counts, loads = [50, 80], [0, 1]
    first, again = bin_trace(counts, 1.0, loads), bin_trace(counts, 1.0, loads)
    other = bin_trace(counts, 1.0, loads, BinRules(seed=7))
    assert np.array_equal(first.arrival_s, again.arrival_s)
    assert np.array_equal(first.model, again.model)
    assert not np.array_equal(first.arrival_s, other.arrival_s)


@pytest.mark.parametrize(
    ("counts", "scale", "loads", "word"),
    [
        ([1], 0.0, [0], "scale"),
        ([], 1.0, [0], "counts"),
        ([-1], 1.0, [0], "counts"),
        ([1, 1], 1.0, [1], "bin 0"),
        ([1, 1], 1.0, [0, 1, 1], "ascend"),
        ([1, 1], 1.0, [0, 2], "2 bins"),
    ],
)
def test_bad_traces_are_refused(
    counts: list[int], scale: float, loads: list[int], word: str
) -> None:
    """The line names what is wrong."""
    with pytest.raises(SpecError, match=word):
        bin_trace(counts, scale, loads)


def test_power_law_is_a_power_law() -> None:
    """Rates fall as (i + 1) ** -0.5 and keep their sum."""
    rates = power_law_rates(16, 8.0)
    assert rates.sum() == pytest.approx(8.0)
    assert rates[0] / rates[3] == pytest.approx(2.0)
    assert rates[0] / rates[15] == pytest.approx(4.0)


def test_gamma_has_its_moments() -> None:
    """Over a long interval the rate and the CV are those asked for."""
    times = interval_arrivals([20.0], [3.0], 20_000.0, seed=1)
    gaps = np.diff(times)
    assert len(times) / 20_000.0 == pytest.approx(20.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.05)


def test_intervals_keep_to_themselves() -> None:
    """An interval without rate is empty; the others hold only their own times."""
    times = interval_arrivals([5.0, 0.0, 5.0], [1.0, 1.0, 1.0], 60.0, seed=2)
    assert not np.any((times >= 60) & (times < 120))
    assert times.max() < 180
    assert np.all(np.diff(times) >= 0)


def test_functions_2019_scale_with_the_rate() -> None:
    """Twice the rate scale gives about twice the arrivals."""
    counts = [600.0] * 60
    one, two = (len(functions_2019(counts, scale, 1.0, seed=3)) for scale in (1.0, 2.0))
    assert one == pytest.approx(36_000, rel=0.03)
    assert two == pytest.approx(2 * one, rel=0.03)


def test_functions_2021_resets_a_fit_that_is_too_fast() -> None:
    """A burst in an otherwise empty interval counts with its empirical rate, not its own."""
    burst = np.linspace(100.0, 101.0, 500)
    times = functions_2021(burst, 1.0, 1.0, seed=4)
    assert len(times) == pytest.approx(500, rel=0.2)
    assert times.max() < MAF2_INTERVAL_S


def test_spread_keeps_all_load() -> None:
    """Stripes and blocks map functions differently and lose nothing."""
    series = {str(i): np.array([float(2**i), 1.0]) for i in range(4)}
    stripe, block = spread(series, 2), spread(series, 2, "block")
    assert [one[0] for one in stripe] == [1 + 4, 2 + 8]
    assert [one[0] for one in block] == [1 + 2, 4 + 8]


def test_requests_carry_their_model() -> None:
    """One request an arrival, in order, named by its model; a name short is refused."""
    trace = bin_trace([30, 30], 1.0, [0, 1])
    made = trace.requests(("small", "large"), 100, 20)
    assert [one.arrival_s for one in made] == trace.arrival_s.tolist()
    assert [one.model == "large" for one in made] == (trace.model == 1).tolist()
    with pytest.raises(SpecError, match="2 models"):
        trace.requests(("small",), 100, 20)
