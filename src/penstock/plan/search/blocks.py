"""The block program: a placement as spans of layers, each served by a few parallel chains.

For a demand F, a block spans d layers with 1 to 3 parallel chains of 1 to 3 nodes; a chain passes
the least T of its nodes, the chains of a block together at least F. Choosing a multiset of blocks
with at least L layers in sum and no more nodes than there are is an integer program of very few
rows. Blocks are made on demand: column generation solves the LP, and its prices leave only the
blocks that an integer solution of L layers can still use.

Links must not bind inside a region; between regions the flow passes over several node pairs, so
the blocks at a border must be wide enough (``Border``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from penstock.plan.lp import silent_solver

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_CHAINS_OF_PAIRS = 130
_MOST_CHAINS_OF_TRIPLES = 40
_MOST_COLUMNS = 3000
_ROUNDS = 60


@dataclass(frozen=True)
class Block:
    """``span`` layers on parallel chains; a chain lists (class, layers) in order."""

    span: int
    chains: tuple[tuple[tuple[int, int], ...], ...]

    def usage(self, classes: int) -> Ints:
        """``[classes]`` nodes of each class."""
        used = np.zeros(classes, dtype=np.int64)
        for chain in self.chains:
            for kind, _ in chain:
                used[kind] += 1
        return used


@dataclass(frozen=True)
class Border:
    """Regions ``left`` and ``right`` are neighbours; one pair of nodes passes ``pair`` tokens/s."""

    left: int
    right: int
    pair: float


class Chains:
    """All chains of up to ``longest`` nodes of one region, and what each passes by span.

    members   list of class tuples
    passes    [chains, D + 1] most tokens/s of a chain of exactly that span, 0 where impossible
    """

    def __init__(self, capacity: Floats, count: Ints, num_layers: int, longest: int) -> None:
        """``capacity`` [classes, K + 1], ``count`` [classes] nodes in this region."""
        self.capacity = capacity
        present = np.flatnonzero(count).tolist()
        width = capacity.shape[1] - 1
        self.width = min(num_layers, longest * width)
        self.members: list[tuple[int, ...]] = []
        rows: dict[tuple[int, ...], Floats] = {}
        for size in range(1, longest + 1):
            for member in combinations_with_replacement(present, size):
                if any(member.count(t) > count[t] for t in set(member)):
                    continue
                rows[member] = self._extend(rows.get(member[:-1]), capacity[member[-1]])
                self.members.append(member)
        self.passes = np.array([rows[member] for member in self.members])

    def _extend(self, before: Floats | None, single: Floats) -> Floats:
        row = np.zeros(self.width + 1)
        if before is None:
            most = min(self.width, len(single) - 1)
            row[1 : most + 1] = single[1 : most + 1]
            return row
        for k in range(1, min(self.width, len(single) - 1) + 1):
            np.maximum(row[k:], np.minimum(before[: self.width + 1 - k], single[k]), out=row[k:])
        return row

    def layers(self, chain: int, span: int) -> tuple[tuple[int, int], ...]:
        """How many layers each node of a chain holds, so that it passes ``passes[chain, span]``."""
        member = self.members[chain]
        goal = self.passes[chain, span]
        good = [self.capacity[t] >= goal for t in member]
        reach: list[set[int]] = [{0}]
        for allowed in good:
            ks = np.flatnonzero(allowed).tolist()
            reach.append({d + k for d in reach[-1] for k in ks if k > 0 and d + k <= span})
        picked: list[tuple[int, int]] = []
        left = span
        for position in range(len(member) - 1, -1, -1):
            ks = np.flatnonzero(good[position]).tolist()
            k = max(k for k in ks if k > 0 and left - k in reach[position])
            picked.append((member[position], k))
            left -= k
        return tuple(reversed(picked))


class Region:
    """The chains of one region and which sets of them make a block at a demand."""

    def __init__(self, capacity: Floats, count: Ints, num_layers: int) -> None:
        self.count = count
        kinds = int((count > 0).sum())
        self.pair = Chains(capacity, count, num_layers, _longest(kinds, _MOST_CHAINS_OF_PAIRS))
        self.triple = Chains(capacity, count, num_layers, _longest(kinds, _MOST_CHAINS_OF_TRIPLES))
        classes = len(count)
        self.pair_usage = _usage(self.pair.members, classes)
        self.triple_usage = _usage(self.triple.members, classes)
        self.single = capacity


def _longest(kinds: int, most: int) -> int:
    """Longest chains for which there are at most ``most`` multisets of ``kinds`` classes."""
    longest, total, new = 0, 0, 1
    while longest < 4:
        new = new * (kinds + longest) // (longest + 1)
        if total + new > most and longest >= 1:
            break
        total += new
        longest += 1
    return longest


def _usage(members: Sequence[tuple[int, ...]], classes: int) -> Ints:
    usage = np.zeros((len(members), classes), dtype=np.int64)
    for row, member in enumerate(members):
        for t in member:
            usage[row, t] += 1
    return usage


@dataclass(frozen=True)
class Candidate:
    """One block as an integer-program column; ``ends`` = number of parallel chains."""

    region: int
    span: int
    usage: tuple[int, ...]
    source: tuple[int, ...]
    """Chain numbers: of ``triple`` when there are three, of ``pair`` otherwise."""

    @property
    def ends(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class _Worth:
    """Prices of the LP: what a layer earns, what a hop costs, what a node costs [region, class]."""

    layer: float
    hop: float
    node: Floats

    @classmethod
    def of(cls, shape: tuple[int, ...], *, layer: float = 0.0, hop: float = 0.0) -> _Worth:
        """First prices; a node costs next to nothing, so the best ratios enter first."""
        return cls(layer, hop, np.full(shape, 1e-3))


class BlockProgram:
    """The block program at one demand F."""

    def __init__(
        self,
        regions: Sequence[Region],
        num_layers: int,
        demand: float,
        borders: Sequence[Border] = (),
    ) -> None:
        self.regions, self.num_layers, self.demand = regions, num_layers, demand
        self.borders = borders
        self.count = np.array([region.count for region in regions])

    @cached_property
    def _feasible(self) -> list[list[tuple[Ints, ...]]]:
        """Per region: (span, chain, ...) index arrays of all blocks with 1, 2 and 3 chains."""
        need = self.demand * (1 - 1e-12)
        everything = []
        for region in self.regions:
            rows: list[tuple[Ints, ...]] = []
            passes = region.pair.passes
            alone = passes >= need
            single = np.array([len(m) == 1 for m in region.pair.members])
            rows.append(np.nonzero(alone & single[:, None])[::-1])
            partial = np.where(alone, 0.0, passes)
            rows.append(_sums(partial, need, 2))
            small = region.triple.passes
            partial = np.where(small >= need, 0.0, small)
            rows.append(_sums(partial, need, 3))
            everything.append(rows)
        return everything

    def _values(self, r: int, worth: _Worth) -> list[Floats]:
        """Per number of chains: what every feasible block is worth at the LP's prices."""
        region = self.regions[r]
        values = []
        for ends, rows in enumerate(self._feasible[r], start=1):
            usage = region.triple_usage if ends == 3 else region.pair_usage
            cost: Floats = usage @ worth.node[r]
            value: Floats = worth.layer * rows[0].astype(np.float64)
            for chain in rows[1:]:
                value = value - cost[chain]
            if worth.hop > 0:
                value = value - worth.hop * self._hops[r][ends - 1]
            values.append(value)
        return values

    @cached_property
    def _hops(self) -> list[list[Floats]]:
        """Per region and number of chains: mean hops through each feasible block.

        Tokens are spread over the chains by what each can pass.
        """
        everything = []
        for region, feasible in zip(self.regions, self._feasible, strict=True):
            means = []
            for ends, rows in enumerate(feasible, start=1):
                chains = region.triple if ends == 3 else region.pair
                length = np.array([len(member) for member in chains.members], dtype=float)
                passed = np.zeros(len(rows[0]))
                hops = np.zeros(len(rows[0]))
                for chain in rows[1:]:
                    flow = chains.passes[chain, rows[0]]
                    passed += flow
                    hops += flow * length[chain]
                means.append(hops / np.maximum(passed, 1e-300))
            everything.append(means)
        return everything

    def _candidate(self, r: int, ends: int, index: int) -> Candidate:
        rows = self._feasible[r][ends - 1]
        source = tuple(int(chain[index]) for chain in rows[1:])
        usage = self.regions[r].triple_usage if ends == 3 else self.regions[r].pair_usage
        total = usage[list(source)].sum(axis=0)
        return Candidate(r, int(rows[0][index]), tuple(total.tolist()), source)

    def solve(self) -> list[tuple[Candidate, int]] | None:
        """Blocks and how often, with at least L layers in sum; None when there is no such choice.

        None also when the solver runs into its node limit: the bisection then tries less.
        """
        layers, worth, columns = self._relax(_Worth.of(self.count.shape, layer=1.0), {})
        if layers < self.num_layers - 1e-6:
            return None
        pool = self._pool(columns, worth, layers - self.num_layers + 1e-6)
        # Any choice with enough layers will do: its flow is evaluated, and the bisection goes on.
        return self._integer(pool, [-float(c.span) for c in pool], -float(self.num_layers))

    def solve_shallow(self, seed: int) -> list[tuple[Candidate, int]] | None:
        """Like ``solve``, with (nearly) as few hops as possible.

        ``seed`` shakes the hops of every block by a few percent: choices of almost equal depth
        differ in how they serve, and the caller measures several.
        """
        layers, _, columns = self._relax(_Worth.of(self.count.shape, layer=1.0), {})
        if layers < self.num_layers - 1e-6:
            return None
        hops, worth, columns = self._relax(_Worth.of(self.count.shape, hop=1.0), columns)
        pool = self._pool(columns, worth, 0.15 * hops)
        shake = np.random.default_rng(seed).uniform(0.97, 1.03, len(pool))
        cost = [self._mean_hops(c) * float(f) for c, f in zip(pool, shake, strict=True)]
        return self._integer(pool, cost, None)

    def _mean_hops(self, column: Candidate) -> float:
        region = self.regions[column.region]
        chains = region.triple if column.ends == 3 else region.pair
        flow = [float(chains.passes[c, column.span]) for c in column.source]
        size = [len(chains.members[c]) for c in column.source]
        return sum(f * n for f, n in zip(flow, size, strict=True)) / sum(flow)

    def _pool(self, columns: dict[Candidate, None], worth: _Worth, slack: float) -> list[Candidate]:
        """The columns of the LP and all others that lose at most ``slack`` on it."""
        pool = dict(columns)
        ranked: list[tuple[float, int, int, int]] = []
        for r in range(len(self.regions)):
            for ends, values in enumerate(self._values(r, worth), start=1):
                good = np.flatnonzero(values >= -slack)
                if len(good) > _MOST_COLUMNS:
                    good = good[np.argsort(-values[good], kind="stable")[:_MOST_COLUMNS]]
                ranked += [(-float(values[i]), r, ends, int(i)) for i in good]
        ranked.sort()
        for _, r, ends, i in ranked[:_MOST_COLUMNS]:
            pool.setdefault(self._candidate(r, ends, i))
        return list(pool)

    def _relax(
        self, worth: _Worth, known: dict[Candidate, None]
    ) -> tuple[float, _Worth, dict[Candidate, None]]:
        """Solve the LP by column generation, starting from ``known`` columns.

        With a hop price: the fewest hops over L layers; without: the most layers. Returns the
        objective, the LP's prices, and all columns.
        """
        lp = silent_solver()
        regions, classes = self.count.shape
        infinity = lp.getInfinity()
        for n in self.count.ravel().tolist():
            lp.addRow(-infinity, float(n), 0, [], [])
        if worth.hop > 0:
            lp.addRow(float(self.num_layers), infinity, 0, [], [])
        columns: dict[Candidate, None] = {}

        def add(column: Candidate) -> None:
            columns[column] = None
            rows = [column.region * classes + t for t, u in enumerate(column.usage) if u]
            entries = [float(u) for u in column.usage if u]
            if worth.hop > 0:
                rows.append(regions * classes)
                entries.append(float(column.span))
            cost = self._mean_hops(column) if worth.hop > 0 else -float(column.span)
            lp.addCol(cost, 0.0, infinity, len(rows), rows, entries)

        for column in known:
            add(column)
        prices = worth
        objective = 0.0
        for number in range(_ROUNDS):
            if number > 0 or known:
                lp.run()
                objective = abs(float(lp.getInfo().objective_function_value))
                duals = np.array(lp.getSolution().row_dual)
                node = np.maximum(0.0, -duals[: regions * classes]).reshape(regions, classes)
                layer = float(duals[-1]) if worth.hop > 0 else 1.0
                prices = _Worth(layer, worth.hop, node)
            fresh = [c for c in self._profitable(prices) if c not in columns]
            for column in fresh:
                add(column)
            if not fresh:
                break
        return objective, prices, columns

    def _profitable(self, worth: _Worth) -> list[Candidate]:
        """Of each region, number of chains and span, the block that gains most at these prices."""
        return [
            self._candidate(r, ends, i)
            for r in range(len(self.regions))
            for ends, values in enumerate(self._values(r, worth), start=1)
            for i in _best_by_span(values, self._feasible[r][ends - 1][0], 1e-7)
        ]

    def _integer(
        self, pool: list[Candidate], cost: list[float], enough: float | None
    ) -> list[tuple[Candidate, int]] | None:
        """Choose columns of least cost with at least L layers; stop at ``enough``."""
        lp = silent_solver()
        lp.setOptionValue("mip_max_nodes", 2000 if enough is not None else 60)
        lp.setOptionValue("mip_rel_gap", 0.0 if enough is not None else 0.005)
        infinity = lp.getInfinity()
        for price in cost:
            lp.addCol(price, 0.0, float(self.count.max()), 0, [], [])
        kinds = [highspy.HighsVarType.kInteger] * len(pool)
        classes = self.count.shape[1]
        for r in range(len(self.regions)):
            for t in range(classes):
                entries = [
                    (i, float(c.usage[t]))
                    for i, c in enumerate(pool)
                    if c.region == r and c.usage[t]
                ]
                if entries:
                    lp.addRow(
                        -infinity,
                        float(self.count[r, t]),
                        len(entries),
                        [i for i, _ in entries],
                        [u for _, u in entries],
                    )
        spans = [float(c.span) for c in pool]
        lp.addRow(float(self.num_layers), infinity, len(pool), list(range(len(pool))), spans)
        extra = self._add_borders(lp, pool)
        kinds += [highspy.HighsVarType.kInteger] * extra
        lp.changeColsIntegrality(len(kinds), np.arange(len(kinds), dtype=np.int32), np.array(kinds))
        if enough is not None:
            lp.setOptionValue("objective_target", enough)
        lp.run()
        values = np.array(lp.getSolution().col_value)
        if lp.getSolution().value_valid is False or len(values) < len(pool):
            return None
        picked = [(c, round(float(v))) for c, v in zip(pool, values, strict=False) if v > 0.5]
        if sum(c.span * times for c, times in picked) < self.num_layers:
            return None
        return picked

    def _add_borders(self, lp: Any, pool: list[Candidate]) -> int:
        """Each border needs blocks wide enough on both sides; returns the columns added.

        A side with p chains and another with q passes p q pairs. One (p, q) is chosen per border;
        a region in the middle needs a wide block of its own for each border.
        """
        infinity = lp.getInfinity()
        column = len(pool)
        demands: dict[tuple[int, int], list[int]] = {}
        for border in self.borders:
            shapes = [
                (p, q)
                for p in (1, 2, 3)
                for q in (1, 2, 3)
                if p * q * border.pair >= self.demand
                and not _wider_than_needed(p, q, border.pair, self.demand)
            ]
            chosen = []
            for p, q in shapes:
                lp.addCol(0.0, 0.0, 1.0, 0, [], [])
                chosen.append(column)
                for region, ends in ((border.left, p), (border.right, q)):
                    for least in range(2, ends + 1):
                        demands.setdefault((region, least), []).append(column)
                column += 1
            lp.addRow(1.0, infinity, len(chosen), chosen, [1.0] * len(chosen))
        for (region, ends), needed in demands.items():
            wide = [i for i, c in enumerate(pool) if c.region == region and c.ends >= ends]
            lp.addRow(
                0.0,
                infinity,
                len(wide) + len(needed),
                [*wide, *needed],
                [1.0] * len(wide) + [-1.0] * len(needed),
            )
        return column - len(pool)

    def realise(self, column: Candidate) -> Block:
        """The block of a column, with the layers of each node."""
        region = self.regions[column.region]
        chains = region.triple if column.ends == 3 else region.pair
        return Block(column.span, tuple(chains.layers(i, column.span) for i in column.source))


def _wider_than_needed(p: int, q: int, pair: float, demand: float) -> bool:
    return (p > 1 and (p - 1) * q * pair >= demand) or (q > 1 and p * (q - 1) * pair >= demand)


def _sums(passes: Floats, need: float, chains: int) -> tuple[Ints, ...]:
    """(span, chain, ...) of all multisets of ``chains`` chains with equal span and sum >= need."""
    found: list[list[Ints]] = [[] for _ in range(chains + 1)]
    for span in range(1, passes.shape[1]):
        here = np.flatnonzero(passes[:, span] > 0)
        flow = passes[here, span]
        if chains == 2:
            i, j = np.nonzero((flow[:, None] + flow[None, :] >= need) & _upper(len(here)))
            picked: tuple[Ints, ...] = (here[i], here[j])
        else:
            two = flow[:, None] + flow[None, :]
            # Blocks that do without their third chain are found among the pairs.
            open_pairs = (two < need) & _upper(len(here))
            i, j = np.nonzero(open_pairs)
            a, k = np.nonzero(two[i, j][:, None] + flow[None, :] >= need)
            keep = k >= j[a]
            a, k = a[keep], k[keep]
            picked = (here[i[a]], here[j[a]], here[k])
        found[0].append(np.full(len(picked[0]), span))
        for position, chain in enumerate(picked, start=1):
            found[position].append(chain)
    return tuple(np.concatenate(part) if part else np.zeros(0, dtype=np.int64) for part in found)


def _upper(n: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((n, n), dtype=bool))


def _best_by_span(values: Floats, spans: Ints, above: float) -> list[int]:
    """Index of the best positive value of each span."""
    good = np.flatnonzero(values > above)
    if len(good) == 0:
        return []
    order = good[np.lexsort((good, -values[good], spans[good]))]
    _, first = np.unique(spans[order], return_index=True)
    return [int(i) for i in order[first]]
