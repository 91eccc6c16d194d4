"""Upper bounds on the max flow of any placement, and proofs that a value cannot be beaten.

Notation: L layers, node i with k layers passes T_i(k) tokens/s, demand F. Every bound ignores
something real (alignment of intervals, links), so none can be beaten, with or without partial
inference; the sentence says how it was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.plan.covering import CoverProgram
from penstock.plan.fleet import Fleet

Floats = NDArray[np.float64]

ABOVE = 1.0 + 1e-9
"""A proof shows that this factor above a value is out of reach."""
_MOST_LEVELS = 40


@dataclass(frozen=True)
class Bound:
    """No placement carries more than ``value`` tokens/s; ``method`` in two words, then why."""

    value: float
    method: str
    sentence: str


def helix_bound(fleet: Fleet) -> Bound:
    """Sum over nodes of the largest k T(k), over L (Helix, section 4.4)."""
    layers = np.arange(fleet.work.shape[1])
    value = float((fleet.work * layers).max(axis=1).sum() / fleet.num_layers)
    return Bound(
        value,
        "layer work",
        f"all nodes together do at most {value:.2f} x {fleet.num_layers} layer-tokens a second",
    )


def work_bound(fleet: Fleet) -> Bound:
    """Largest F with sum_i max_k k min(T_i(k), F) >= L F: no node carries more than the total."""
    layers = np.arange(fleet.work.shape[1])
    holdable = int(((fleet.work > 0) * layers).max(axis=1).sum())
    if holdable < fleet.num_layers:
        sentence = f"all nodes together hold {holdable} of {fleet.num_layers} layers"
        return Bound(0.0, "layers", sentence)

    def enough(demand: float) -> bool:
        work = (np.minimum(fleet.work, demand) * layers).max(axis=1).sum()
        return bool(work >= fleet.num_layers * demand * (1 - 1e-15))

    low, high = 0.0, helix_bound(fleet).value
    if not enough(high):
        for _ in range(200):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            low, high = (middle, high) if enough(middle) else (low, middle)
    return Bound(
        high,
        "capped work",
        f"at more than {high:.2f} tokens/s the nodes cannot do the work of "
        f"{fleet.num_layers} layers, since none can carry more than the total",
    )


def configuration_bound(fleet: Fleet, value: float, *, precision: float = 2e-4) -> Bound:
    """Least F found at which too few layers can be covered (``CoverProgram``), at least ``value``.

    First tries just above ``value`` (a proof of optimality), then bisects up to ``precision``.
    """
    high = work_bound(fleet)
    if value * ABOVE >= high.value:
        return Bound(max(value, high.value), high.method, high.sentence)
    if value > 0 and (program := CoverProgram(fleet, value * ABOVE)).layers() < fleet.num_layers:
        return _configuration(value, program, fleet)
    low, top = value, high.value
    best = high
    while top - low > precision * top:
        middle = 0.5 * (low + top)
        program = CoverProgram(fleet, middle)
        if program.layers() < fleet.num_layers:
            top = middle
            best = _configuration(middle, program, fleet)
        else:
            low = middle
    return best


def _configuration(value: float, program: CoverProgram, fleet: Fleet) -> Bound:
    return Bound(
        value,
        "configuration",
        f"above {value:.2f} tokens/s the nodes can cover at most {program.layers():.2f} of "
        f"{fleet.num_layers} layers, whichever nodes share a layer",
    )


def serial_chain_bound(fleet: Fleet, value: float) -> Bound | None:
    """Prove that nothing beats ``value`` because only one serial chain could, and links forbid it.

    Let F be just above ``value``. Seek prices w_i(k) >= 0 per layer held such that

    1. all nodes together can spend at most L: sum_i max_k k w_i(k) <= L;
    2. every set of nodes that carries F through a layer costs at least 1, and every set other
       than a single node at least 1 + d, with d > 0; every price is at least d.

    Each layer's holders cost at least 1, in sum at least L, so no layer can be held by anything
    but exactly one node with T(k) >= F: the placement is one serial chain and each of its legs
    carries F. The chain therefore stays inside nodes joined by links of at least F. If no such
    group can hold L layers with T(k) >= F, F is out of reach. Returns None when any step fails.
    """
    demand = value * ABOVE
    k = np.arange(fleet.work.shape[1])
    alone = np.where(fleet.work >= demand, k, 0).max(axis=1)
    component = fleet.components(demand)
    held = np.bincount(component, weights=alone)
    if len(held) == 1 or held.max() >= fleet.num_layers:
        return None
    if CoverProgram(fleet, demand).separation() <= 1e-6:
        return None
    return Bound(
        value,
        "serial chain",
        f"above {value:.2f} tokens/s every layer needs a node of its own, so the placement is "
        f"one chain; no group of nodes with links that fast holds more than {int(held.max())} "
        f"of {fleet.num_layers} layers",
    )


def best_bound(fleet: Fleet, value: float) -> Bound:
    """The tightest bound known for a placement of ``value`` tokens/s; ``value`` = proved optimal.

    Tries the cheap ones first: capped work, serial chain, configuration. The serial chain argument
    holds just above some T_i(k), if at all, so each of those between ``value`` and the bound so
    far is tried.
    """
    best = work_bound(fleet)
    if best.value <= value * (1 + 1e-9):
        return Bound(value, best.method, best.sentence)
    levels = np.unique(fleet.work[(fleet.work > value) & (fleet.work < best.value)])
    tried = [value, *levels[:_MOST_LEVELS].tolist()] if value > 0 else []
    if not fleet.free_links:
        for level in tried:
            chain = serial_chain_bound(fleet, level)
            if chain is not None:
                best = chain
                break
    if best.value > value * (1 + 1e-9):
        configuration = configuration_bound(fleet, value)
        if configuration.value < best.value:
            best = configuration
    return best


def proves(bound: Bound, value: float) -> bool:
    """Whether ``bound`` shows that ``value`` is optimal (to 1 part in 10^8)."""
    return bound.value <= value * (1 + 1e-8)
