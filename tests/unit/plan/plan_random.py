"""Random small placement problems and placements, with figures drawn freely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from plan_fleets import problem_of

from penstock.plan.placement import Interval, Placement, PlacementProblem

KINDS = (("A100", 2), ("L4", 2), ("T4", 2))


@st.composite
def problems(draw: st.DrawFn, *, nodes: int = 5, layers: int = 6) -> PlacementProblem:
    """Up to ``nodes`` nodes of two types, some links missing, any of them may bind."""
    n = draw(st.integers(1, nodes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    whole = problem_of(KINDS, "llama2-7b", partial=draw(st.booleans()))
    most = rng.integers(1, 4, size=2)
    throughput = np.zeros((2, 4))
    for t in range(2):
        throughput[t, 1:] = np.sort(rng.integers(1, 30, size=3))[::-1]
        throughput[t, most[t] + 1 :] = 0.0
    link = rng.integers(0, 12, size=(n + 1, n + 1)).astype(float)
    link[rng.random((n + 1, n + 1)) < 0.25] = 0.0
    if draw(st.booleans()):
        link[:] = 1e6
    np.fill_diagonal(link, 0.0)
    latency = np.where(link > 0, rng.random((n + 1, n + 1)), np.inf)
    wide = np.full(n, 1e9)
    return replace(
        whole,
        cluster=replace(whole.cluster, nodes=whole.cluster.nodes[:n]),
        model=replace(whole.model, num_hidden_layers=layers),
        type_names=("a", "b"),
        node_type=rng.integers(0, 2, size=n),
        max_layers=most.astype(np.int64),
        throughput=throughput,
        link_tokens_per_s=link,
        link_latency_s=latency,
        nic_in_tokens_per_s=wide,
        nic_out_tokens_per_s=wide,
    )


@st.composite
def placed(draw: st.DrawFn, *, nodes: int = 5) -> tuple[PlacementProblem, Placement]:
    """A problem and a placement that respects the nodes' limits."""
    problem = draw(problems(nodes=nodes))
    intervals: list[Interval | None] = []
    for most in problem.node_max_layers.tolist():
        if draw(st.integers(0, 5)) == 0:
            intervals.append(None)
            continue
        held = draw(st.integers(1, most))
        start = draw(st.integers(0, problem.num_layers - held))
        intervals.append((start, start + held))
    return problem, Placement(tuple(intervals))
