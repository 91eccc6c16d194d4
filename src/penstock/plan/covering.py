"""How many layers a fleet can cover at a demand F, when layers are covered one by one.

A cover of a layer is a multiset of (class, k) pairs with sum min(T, F) >= F. Let lambda_c count
the layers covered by c and y_tk the nodes of class t that hold k layers:

    max sum_c lambda_c   s.t.   sum_c a_c,tk lambda_c <= k y_tk,   sum_k y_tk <= n_t.

Every placement that carries F gives a feasible point with L layers, so an optimum below L rules F
out. Its dual prices a layer held by (t, k) at w_tk such that every cover costs at least 1; then at
most sum_t n_t max_k k w_tk layers can be covered. That last figure, with covers priced exactly, is
what is reported, so errors of the LP solver cannot make the bound wrong.
"""

from __future__ import annotations

from functools import cached_property

import highspy
import numpy as np
from numpy.typing import NDArray

from penstock.plan.fleet import Fleet
from penstock.plan.lp import silent_solver
from penstock.plan.search.covers import cheapest_cover

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ROUNDS = 400
_TIGHT = 1e-7


class CoverProgram:
    """The covering program of a fleet at one demand (tokens/s)."""

    def __init__(self, fleet: Fleet, demand: float) -> None:
        self.fleet = fleet
        self.demand = demand
        self.count = fleet.class_count
        items = [
            (t, k)
            for t, node in enumerate(fleet.class_node.tolist())
            for k in range(1, int(fleet.max_layers[node]) + 1)
            if fleet.work[node, k] > 0
        ]
        self.item_class = np.array([t for t, _ in items], dtype=np.int64)
        self.item_layers = np.array([k for _, k in items], dtype=np.int64)
        rows = fleet.class_node[self.item_class]
        self.item_capacity = np.minimum(fleet.work[rows, self.item_layers], demand)

    def layers(self) -> float:
        """Upper bound on the layers that can be covered; infinity when it is at least L."""
        return self._layers

    @cached_property
    def _layers(self) -> float:
        master = _Master(self)
        for _ in range(_ROUNDS):
            objective, price = master.solve()
            if objective >= self.fleet.num_layers * (1 - 1e-9):
                return float("inf")
            least, cover = cheapest_cover(self.item_capacity, price, self.demand)
            if least > 0:
                limit = self.spendable(price) / least
                if limit < self.fleet.num_layers - 1e-6:
                    return limit
            if least >= 1 - _TIGHT or not cover.any():
                return float("inf")
            master.add(cover)
        return float("inf")

    def spendable(self, price: Floats) -> float:
        """sum_t n_t max_k k w_tk."""
        best = np.zeros(len(self.count))
        np.maximum.at(best, self.item_class, self.item_layers * price)
        return float(best @ self.count)

    def separation(self) -> float:
        """Largest d for which prices exist with

        sum_t n_t max_k k w_tk <= L, w >= d, w_tk >= 1 where T >= F alone, and every cover of
        several nodes without such a one costs at least 1 + d. Negative when there is none.
        """
        single = self.item_capacity >= self.demand
        partial = np.where(single, 0.0, self.item_capacity)
        master = _Separation(self, single)
        for _ in range(_ROUNDS):
            gap, price = master.solve()
            if gap <= 1e-6:
                return gap
            least, cover = cheapest_cover(partial, price, self.demand)
            if least >= 1 + gap - _TIGHT:
                # Give back what the solver's and the stopping tolerance may have taken.
                spent = self.spendable(price)
                slack = (spent - self.fleet.num_layers) / self.fleet.num_layers
                return min(gap, least - 1) - max(0.0, slack) - 1e-6
            master.add(cover)
        return -1.0


class _Master:
    """The restricted LP over the covers found so far."""

    def __init__(self, program: CoverProgram) -> None:
        self.program = program
        self.lp = silent_solver()
        m = len(program.item_class)
        infinity = self.lp.getInfinity()
        for _ in range(m):
            self.lp.addRow(-infinity, 0.0, 0, [], [])
        for n in program.count.tolist():
            self.lp.addRow(-infinity, float(n), 0, [], [])
        for item, (t, k) in enumerate(
            zip(program.item_class.tolist(), program.item_layers.tolist(), strict=True)
        ):
            self.lp.addCol(0.0, 0.0, infinity, 2, [item, m + t], [-float(k), 1.0])
        for item in range(m):
            cover = np.zeros(m, dtype=np.int64)
            cover[item] = int(np.ceil(program.demand / program.item_capacity[item] - 1e-12))
            self.add(cover)

    def add(self, cover: Ints) -> None:
        rows = np.flatnonzero(cover)
        self.lp.addCol(
            -1.0, 0.0, self.lp.getInfinity(), len(rows), rows.tolist(), cover[rows].tolist()
        )

    def solve(self) -> tuple[float, Floats]:
        """Layers covered, and the price of a layer of each item."""
        self.lp.run()
        duals = -np.array(self.lp.getSolution().row_dual[: len(self.program.item_class)])
        return -float(self.lp.getInfo().objective_function_value), np.maximum(duals, 0.0)


class _Separation:
    """Prices that set single nodes apart from all other covers by as much as possible."""

    def __init__(self, program: CoverProgram, single: NDArray[np.bool_]) -> None:
        self.program = program
        self.lp = silent_solver()
        infinity = self.lp.getInfinity()
        m, types = len(program.item_class), len(program.count)
        # Columns: w per item, u per class (what one node can spend), d.
        for item in range(m):
            self.lp.addCol(0.0, 1.0 if single[item] else 0.0, infinity, 0, [], [])
        for _ in range(types):
            self.lp.addCol(0.0, 0.0, infinity, 0, [], [])
        self.lp.addCol(-1.0, -1.0, 1.0, 0, [], [])
        for item in range(m):
            t, k = int(program.item_class[item]), float(program.item_layers[item])
            self.lp.addRow(0.0, infinity, 2, [m + t, item], [1.0, -k])
            self.lp.addRow(0.0, infinity, 2, [item, m + types], [1.0, -1.0])
        layers = float(program.fleet.num_layers)
        columns = list(range(m, m + types))
        self.lp.addRow(-infinity, layers, types, columns, [float(n) for n in program.count])

    def add(self, cover: Ints) -> None:
        rows = np.flatnonzero(cover)
        columns = [*rows.tolist(), len(self.program.item_class) + len(self.program.count)]
        values = [*cover[rows].astype(float).tolist(), -1.0]
        self.lp.addRow(1.0, self.lp.getInfinity(), len(columns), columns, values)

    def solve(self) -> tuple[float, Floats]:
        """The gap d and the prices; d = -1 when the LP has no solution."""
        self.lp.run()
        if self.lp.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return -1.0, np.zeros(len(self.program.item_class))
        values = np.array(self.lp.getSolution().col_value)
        return float(values[-1]), np.maximum(values[: len(self.program.item_class)], 0.0)
