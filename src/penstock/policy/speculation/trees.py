"""Candidate trees of draft tokens for a batch of requests, and the beam that grows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

NUDGE = -1e-10
"""Largest log probability of a child: it must lie strictly below its parent."""


@dataclass(frozen=True)
class CandidateTrees:
    """Draft trees of n requests, each of ``depth`` layers of ``width`` nodes.

    All arrays are ``[n, depth * width]``, layer by layer. ``parent`` is the column of the parent
    or -1 for the root (the last generated token, which is not a node). ``log_path`` is the log of
    the product of draft probabilities from the root; -inf = there is no such node. ``token`` is
    the draft's token.
    """

    depth: int
    width: int
    parent: Ints
    log_path: Floats
    token: Ints

    def __post_init__(self) -> None:
        shape = self.parent.shape
        if len(shape) != 2 or shape[1] != self.depth * self.width:
            raise InputError(
                f"candidate trees of {self.depth} layers of {self.width} need arrays of "
                f"{self.depth * self.width} columns (got {shape})"
            )
        if self.log_path.shape != shape or self.token.shape != shape:
            raise InputError("parent, log_path and token of candidate trees differ in shape")

    @property
    def requests(self) -> int:
        return int(self.parent.shape[0])

    @property
    def path_probability(self) -> Floats:
        """Estimate of f(v) = P(the target accepts the path root..v); 0 = no such node."""
        return np.exp(self.log_path)

    def layer_of(self, node: int) -> int:
        """Depth of a column, 1 = a child of the root."""
        return node // self.width + 1


class BeamBuilder:
    """Grows candidate trees: per request and layer the best ``width`` children over all parents.

    ``log_prob`` of ``add_layer`` is ``[n, parents, k]``: the draft's log probabilities of the k
    best children (engines take k = 8) of each node of the layer above, one parent (the root)
    for the first layer. AdaServe section 4: beam search, path probability as score.
    """

    def __init__(self, requests: int, width: int) -> None:
        if width < 1:
            raise InputError(f"a beam needs a width of at least 1 (got {width})")
        self._n = requests
        self._width = width
        self._path = np.zeros((requests, 1))
        self._parents: list[Ints] = []
        self._paths: list[Floats] = []
        self._tokens: list[Ints] = []

    @property
    def depth(self) -> int:
        return len(self._parents)

    def add_layer(self, log_prob: Floats, token: Ints) -> tuple[Ints, Ints]:
        """Merge one draft pass; return (parent slot, child rank), both ``[n, width]``.

        ``token`` has the shape of ``log_prob``. Equal scores keep the order of parents and
        children. Where fewer than ``width`` children exist the rest of the layer is empty.
        """
        n, parents, k = log_prob.shape
        score = np.minimum(log_prob, NUDGE) + self._path[:, :, None]
        flat = score.reshape(n, parents * k)
        order = np.argsort(-flat, axis=1, kind="stable")[:, : self._width]
        path = np.take_along_axis(flat, order, axis=1)
        tokens = np.take_along_axis(token.reshape(n, parents * k), order, axis=1)
        missing = self._width - order.shape[1]
        if missing:
            path = np.pad(path, ((0, 0), (0, missing)), constant_values=-np.inf)
            order = np.pad(order, ((0, 0), (0, missing)))
            tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1)
        slot, rank = order // k, order % k
        above = (self.depth - 1) * self._width
        self._parents.append(slot + above if self.depth else np.full_like(slot, -1))
        self._paths.append(path)
        self._tokens.append(tokens)
        self._path = path
        return slot, rank

    def trees(self) -> CandidateTrees:
        if not self._parents:
            return no_trees(self._n)
        return CandidateTrees(
            self.depth,
            self._width,
            np.concatenate(self._parents, axis=1),
            np.concatenate(self._paths, axis=1),
            np.concatenate(self._tokens, axis=1),
        )


def chain_trees(log_prob: Floats, token: Ints) -> CandidateTrees:
    """Trees of width 1 from draft log probabilities ``[n, depth]`` of one chain a request."""
    n, depth = log_prob.shape
    path = np.cumsum(np.minimum(log_prob, NUDGE), axis=1)
    parent = np.broadcast_to(np.arange(-1, depth - 1), (n, depth))
    return CandidateTrees(depth, 1, np.ascontiguousarray(parent), path, token)


def no_trees(requests: int) -> CandidateTrees:
    """Trees without nodes: plain decoding."""
    empty = np.zeros((requests, 0))
    return CandidateTrees(0, 1, empty.astype(np.int64), empty, empty.astype(np.int64))
