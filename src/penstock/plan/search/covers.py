"""The cheapest set of nodes that can carry a demand through one layer (compiled leaf of bounds).

A minimum-cost covering knapsack with repeats: items of capacity g and price w, at least F in sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Search = Callable[[Floats, Floats, float, float, Ints, Ints, int], float]
GRID = 6000


def _search(
    capacity: Floats,
    price: Floats,
    demand: float,
    below: float,
    count: Ints,
    best_count: Ints,
    budget: int,
) -> float:
    """Depth first over items sorted by price / capacity; bounded by the best ratio left.

    ``best_count`` receives the cheapest cover dearer than nothing but cheaper than ``below``.
    Returns its price, ``below`` when there is none, or -1 after ``budget`` steps.
    """
    m = len(capacity)
    best = below
    level = 0
    covered = np.zeros(m + 1)
    paid = np.zeros(m + 1)
    steps = 0
    need = demand * (1.0 - 1e-12)
    for i in range(m):
        count[i] = -1
    while level >= 0:
        steps += 1
        if steps > budget:
            return -1.0
        if level == m:
            level -= 1
            continue
        if count[level] < 0:
            missing = need - covered[level]
            if paid[level] + missing * price[level] / capacity[level] >= best - 1e-13:
                level -= 1
                continue
            count[level] = int(np.ceil(missing / capacity[level]))
            total = paid[level] + count[level] * price[level]
            if total < best - 1e-13:
                best = total
                for i in range(level + 1):
                    best_count[i] = count[i]
                for i in range(level + 1, m):
                    best_count[i] = 0
        if count[level] == 0:
            count[level] = -1
            level -= 1
            continue
        # The full count was weighed above: go on with one copy less and the dearer items.
        count[level] -= 1
        covered[level + 1] = covered[level] + count[level] * capacity[level]
        paid[level + 1] = paid[level] + count[level] * price[level]
        level += 1
        if level < m:
            count[level] = -1
    return best


def _grid(weight: Ints, price: Floats, size: int) -> float:
    """Price of the cheapest cover when capacities are rounded up to the grid: a lower bound."""
    least = np.zeros(size + 1)
    for q in range(1, size + 1):
        best = np.inf
        for i in range(len(weight)):
            rest = q - weight[i]
            total = price[i] + (least[rest] if rest > 0 else 0.0)
            best = min(best, total)
        least[q] = best
    return float(least[size])


@cache
def _compiled_search() -> Search:
    return cast(Search, njit(cache=True)(_search))


@cache
def _compiled_grid() -> Callable[[Ints, Floats, int], float]:
    return cast(Callable[[Ints, Floats, int], float], njit(cache=True)(_grid))


def cheapest_cover(
    capacity: Floats, price: Floats, demand: float, *, budget: int = 2_000_000
) -> tuple[float, Ints]:
    """Return a lower bound on the price of any cover, and the cheapest cover found, ``[m]``.

    The bound is the exact least price unless the search passes ``budget`` steps; then it is the
    price on a grid with capacities rounded up, which no cover undercuts.
    """
    held = np.minimum(capacity, demand)
    with np.errstate(divide="ignore"):
        order = np.argsort(np.where(held > 0, price / np.maximum(held, 1e-300), np.inf))
    order = order[held[order] > 0]
    if len(order) == 0:
        return float("inf"), np.zeros(len(capacity), dtype=np.int64)
    g, w = held[order], price[order]
    count = np.zeros(len(order), dtype=np.int64)
    chosen = np.zeros(len(order), dtype=np.int64)
    least = _compiled_search()(g, w, demand, np.inf, count, chosen, budget)
    if least < 0:
        weight = np.maximum(1, np.ceil(g / demand * GRID - 1e-9)).astype(np.int64)
        least = _compiled_grid()(weight, w, GRID)
    cover = np.zeros(len(capacity), dtype=np.int64)
    cover[order] = chosen
    return least, cover
