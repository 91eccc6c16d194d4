"""Max flow and cheapest flow, against networkx and the published values."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import plan_published as published
import pytest
from hypothesis import given, settings
from plan_fleets import problem_of
from plan_random import placed

from penstock.errors import SpecError
from penstock.plan import flow as flow_module
from penstock.plan.flow import Flow, cheapest_flow, compatible_legs, max_flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.problem import placement_problem
from penstock.spec.helix_ini import read_simulator_cluster

Case = tuple[PlacementProblem, Placement]
SCALE = 1000


def _graph(problem: PlacementProblem, placement: Placement, price: np.ndarray) -> nx.DiGraph:
    """The network of the specification, built from its words; integers for networkx."""
    graph = nx.DiGraph()
    graph.add_nodes_from(("s", "t"))
    n, layers = problem.num_nodes, problem.num_layers
    pairs: list[tuple[object, object, int, int]] = []
    for i, interval in enumerate(placement.intervals):
        if interval is None:
            continue
        held = interval[1] - interval[0]
        capacity = problem.throughput[problem.node_type[i], held]
        graph.add_edge(("in", i), ("out", i), capacity=int(capacity * SCALE), weight=0)
        if interval[0] == 0:
            pairs.append(("s", ("in", i), n, i))
        if interval[1] == layers:
            pairs.append((("out", i), "t", i, n))
        for j, other in enumerate(placement.intervals):
            if other is None or i == j:
                continue
            inside = problem.partial_inference and other[0] < interval[1] < other[1]
            if other[0] == interval[1] or inside:
                pairs.append((("out", i), ("in", j), i, j))
    for tail, head, i, j in pairs:
        capacity = int(problem.link_tokens_per_s[i, j] * SCALE)
        if capacity > 0:
            graph.add_edge(tail, head, capacity=capacity, weight=int(price[i, j]))
    return graph


def _holds(problem: PlacementProblem, flow: Flow) -> None:
    n = problem.num_nodes
    assert (flow.leg_flow >= 0).all()
    assert (flow.leg_flow <= flow.leg_capacity * (1 + 1e-9)).all()
    assert (flow.node_flow <= flow.node_capacity * (1 + 1e-9) + 1e-9).all()
    into = np.bincount(flow.legs[:, 1], weights=flow.leg_flow, minlength=n + 1)
    out = np.bincount(flow.legs[:, 0], weights=flow.leg_flow, minlength=n + 1)
    assert into == pytest.approx(out, abs=1e-6)
    assert into[:n] == pytest.approx(flow.node_flow, abs=1e-6)
    assert out[n] == pytest.approx(flow.value, abs=1e-6)


@settings(max_examples=120, deadline=None)
@given(placed())
def test_max_flow_equals_networkx(case: Case) -> None:
    """The value is networkx's and the flow behind it is a flow."""
    problem, placement = case
    flow = max_flow(problem, placement)
    _holds(problem, flow)
    graph = _graph(problem, placement, np.zeros_like(problem.link_tokens_per_s))
    assert flow.value * SCALE == pytest.approx(nx.maximum_flow_value(graph, "s", "t"), abs=1e-3)


@settings(max_examples=80, deadline=None)
@given(placed())
def test_cheapest_flow_costs_what_networkx_pays(case: Case) -> None:
    """Among the largest flows, ours is as cheap as the best."""
    problem, placement = case
    n = problem.num_nodes
    price = np.random.default_rng(n).integers(0, 9, size=(n + 1, n + 1)).astype(float)
    flow = cheapest_flow(problem, placement, 1e9, price)
    _holds(problem, flow)
    graph = _graph(problem, placement, price)
    best = nx.max_flow_min_cost(graph, "s", "t")
    ours = float((flow.leg_flow * price[flow.legs[:, 0], flow.legs[:, 1]]).sum())
    assert ours * SCALE == pytest.approx(nx.cost_of_flow(graph, best), abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(placed())
def test_cheapest_flow_meets_any_smaller_demand(case: Case) -> None:
    """A demand below the max flow is carried exactly."""
    problem, placement = case
    most = max_flow(problem, placement).value
    price = np.ones_like(problem.link_tokens_per_s)
    flow = cheapest_flow(problem, placement, 0.5 * most, price)
    _holds(problem, flow)
    assert flow.value == pytest.approx(0.5 * most)


@settings(max_examples=60, deadline=None)
@given(case=placed(nodes=6))
def test_junctions_change_nothing(case: Case) -> None:
    """Sharing a vertex where links cannot bind gives the same values as listing every leg."""
    problem, placement = case
    price = np.round(3 * np.ones_like(problem.link_tokens_per_s))
    legs = compatible_legs(problem, placement)
    explicit = max_flow(problem, placement, legs=legs)
    priced = cheapest_flow(problem, placement, explicit.value, price, legs=legs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_module, "_JUNCTION_SAVES", 0)
        shared = max_flow(problem, placement)
        shared_price = cheapest_flow(problem, placement, explicit.value, price)
    _holds(problem, shared)
    _holds(problem, shared_price)
    assert shared.value == pytest.approx(explicit.value)
    assert shared_price.leg_flow.sum() == pytest.approx(priced.leg_flow.sum(), abs=1e-6)


def test_legs_come_in_a_fixed_order() -> None:
    """The coordinator first as a source, then sources and destinations ascending."""
    problem = problem_of([("A100", 4)], "llama2-7b")
    placement = Placement(((0, 16), (0, 16), (16, 32), (16, 32)))
    legs = [tuple(leg) for leg in compatible_legs(problem, placement).tolist()]
    assert legs == [(4, 0), (4, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 4), (3, 4)]


def test_a_leg_against_the_layer_order_is_refused() -> None:
    """Explicit legs whose layers do not follow each other are the caller's mistake."""
    problem = problem_of([("A100", 4)], "llama2-7b")
    placement = Placement(((0, 16), None, (16, 32), None))
    with pytest.raises(SpecError, match="layers do not follow"):
        max_flow(problem, placement, legs=[(2, 0)])


def test_more_layers_than_the_table_is_refused() -> None:
    """A placement beyond the tables gets one clear line."""
    problem = problem_of([("T4", 12)], "llama2-70b")
    with pytest.raises(SpecError, match="more layers than its table"):
        max_flow(problem, Placement(((0, 80), *(None,) * 11)))


@pytest.mark.reference
def test_every_stored_placement_has_its_published_max_flow(reference: Path) -> None:
    """All placements of the artifact, to 0.01 tokens/s."""
    rows = list(published.stored(reference))
    assert len(rows) >= 53
    for row in rows:
        cluster = read_simulator_cluster(row.simulator_cluster).cluster
        problem = placement_problem(
            cluster,
            published.cost(reference, row.model),
            composition=published.cluster(reference, row.composition),
            over_full=row.over_full,
        )
        held = published.read_solution(row.solution)
        placement = Placement(tuple(held.get(node.name) for node in cluster.nodes))
        legs = [(cluster.index[src], cluster.index[dst]) for src, dst in cluster.pair_links]
        flow = max_flow(problem, placement, legs=legs)
        assert flow.value == pytest.approx(row.max_flow, abs=0.01), row.label
        assert len(flow.legs) == row.links
