"""Fronts against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.plan.goodput.front import pareto

Pair = tuple[int, int]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_the_front_is_what_none_beats(pairs: list[Pair]) -> None:
    """A pair is on the front exactly when no other is at least as good in both figures."""
    front = pareto(pairs, lambda pair: pair[0], lambda pair: pair[1])
    unbeaten = {
        a for a in pairs if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in pairs)
    }
    assert set(front) == unbeaten
    assert len(front) == len(unbeaten)
    assert list(front) == sorted(front)
