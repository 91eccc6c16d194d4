"""Azure Functions traces and shares of popularity: mapping, fits, moments, clear errors."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from penstock.errors import SpecError
from penstock.spec.arrivals import IntervalArrivals
from penstock.spec.functions import (
    FIT_INTERVAL_S,
    from_counts,
    from_invocations,
    gather,
    read_counts,
    read_invocations,
    spread,
)
from penstock.spec.popularity import popularity_rates


def _times(arrivals: IntervalArrivals, duration_s: float, seed: int = 1) -> np.ndarray:
    return np.array(list(arrivals.times(Random(seed), duration_s)))


def test_power_law_is_a_power_law() -> None:
    """Rates fall as (i + 1) ** -0.5 and keep their sum."""
    rates = popularity_rates(16, 8.0)
    assert sum(rates) == pytest.approx(8.0)
    assert rates[0] / rates[3] == pytest.approx(2.0)
    assert rates[0] / rates[15] == pytest.approx(4.0)


def test_other_laws() -> None:
    """Uniform is equal; halving halves; exponent 0 is uniform too."""
    assert popularity_rates(4, 8.0, "uniform") == (2.0, 2.0, 2.0, 2.0)
    assert popularity_rates(3, 7.0, "halving") == pytest.approx((4.0, 2.0, 1.0))
    assert popularity_rates(4, 8.0, "power_law", 0.0) == (2.0, 2.0, 2.0, 2.0)
    with pytest.raises(SpecError, match="rate"):
        popularity_rates(4, 0.0)


def test_intervals_have_their_moments() -> None:
    """Over a long interval the rate and the CV are those asked for."""
    times = _times(IntervalArrivals((20.0,), (3.0,), 20_000.0), 1e9)
    gaps = np.diff(times)
    assert len(times) / 20_000.0 == pytest.approx(20.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.05)


def test_intervals_keep_to_themselves() -> None:
    """An interval without rate is empty; the others hold only their own times; the end cuts."""
    arrivals = IntervalArrivals((5.0, 0.0, 5.0), (1.0, 1.0, 1.0), 60.0)
    times = _times(arrivals, 1e9)
    assert not np.any((times >= 60) & (times < 120))
    assert times.max() < 180
    assert np.all(np.diff(times) >= 0)
    cut = _times(arrivals, 150.0)
    assert cut.max() < 150.0
    assert cut.tolist() == times[times < 150.0].tolist()


def test_counts_scale_with_the_rate() -> None:
    """Twice the rate scale gives about twice the arrivals; the CV is the scale itself."""
    counts = np.full(60, 600.0)
    one, two = (len(_times(from_counts(counts, scale, 1.0), 3600.0)) for scale in (1.0, 2.0))
    assert one == pytest.approx(36_000, rel=0.03)
    assert two == pytest.approx(2 * one, rel=0.03)
    assert set(from_counts(counts, 1.0, 4.0).cvs) == {4.0}


def test_a_fit_recovers_what_was_drawn() -> None:
    """Rate and CV of an interval's own process come back, scaled."""
    drawn = _times(IntervalArrivals((2.0,), (2.5,), FIT_INTERVAL_S), FIT_INTERVAL_S)
    fitted = from_invocations(drawn, FIT_INTERVAL_S, 3.0, 2.0)
    assert fitted.rates_per_s[0] == pytest.approx(6.0, rel=0.1)
    assert fitted.cvs[0] == pytest.approx(5.0, rel=0.1)


def test_a_fit_that_is_too_fast_is_reset() -> None:
    """A burst in an otherwise empty interval counts with its empirical rate, not its own."""
    burst = np.linspace(100.0, 101.0, 500)
    fitted = from_invocations(burst, FIT_INTERVAL_S, 1.0, 1.0)
    assert fitted.rates_per_s == (500 / FIT_INTERVAL_S,)
    assert fitted.cvs == (1.0,)


def test_spread_keeps_all_load() -> None:
    """Stripes and blocks map functions differently and lose nothing."""
    series = [np.array([float(2**i), 1.0]) for i in range(4)]
    stripe, block = spread(series, 2), spread(series, 2, "block")
    assert [one[0] for one in stripe] == [1 + 4, 2 + 8]
    assert [one[0] for one in block] == [1 + 2, 4 + 8]
    calls = [np.array([4.0]), np.array([1.0, 9.0]), np.array([2.0])]
    assert [one.tolist() for one in gather(calls, 2)] == [[2.0, 4.0], [1.0, 9.0]]
    with pytest.raises(SpecError, match="4 functions"):
        spread(series, 5)


def test_published_layouts_are_read(tmp_path: Path) -> None:
    """The 2019 and 2021 files as Azure publishes them; rows of one function add up."""
    counts = tmp_path / "d01.csv"
    counts.write_text(
        "HashOwner,HashApp,HashFunction,Trigger,1,2,3\n"
        "o,a,f,http,1,0,2\no,a,g,timer,5,5,5\no,a,f,http,1,1,1\n"
    )
    assert [own.tolist() for own in read_counts(counts)] == [[2, 1, 3], [5, 5, 5]]
    calls = tmp_path / "calls.txt"
    calls.write_text("app,func,end_timestamp,duration\na,f,10.5,0.5\na,g,3.0,1.0\na,f,4.0,1.0\n")
    assert [own.tolist() for own in read_invocations(calls)] == [[3.0, 10.0], [2.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app,func,end_timestamp\n", "duration.*missing|missing.*duration"),
        ("app,func,end_timestamp,duration\n", "empty"),
        ("app,func,end_timestamp,duration\na,f,x,1\n", r"calls.csv:2.*not a number"),
        ("app,func,end_timestamp,duration\na,f,1\n", r"calls.csv:2.*3 values for 4"),
        ("app,func,end_timestamp,duration\na,f,nan,1\n", r"calls.csv:2.*finite"),
    ],
)
def test_broken_traces_name_their_line(tmp_path: Path, text: str, message: str) -> None:
    """One line with file, row and what is wrong."""
    path = tmp_path / "calls.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_invocations(path)


@pytest.mark.parametrize(
    ("rates", "cvs", "interval_s", "word"),
    [
        ((1.0,), (1.0, 1.0), 60.0, "cvs"),
        ((-1.0,), (1.0,), 60.0, "rates"),
        ((1.0,), (0.0,), 60.0, "cvs"),
        ((1.0,), (1.0,), 0.0, "interval"),
    ],
)
def test_impossible_intervals_are_refused(
    rates: tuple[float, ...], cvs: tuple[float, ...], interval_s: float, word: str
) -> None:
    """The line names the key."""
    with pytest.raises(SpecError, match=word):
        IntervalArrivals(rates, cvs, interval_s)
