"""Which candidates are verified: first what the SLOs need, then what yields most tokens.

AdaServe, Algorithms 1 and 2, with the increment of the text (path probability), gain 1 for the
root, and the slowest request first. A request's candidates are taken in falling order of path
probability; as a child never exceeds its parent, every prefix of that order is a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

import numpy as np

from penstock.policy.speculation.trees import CandidateTrees, Floats, Ints, Mask


@dataclass(frozen=True, slots=True)
class SelectionRules:
    """The constants of the selection; defaults as published or restated (spec section 4).

    request_share       most nodes of one request in the first phase, as a multiple of
                        verify budget / requests; None = no limit
    slo_cutoff          the first phase leaves a request at a path probability below this
    throughput_cutoff   the second phase ends below this where the tokens left fill whole tiles
    tile_tokens         tokens of a kernel tile
    margin              safety factor of A(r); on the step's time alone if margin_on_step_only
    skip_absolute       requests with absolute limits get nodes in the second phase only
    ascending           the request with the smallest A first (an older release)
    slo_phase           False leaves the first phase out
    """

    request_share: float | None = 1.2
    slo_cutoff: float = 0.04
    throughput_cutoff: float = 0.02
    tile_tokens: int = 32
    margin: float = 1.05
    margin_on_step_only: bool = False
    skip_absolute: bool = False
    ascending: bool = False
    slo_phase: bool = True


@dataclass(frozen=True)
class Selection:
    """``selected`` ``[n, nodes]``; ``slo_nodes`` ``[n]`` of them were taken by the first phase.

    ``gain`` ``[n]`` is the expected number of generated tokens, 1 for the root included.
    """

    selected: Mask
    slo_nodes: Ints
    gain: Floats

    @property
    def nodes(self) -> int:
        return int(np.count_nonzero(self.selected))


def select(
    trees: CandidateTrees,
    required: Floats,
    budget: int,
    rules: SelectionRules,
    *,
    eligible: Mask | None = None,
) -> Selection:
    """Spend ``budget`` nodes (roots not counted) on the candidates of all requests.

    ``required`` ``[n]`` is A(r), met up to depth + 1; requests that are not ``eligible`` are left
    out of the first phase (best effort have A = -inf anyhow).
    """
    n = trees.requests
    if n == 0 or budget <= 0 or trees.depth == 0:
        return _nothing(trees)
    order, value = _sorted(trees)
    taken = np.zeros(n, np.int64)
    if rules.slo_phase:
        target = np.clip(required, 1.0, trees.depth + 1)
        need = _needed(value, target)
        need = np.minimum(need, np.count_nonzero((value >= rules.slo_cutoff) & (value > 0), axis=1))
        if rules.request_share is not None:
            need = np.minimum(need, max(1, floor(rules.request_share * (budget + n) / n)))
        if eligible is not None:
            need = np.where(eligible, need, 0)
        taken = _ration(need, required, budget, ascending=rules.ascending)
    more = _best_overall(value, taken, budget - int(taken.sum()), rules)
    return _selection(trees, order, value, taken, more)


def select_optimal(trees: CandidateTrees, required: Floats, budget: int) -> Selection | None:
    """The optimum where path probabilities are exact: most tokens with every A(r) met.

    None where no choice of ``budget`` nodes meets them all (Algorithm 1's INVALID).
    """
    order, value = _sorted(trees)
    need = _needed(value, required)
    if np.any(need > value.shape[1]) or int(need.sum()) > budget:
        return None
    rules = SelectionRules(throughput_cutoff=-inf)
    more = _best_overall(value, need, budget - int(need.sum()), rules)
    return _selection(trees, order, value, need, more)


def select_all(trees: CandidateTrees) -> Selection:
    """Every candidate: chain speculation of fixed length."""
    value = trees.path_probability
    return Selection(
        trees.log_path > -inf, np.zeros(trees.requests, np.int64), 1.0 + value.sum(axis=1)
    )


def _nothing(trees: CandidateTrees) -> Selection:
    n = trees.requests
    return Selection(np.zeros_like(trees.parent, dtype=bool), np.zeros(n, np.int64), np.ones(n))


def _sorted(trees: CandidateTrees) -> tuple[Ints, Floats]:
    """Columns by falling path probability, parents before children, and the probabilities."""
    value = trees.path_probability
    order = np.argsort(-value, axis=1, kind="stable")
    return order, np.take_along_axis(value, order, axis=1)


def _needed(value: Floats, target: Floats) -> Ints:
    """How many of the best candidates bring the gain to ``target``; nodes + 1 = all fall short."""
    gain = np.cumsum(value, axis=1) + 1.0
    # Sums of probabilities may miss a target they equal by one rounding.
    short = np.concatenate([np.ones((len(value), 1)), gain], axis=1) < target[:, None] - 1e-12
    count: Ints = np.count_nonzero(short, axis=1)
    return count


def _ration(need: Ints, required: Floats, budget: int, *, ascending: bool) -> Ints:
    """Serve the needs in order of A(r) until the budget is spent."""
    order = np.argsort(required if ascending else -required, kind="stable")
    spent = np.minimum(np.cumsum(need[order]), budget)
    taken = np.empty_like(need)
    taken[order] = np.diff(spent, prepend=0)
    return taken


def _best_overall(value: Floats, taken: Ints, budget: int, rules: SelectionRules) -> Ints:
    """Spend what is left on the largest path probabilities; how many nodes each request gets."""
    n, nodes = value.shape
    more = np.zeros(n, np.int64)
    if budget <= 0:
        return more
    free = (np.arange(nodes)[None, :] >= taken[:, None]) & (value > 0)
    row = np.nonzero(free)[0]
    left = value[free]
    best = np.argsort(-left, kind="stable")[:budget]
    tail = np.nonzero(left[best] < rules.throughput_cutoff)[0]
    stop = tail[(budget - tail) % rules.tile_tokens == 0] if len(tail) else tail
    if len(stop):
        best = best[: stop[0]]
    more += np.bincount(row[best], minlength=n)
    return more


def _selection(
    trees: CandidateTrees, order: Ints, value: Floats, taken: Ints, more: Ints
) -> Selection:
    kept = np.arange(value.shape[1])[None, :] < (taken + more)[:, None]
    kept &= value > 0
    selected = np.zeros_like(kept)
    np.put_along_axis(selected, order, kept, axis=1)
    return Selection(selected, taken, 1.0 + np.where(kept, value, 0.0).sum(axis=1))
