"""Candidate trees: the beam, chains, and the walk of the target."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InputError
from penstock.policy.speculation.trees import BeamBuilder, CandidateTrees, chain_trees, no_trees
from penstock.policy.speculation.verification import verify


def grow(seed: int, requests: int, depth: int, width: int, children: int) -> CandidateTrees:
    """Trees of a random draft whose tokens are ranks of children."""
    rng = np.random.default_rng(seed)
    builder = BeamBuilder(requests, width)
    for layer in range(depth):
        parents = 1 if layer == 0 else width
        shape = (requests, parents, children)
        log_prob = np.log(np.sort(rng.dirichlet(np.ones(children + 1), shape[:2])[..., :-1]))
        token = np.broadcast_to(np.arange(children), shape)
        builder.add_layer(log_prob[..., ::-1], token)
    return builder.trees()


def test_a_beam_keeps_the_best_children_over_all_parents_together() -> None:
    """Hand figures: both children kept in layer two hang on the better parent."""
    builder = BeamBuilder(1, 2)
    builder.add_layer(np.log([[[0.6, 0.3]]]), np.array([[[7, 8]]]))
    slot, rank = builder.add_layer(np.log([[[0.5, 0.4], [0.7, 0.1]]]), np.array([[[1, 2], [3, 4]]]))
    trees = builder.trees()
    assert slot.tolist() == [[0, 0]]
    assert rank.tolist() == [[0, 1]]
    assert trees.parent.tolist() == [[-1, -1, 0, 0]]
    assert trees.token.tolist() == [[7, 8, 1, 2]]
    assert trees.path_probability[0] == pytest.approx([0.6, 0.3, 0.3, 0.24])
    assert [trees.layer_of(v) for v in range(4)] == [1, 1, 2, 2]


@given(st.integers(0, 50), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_a_wide_beam_holds_the_most_probable_paths(
    seed: int, depth: int, width: int, children: int
) -> None:
    """The best node of each layer is the best beam path, and no child exceeds its parent."""
    trees = grow(seed, 2, depth, width, children)
    value = trees.path_probability
    for i, v in product(range(2), range(depth * width)):
        parent = int(trees.parent[i, v])
        if value[i, v] > 0:
            above = 1.0 if parent < 0 else value[i, parent]
            assert value[i, v] < above
            assert parent < 0 or trees.layer_of(parent) == trees.layer_of(v) - 1
    layers = value.reshape(2, depth, width)
    assert np.all(np.diff(layers, axis=2) <= 0)


def test_layers_with_too_few_children_are_filled_up_with_nothing() -> None:
    """A beam wider than the draft's children has absent nodes."""
    builder = BeamBuilder(1, 3)
    builder.add_layer(np.log([[[0.5]]]), np.array([[[4]]]))
    assert builder.trees().path_probability.tolist() == [[0.5, 0.0, 0.0]]


def test_certain_children_still_lie_below_their_parents() -> None:
    """log p = 0 is nudged, so that greedy order is tree order."""
    trees = chain_trees(np.zeros((1, 3)), np.zeros((1, 3), np.int64))
    assert np.all(np.diff(trees.log_path) < 0)


def test_trees_of_no_layer_are_plain_decoding() -> None:
    """The walk accepts nothing and emits the target's token."""
    verdict = verify(no_trees(2), np.zeros((2, 0), bool), np.array([[5], [6]]))
    assert verdict.accepted.tolist() == [0, 0]
    assert verdict.next_token.tolist() == [5, 6]


def test_arrays_that_are_no_trees_are_refused() -> None:
    """Shapes must agree with depth and width."""
    zeros = np.zeros((1, 2))
    with pytest.raises(InputError, match="3 columns"):
        CandidateTrees(3, 1, zeros.astype(np.int64), zeros, zeros.astype(np.int64))
    with pytest.raises(InputError, match="at least 1"):
        BeamBuilder(1, 0)


def walk(trees: CandidateTrees, selected: np.ndarray, choices: np.ndarray, row: int) -> list[int]:
    """The greedy verification of one request, node by node."""
    at, path = -1, []
    while True:
        wanted = choices[row, at + 1]
        following = [
            v
            for v in range(trees.parent.shape[1])
            if selected[row, v] and trees.parent[row, v] == at and trees.token[row, v] == wanted
        ]
        if not following:
            return path
        at = following[0]
        path.append(at)


@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 3))
def test_the_vectorised_walk_equals_the_walk_node_by_node(
    seed: int, depth: int, width: int
) -> None:
    """Accepted nodes, their number and the correction token agree."""
    n = 3
    trees = grow(seed, n, depth, width, 3)
    rng = np.random.default_rng(seed)
    selected = rng.random(trees.parent.shape) < 0.8
    choices = rng.integers(0, 3, (n, 1 + depth * width))
    verdict = verify(trees, selected, choices)
    for row in range(n):
        path = walk(trees, selected, choices, row)
        assert verdict.accepted[row] == len(path)
        assert verdict.path[row, : len(path)].tolist() == path
        assert np.all(verdict.path[row, len(path) :] == -1)
        assert verdict.next_token[row] == choices[row, path[-1] + 1 if path else 0]
