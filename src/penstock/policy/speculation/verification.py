"""Which draft tokens the target accepts: a walk down each selected tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.policy.speculation.trees import CandidateTrees, Ints, Mask


@dataclass(frozen=True)
class Verdict:
    """``accepted`` ``[n]`` counts draft tokens; ``path`` ``[n, depth]`` holds their columns, -1
    past the end; ``next_token`` ``[n]`` is the target's own token (correction or bonus), which
    is generated too and is the next root."""

    accepted: Ints
    path: Ints
    next_token: Ints


def verify(trees: CandidateTrees, selected: Mask, choices: Ints) -> Verdict:
    """Walk from each root while the target's choice is a selected child.

    ``choices`` ``[n, 1 + nodes]`` are the target's tokens at the root and at every node: its
    argmax at temperature 0, or one sample of its distribution, which keeps the output
    distribution because beam children are no samples of the draft (AdaServe section 7).
    """
    n, width = trees.requests, trees.width
    at = np.full(n, -1, np.int64)
    alive = np.ones(n, bool)
    accepted = np.zeros(n, np.int64)
    path = np.full((n, trees.depth), -1, np.int64)
    rows = np.arange(n)
    wanted = choices[:, 0]
    for layer in range(trees.depth):
        columns = slice(layer * width, (layer + 1) * width)
        hit = selected[:, columns] & (trees.parent[:, columns] == at[:, None])
        hit &= trees.token[:, columns] == wanted[:, None]
        alive &= hit.any(axis=1)
        if not alive.any():
            break
        at = np.where(alive, layer * width + hit.argmax(axis=1), at)
        path[:, layer] = np.where(alive, at, -1)
        accepted += alive
        wanted = choices[rows, at + 1]
    return Verdict(accepted, path, wanted)
