"""Arrivals from counts per minute: exact counts, windows kept, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.spec.minute_bins import BinRules, bin_trace


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


def test_requests_carry_their_model() -> None:
    """One request an arrival, in order, named by its model; a name short is refused."""
    trace = bin_trace([30, 30], 1.0, [0, 1])
    made = trace.requests(("small", "large"), 100, 20)
    assert [one.arrival_s for one in made] == trace.arrival_s.tolist()
    assert [one.model == "large" for one in made] == (trace.model == 1).tolist()
    with pytest.raises(SpecError, match="2 models"):
        trace.requests(("small",), 100, 20)
