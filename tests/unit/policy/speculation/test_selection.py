"""The selection of draft tokens: the published example, brute force, and its laws."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.speculation.selection import (
    SelectionRules,
    select,
    select_all,
    select_optimal,
)
from penstock.policy.speculation.trees import CandidateTrees

PLAIN = SelectionRules(request_share=None, slo_cutoff=0.0, throughput_cutoff=-np.inf, margin=1.0)


def trees_of(requests: list[list[tuple[int, float]]], depth: int, width: int) -> CandidateTrees:
    """Trees from (parent column, path probability) lists, layer by layer."""
    parent = np.array([[node[0] for node in nodes] for nodes in requests], np.int64)
    value = np.array([[node[1] for node in nodes] for nodes in requests], np.float64)
    with np.errstate(divide="ignore"):
        return CandidateTrees(depth, width, parent, np.log(value), np.zeros_like(parent))


def published(document: dict[str, object]) -> tuple[CandidateTrees, list[list[str]]]:
    """The example's trees with their nodes in layers, and the names of the columns."""
    lists, names = [], []
    for request in document["requests"]:
        nodes = request["nodes"]
        depth_of = {"root": 0}
        for name, node in nodes.items():
            depth_of[name] = depth_of[node["parent"]] + 1
        order = sorted(nodes, key=lambda name: depth_of[name])
        column = {"root": -1, **{name: i for i, name in enumerate(order)}}
        lists.append([(column[nodes[n]["parent"]], nodes[n]["path"]) for n in order])
        names.append(order)
    return trees_of(lists, document["depth"], document["beam_width"]), names


@pytest.mark.reference
def test_the_published_example_is_selected_exactly(reference: Path) -> None:
    """Two requests, a budget of 8: phase one, phase two and the final trees are the paper's."""
    document = json.loads((reference / "adaserve" / "selection_example.json").read_text())
    trees, names = published(document)
    required = np.array([1.0 + r["target_excluding_root"] for r in document["requests"]])
    budget = document["budget_including_roots"] - len(required)
    selection = select(trees, required, budget, PLAIN)
    for i, request in enumerate(document["requests"]):
        chosen = {names[i][column] for column in np.nonzero(selection.selected[i])[0]}
        assert chosen == set(request["final"])
        assert selection.slo_nodes[i] == len(request["slo_phase"])
        first = sorted(chosen, key=lambda name: -request["nodes"][name]["path"])
        assert set(first[: selection.slo_nodes[i]]) == set(request["slo_phase"])
    assert selection.gain == pytest.approx([2.414, 2.25])


@st.composite
def small_trees(draw: st.DrawFn) -> CandidateTrees:
    """One to three requests with up to two layers of up to three nodes; some nodes are absent."""
    width, depth = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    n = draw(st.integers(1, 3 if width * depth <= 4 else 2))
    share = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.9, 1.0])
    requests = []
    for _ in range(n):
        nodes: list[tuple[int, float]] = []
        for layer in range(depth):
            for _slot in range(width):
                above = draw(st.integers(0, width - 1)) + (layer - 1) * width if layer else -1
                start = nodes[above][1] if layer else 1.0
                nodes.append((above, start * draw(share)))
        requests.append(nodes)
    return trees_of(requests, depth, width)


def brute_force(trees: CandidateTrees, required: np.ndarray, budget: int) -> float | None:
    """The best sum of gains over all sets of connected trees that meet every requirement."""
    value = trees.path_probability
    n, nodes = value.shape
    per_request: list[list[tuple[int, float]]] = []
    for i in range(n):
        found = []
        present = [v for v in range(nodes) if value[i, v] > 0]
        for size in range(len(present) + 1):
            for chosen in combinations(present, size):
                if all(trees.parent[i, v] in (-1, *chosen) for v in chosen):
                    gain = 1.0 + sum(value[i, v] for v in chosen)
                    if gain >= required[i] - 1e-12:
                        found.append((size, gain))
        per_request.append(found)
    best: dict[int, float] = {0: 0.0}
    for found in per_request:
        following: dict[int, float] = {}
        for used, total in best.items():
            for size, gain in found:
                if used + size <= budget:
                    following[used + size] = max(following.get(used + size, 0.0), total + gain)
        best = following
    return max(best.values()) if best else None


@given(small_trees(), st.data())
def test_the_greedy_optimum_equals_brute_force(trees: CandidateTrees, data: st.DataObject) -> None:
    """With exact probabilities greedy is optimal, and finds nothing iff there is nothing."""
    n = trees.requests
    needs = st.lists(st.sampled_from([-1.0, 1.0, 1.4, 1.9, 2.3]), min_size=n, max_size=n)
    required = np.array(data.draw(needs))
    budget = data.draw(st.integers(0, 8))
    selection = select_optimal(trees, required, budget)
    expected = brute_force(trees, required, budget)
    if expected is None:
        assert selection is None
    else:
        assert selection is not None
        assert selection.gain.sum() == pytest.approx(expected)
        assert selection.nodes <= budget


def loop_selection(
    trees: CandidateTrees, required: np.ndarray, budget: int, rules: SelectionRules
) -> np.ndarray:
    """Algorithm 2 written out as its loops."""
    value = trees.path_probability
    n, nodes = value.shape
    left = [
        sorted((v for v in range(nodes) if value[i, v] > 0), key=lambda v: (-value[i, v], v))
        for i in range(n)
    ]
    selected = np.zeros((n, nodes), bool)
    most = np.inf if rules.request_share is None else int(rules.request_share * (budget + n) / n)
    most = max(1, most)
    remaining = budget
    for i in sorted(range(n), key=lambda i: -required[i]):
        gain, added = 1.0, 0
        cap = min(max(1.0, required[i]), trees.depth + 1)
        while gain < cap - 1e-12 and added < most and remaining > 0 and left[i]:
            if value[i, left[i][0]] < rules.slo_cutoff:
                break
            v = left[i].pop(0)
            selected[i, v] = True
            gain += value[i, v]
            added += 1
            remaining -= 1
    while remaining > 0:
        heads = [(-value[i, left[i][0]], i) for i in range(n) if left[i]]
        if not heads:
            break
        best, i = min(heads)
        if -best < rules.throughput_cutoff and remaining % rules.tile_tokens == 0:
            break
        selected[i, left[i].pop(0)] = True
        remaining -= 1
    return selected


@given(small_trees(), st.data())
def test_arrays_select_what_the_published_loops_select(
    trees: CandidateTrees, data: st.DataObject
) -> None:
    """Caps, cut-offs, tiles and the order of requests act as in the loops."""
    n = trees.requests
    required = np.array(data.draw(st.lists(st.floats(-2, 4), min_size=n, max_size=n, unique=True)))
    rules = SelectionRules(
        request_share=data.draw(st.sampled_from([None, 0.5, 1.2])),
        slo_cutoff=data.draw(st.sampled_from([0.0, 0.04, 0.3])),
        throughput_cutoff=data.draw(st.sampled_from([0.0, 0.02, 0.3])),
        tile_tokens=data.draw(st.sampled_from([1, 2, 32])),
    )
    budget = data.draw(st.integers(1, 8))
    got = select(trees, required, budget, rules)
    expected = loop_selection(trees, required, budget, rules)
    value = trees.path_probability
    # Equal probabilities may be swapped between requests: compare what was gained.
    assert np.where(got.selected, value, 0).sum() == pytest.approx(
        np.where(expected, value, 0).sum()
    )
    assert got.nodes == np.count_nonzero(expected)
    for i in range(n):
        for v in np.nonzero(got.selected[i])[0]:
            parent = trees.parent[i, v]
            assert parent == -1 or got.selected[i, parent] or value[i, parent] == value[i, v]


def test_best_effort_and_absolute_limits_can_be_left_to_the_second_phase() -> None:
    """Requests that are not eligible get nodes by probability alone."""
    trees = trees_of([[(-1, 0.3), (0, 0.2)], [(-1, 0.9), (0, 0.8)]], 2, 1)
    required = np.array([3.0, -np.inf])
    assert select(trees, required, 1, PLAIN).selected.tolist() == [[True, False], [False, False]]
    eligible = np.array([False, True])
    chosen = select(trees, required, 1, PLAIN, eligible=eligible)
    assert chosen.selected.tolist() == [[False, False], [True, False]]
    assert chosen.slo_nodes.tolist() == [0, 0]


def test_the_older_release_serves_the_least_lagging_request_first() -> None:
    """Ascending order changes who gets a scarce budget."""
    trees = trees_of([[(-1, 0.5)], [(-1, 0.5)]], 1, 1)
    required = np.array([1.2, 1.4])
    slowest = select(trees, required, 1, PLAIN)
    least = select(trees, required, 1, SelectionRules(request_share=None, ascending=True))
    assert slowest.selected.tolist() == [[False], [True]]
    assert least.selected.tolist() == [[True], [False]]


def test_no_budget_selects_nothing_and_a_chain_selects_everything() -> None:
    """The root alone yields one token."""
    trees = trees_of([[(-1, 0.5), (0, 0.0)]], 2, 1)
    assert select(trees, np.array([2.0]), 0, PLAIN).gain.tolist() == [1.0]
    chain = select_all(trees)
    assert chain.selected.tolist() == [[True, False]]
    assert chain.gain == pytest.approx([1.5])
