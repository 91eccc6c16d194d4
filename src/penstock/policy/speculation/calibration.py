"""What the draft's probabilities are really worth, learned from verdicts."""

from __future__ import annotations

import numpy as np

from penstock.policy.speculation.selection import Selection
from penstock.policy.speculation.trees import CandidateTrees, Floats, Ints, Mask


class AcceptanceCalibration:
    """Chance of acceptance by class and by the draft's conditional probability.

    A node counts when it was selected and its parent was accepted: then the target judged it.
    Bins of equal width hold accepted and expected counts, with ``prior`` judgements that agree
    with the draft, so that a calibrated draft is left as it is and nothing rests on few counts.
    Old counts fade by ``memory`` a step. ``by_rank`` keeps the best child of each node apart from
    the others: a greedy target takes a best child far more often than its probability says.
    """

    def __init__(
        self,
        bins: int = 10,
        prior: float = 200.0,
        memory: float = 0.9995,
        *,
        by_rank: bool = False,
    ) -> None:
        self._bins = bins
        self._ranks = 2 if by_rank else 1
        self._prior = prior
        self._memory = memory
        self._expected = np.zeros((0, self._ranks * bins))
        self._accepted = np.zeros((0, self._ranks * bins))

    def factor(self, kinds: int) -> Floats:
        """Accepted over expected ``[kinds, bins]``; by rank, best children first, twice as many."""
        self._grow(kinds)
        middle = np.tile((np.arange(self._bins) + 0.5) / self._bins, self._ranks)
        prior = self._prior * middle
        ratio: Floats = (self._accepted + prior) / (self._expected + prior)
        return ratio

    def apply(self, trees: CandidateTrees, kind: Ints) -> CandidateTrees:
        """Return ``trees`` with path probabilities as experience has them."""
        if not trees.parent.size:
            return trees
        conditional = _conditional(trees)
        factor = self.factor(int(kind.max()) + 1)[kind[:, None], self._bin(trees, conditional)]
        with np.errstate(divide="ignore"):
            step = np.log(np.minimum(conditional * factor, 1.0 - 1e-9))
        width = trees.width
        path = np.empty_like(trees.log_path)
        for layer in range(trees.depth):
            columns = slice(layer * width, (layer + 1) * width)
            path[:, columns] = step[:, columns]
            if layer:
                path[:, columns] += np.take_along_axis(path, trees.parent[:, columns], axis=1)
        return CandidateTrees(trees.depth, width, trees.parent, path, trees.token)

    def observe(self, trees: CandidateTrees, selection: Selection, path: Ints, kind: Ints) -> None:
        """Count one verdict; ``trees`` hold the draft's own probabilities."""
        if not trees.parent.size:
            return
        n, nodes = trees.parent.shape
        on_path = np.zeros((n, nodes + 1), bool)
        on_path[:, 0] = True
        row, layer = np.nonzero(path >= 0)
        on_path[row, path[row, layer] + 1] = True
        judged = selection.selected & np.take_along_axis(on_path, trees.parent + 1, axis=1)
        rows, columns = np.nonzero(judged)
        every = _conditional(trees)
        bins = self._bin(trees, every)[rows, columns]
        conditional = every[rows, columns]
        kinds = kind[rows]
        self._grow(int(kind.max()) + 1)
        self._expected *= self._memory
        self._accepted *= self._memory
        np.add.at(self._expected, (kinds, bins), conditional)
        np.add.at(self._accepted, (kinds, bins), on_path[rows, columns + 1])

    def _bin(self, trees: CandidateTrees, conditional: Floats) -> Ints:
        """Columns of the counts ``[n, nodes]``."""
        found: Ints = np.minimum((conditional * self._bins).astype(np.int64), self._bins - 1)
        if self._ranks > 1 and trees.width > 1:
            found += self._bins * ~_best_children(trees)
        return found

    def _grow(self, kinds: int) -> None:
        missing = kinds - len(self._expected)
        if missing > 0:
            more = np.zeros((missing, self._ranks * self._bins))
            self._expected = np.concatenate([self._expected, more])
            self._accepted = np.concatenate([self._accepted, more])


def _conditional(trees: CandidateTrees) -> Floats:
    """The draft's probability of each node given its parent; 0 = no such node."""
    above = np.concatenate([np.zeros((trees.requests, 1)), trees.log_path], axis=1)
    before = np.take_along_axis(above, trees.parent + 1, axis=1)
    exists = trees.log_path > -np.inf
    step = np.where(exists, trees.log_path, 0.0) - np.where(exists, before, 0.0)
    return np.where(exists, np.minimum(1.0, np.exp(step)), 0.0)


def _best_children(trees: CandidateTrees) -> Mask:
    """Whether a node is the first child of its parent: layers are sorted, the best one first."""
    layers = trees.parent.reshape(trees.requests, trees.depth, trees.width)
    best = np.ones(layers.shape, np.bool_)
    for column in range(1, trees.width):
        best[:, :, column] = (layers[:, :, :column] != layers[:, :, column, None]).all(axis=2)
    return best.reshape(trees.parent.shape)
