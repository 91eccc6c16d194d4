"""Candidate trees and the target's verdicts, from an acceptance model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.policy.speculation.speculator import DraftPlan
from penstock.policy.speculation.trees import (
    BeamBuilder,
    CandidateTrees,
    Ints,
    chain_trees,
    no_trees,
)
from penstock.sim.speculation.acceptance import (
    CHILDREN,
    AcceptanceModel,
    Floats,
    draw_choices,
)

SMALLEST = 1e-30


@dataclass(frozen=True)
class Draft:
    """``target`` ``[n, 1 + nodes, 3]``: the target's probabilities of the children of each node."""

    trees: CandidateTrees
    target: Floats

    def choices(self, rng: np.random.Generator) -> Ints:
        return draw_choices(self.target, rng)


def draft(
    model: AcceptanceModel, means: Floats, plan: DraftPlan, rng: np.random.Generator
) -> Draft:
    """Draft for requests with ``means`` ``[n]``; tokens are ranks of children.

    The children of the last layer are never drafted, so no choice there can be a candidate.
    """
    n = len(means)
    if plan.depth == 0:
        return Draft(no_trees(n), np.zeros((n, 1, CHILDREN)))
    if plan.width == 1:
        return _chain(model, means, plan.depth, rng)
    return _beam(model, means, plan, rng)


def _chain(model: AcceptanceModel, means: Floats, depth: int, rng: np.random.Generator) -> Draft:
    layers = [model.draw(means, 1, layer, rng) for layer in range(depth)]
    log_prob = np.log(np.maximum([layer.draft[:, 0, 0] for layer in layers], SMALLEST)).T
    target = np.concatenate(
        [*(layer.target for layer in layers), np.zeros((len(means), 1, CHILDREN))], axis=1
    )
    return Draft(chain_trees(log_prob, np.zeros((len(means), depth), np.int64)), target)


def _beam(
    model: AcceptanceModel, means: Floats, plan: DraftPlan, rng: np.random.Generator
) -> Draft:
    n, width = len(means), plan.width
    builder = BeamBuilder(n, width)
    ranks = np.broadcast_to(np.arange(CHILDREN), (n, width, CHILDREN))
    targets = []
    for layer in range(plan.depth):
        nodes = 1 if layer == 0 else width
        drawn = model.draw(means, nodes, layer, rng)
        builder.add_layer(np.log(np.maximum(drawn.draft, SMALLEST)), ranks[:, :nodes])
        targets.append(drawn.target)
    targets.append(np.zeros((n, width, CHILDREN)))
    return Draft(builder.trees(), np.concatenate(targets, axis=1))
