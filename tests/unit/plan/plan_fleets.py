"""Small mixed fleets for planner tests, on the bundled cost model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from penstock.cost.load import cost_model
from penstock.plan.placement import PlacementProblem
from penstock.plan.problem import placement_problem
from penstock.spec.catalogue import parse_machine_type
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.models import preset

Kinds = Sequence[tuple[str, int]]


def fleet(kinds: Kinds, *, regions: int = 1, slow_bytes_per_s: float = 1e8) -> Cluster:
    """``count`` nodes of each machine type, dealt over regions joined by slow links."""
    nodes = []
    for machine, count in kinds:
        accelerator, gpus = parse_machine_type(machine)
        memory = accelerator.memory_bytes * gpus
        nodes += [
            Node(
                f"{machine}-{i}", accelerator, gpus, machine, f"r{i % regions}",
                10e9, 10e9, 1e9, memory,
            )
            for i in range(count)
        ]  # fmt: skip
    names = [f"r{i}" for i in range(regions)]
    links = {
        (a, b): Link(1.25e9, 0.001) if a == b else Link(slow_bytes_per_s, 0.03)
        for a in names
        for b in names
    }
    return Cluster("fleet", tuple(nodes), Coordinator("r0", 10e9, 10e9), links, {})


@lru_cache
def _problem(
    kinds: tuple[tuple[str, int], ...], model: str, regions: int, partial: bool
) -> PlacementProblem:
    shape = preset(model)
    assert shape is not None
    return placement_problem(
        fleet(kinds, regions=regions), cost_model(shape), partial_inference=partial
    )


def problem_of(
    kinds: Kinds, model: str, *, regions: int = 1, partial: bool = False
) -> PlacementProblem:
    return _problem(tuple(kinds), model, regions, partial)
