"""Petals, Swarm, homogeneous and separate give the published placements, and generalise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plan_fleets import fleet, problem_of
from plan_published import PLANNED, placements, problem, solution

from penstock.errors import Infeasible, SpecError
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions, Score
from penstock.plan.registry import planner, planners
from penstock.plan.separate import SeparatePlanner, full_memory_layers
from penstock.plan.swarm import stage_sizes
from penstock.spec.cluster import COORDINATOR
from penstock.spec.helix_ini import read_simulator_cluster

MAXFLOW = PlannerOptions(objective="maxflow")


def _intervals(plan: Plan) -> dict[str, tuple[int, int]]:
    return {engine.name: (engine.start_layer, engine.end_layer) for engine in plan.engines}


@pytest.mark.reference
@pytest.mark.parametrize(("where", "model"), PLANNED)
@pytest.mark.parametrize("method", ["petals", "swarm"])
def test_petals_and_swarm_are_the_stored_placements(
    reference: Path, where: str, model: str, method: str
) -> None:
    """Layers, legs in file order, and KV capacities equal the stored files."""
    plan = planner(method).plan(problem(reference, where, model), MAXFLOW)
    folder = f"{where}_{model}/{method}"
    stored = read_simulator_cluster(placements(reference) / folder / "simulator_cluster.ini")
    assert _intervals(plan) == solution(reference, f"{folder}/{method}_sol.ini")
    assert [(leg.src, leg.dst) for leg in plan.legs] == list(stored.cluster.pair_links)
    capacity = {engine.name: engine.kv_capacity_layer_tokens for engine in plan.engines}
    assert capacity == stored.kv_capacity_layer_tokens
    assert plan.routing.router == {"petals": "maxflow", "swarm": "swarm"}[method]


@pytest.mark.reference
def test_homogeneous_is_the_stored_placement(reference: Path) -> None:
    """The tutorial's pipeline, and the nodes it leaves over with the reason."""
    plan = planner("homogeneous").plan(problem(reference, "single", "llama70b"), MAXFLOW)
    stored = solution(reference, "example_homogeneous_llama70b/homogeneous_sol.ini")
    assert _intervals(plan) == stored
    assert plan.value == pytest.approx(531.703, abs=0.01)
    assert len(plan.unused) == 15
    assert "too few for another pipeline" in plan.unused[0].reason


@pytest.mark.reference
@pytest.mark.parametrize(("where", "model"), PLANNED)
def test_separate_is_the_stored_placement(reference: Path, where: str, model: str) -> None:
    """Every machine type's pipeline equals its stored file, node by node."""
    task = problem(reference, where, model)
    plan = planner("separate").plan(task, MAXFLOW)
    folder = placements(reference) / f"{where}_{model}" / "separate"
    by_type: dict[str, list[tuple[int, int]]] = {}
    for name, interval in _intervals(plan).items():
        by_type.setdefault(task.cluster.node(name).machine_type, []).append(interval)
    for machine, intervals in by_type.items():
        name = machine.lower()
        path = folder / f"{name}_solution_file.ini"
        if not path.exists():
            path = folder / name / "solution_file.ini"
        assert intervals == list(solution(reference, str(path)).values()), machine
    assert plan.routing.router == "random"


@pytest.mark.reference
def test_separate_plus_mixes_the_left_over_types(reference: Path) -> None:
    """On het42, V100 and T4 cannot hold the model alone; SP+ gives both one pipeline of 5 each."""
    task = problem(reference, "het42", "llama70b")
    alone = planner("separate").plan(task, MAXFLOW)
    assert len(alone.unused) == 16
    assert {task.cluster.node(u.node).machine_type for u in alone.unused} == {"V100", "T4"}
    assert any("6 V100 hold 42 of 80" in entry.reason for entry in alone.unused)
    mixed = planner("separate+").plan(task, MAXFLOW)
    assert not mixed.unused
    by_type: dict[str, list[tuple[int, int]]] = {"V100": [], "T4": []}
    for name, interval in _intervals(mixed).items():
        machine = task.cluster.node(name).machine_type
        if machine in by_type:
            by_type[machine].append(interval)
    stored = solution(reference, "het42_llama70b/separate/v100_t4/solution_file.ini")
    assert by_type["V100"] + by_type["T4"] == list(stored.values())


@pytest.mark.reference
def test_full_memory_keeps_room_for_one_long_sequence(reference: Path) -> None:
    """Seven layers fill a T4, seven a V100, and the published pipelines stay within the limits."""
    task = problem(reference, "het42", "llama70b")
    most = {
        node.machine_type: layers
        for node, layers in zip(task.cluster.nodes, full_memory_layers(task), strict=True)
    }
    assert most["T4"] == 7
    assert most["V100"] == 7
    assert most["A100"] >= 20
    assert most["L4"] >= 10
    plan = SeparatePlanner().plan(task, MAXFLOW)
    assert min(engine.kv_capacity_layer_tokens for engine in plan.engines) > 0


def test_swarm_splits_a_prime_number_of_layers() -> None:
    """61 layers have no useful divisor: stages differ by one layer."""
    task = problem_of([("H100x8", 6)], "deepseek-v3")
    sizes, left_out = stage_sizes(task)
    assert sum(sizes) == 61
    assert max(sizes) - min(sizes) == 1
    assert not left_out


def test_swarm_leaves_out_nodes_that_hold_no_stage() -> None:
    """A T4 beside H100s would force tiny stages; it is left out, with the reason."""
    task = problem_of([("H100", 12), ("T4", 1)], "llama2-70b")
    plan = planner("swarm").plan(task, MAXFLOW)
    assert [entry.node for entry in plan.unused] == ["T4-0"]
    assert re.search(r"at most \d layers, fewer than a stage of", plan.unused[0].reason)


def test_many_nodes_of_a_type_become_several_pipelines() -> None:
    """Separate replicates: each pipeline holds every layer once."""
    task = problem_of([("A100", 20)], "llama2-70b")
    plan = planner("separate").plan(task, MAXFLOW)
    entries = [leg.dst for leg in plan.legs if leg.src == COORDINATOR]
    assert len(entries) > 1
    held = np.zeros(80, dtype=int)
    for engine in plan.engines:
        held[engine.start_layer : engine.end_layer] += 1
    assert (held == len(entries)).all()


def test_separate_needs_a_type_that_holds_the_model() -> None:
    """Where only L4s and T4s together hold the model, separate points to separate+."""
    task = problem_of([("L4", 5), ("T4", 8)], "llama2-70b")
    with pytest.raises(Infeasible, match=r"no machine type .* separate\+"):
        planner("separate").plan(task, MAXFLOW)
    mixed = planner("separate+").plan(task, MAXFLOW)
    assert sum(engine.num_layers for engine in mixed.engines) == 80


def test_an_evaluator_gives_the_plan_its_value() -> None:
    """For throughput the plan is scored by what is passed in; the placement stays the same."""
    task = problem_of([("A100", 8)], "llama2-13b")
    flow = planner("swarm").plan(task, MAXFLOW)
    options = PlannerOptions(
        objective="throughput", evaluate=lambda plans: [Score(123.0, "simulated") for _ in plans]
    )
    scored = planner("swarm").plan(task, options)
    assert scored.value == 123.0
    assert scored.objective == "throughput"
    assert scored.reasons[-1] == "simulated"
    assert scored.engines == flow.engines
    assert scored.max_flow_tokens_per_s == flow.value


def test_a_fleet_without_links_is_infeasible() -> None:
    """Stages whose nodes are not joined carry nothing; the answer says so in one line."""
    task = problem_of([("A100", 8)], "llama2-70b")
    cut = task.link_tokens_per_s.copy()
    cut[:-1, :-1] = 0.0
    with pytest.raises(Infeasible, match="carries no flow"):
        planner("swarm").plan(replace(task, link_tokens_per_s=cut), MAXFLOW)


def test_planners_are_found_by_name_with_a_hint() -> None:
    """All seven names are known; a typo gets the nearest one."""
    assert list(planners()) == [
        "penstock",
        "helix-milp",
        "swarm",
        "petals",
        "homogeneous",
        "separate",
        "separate+",
    ]
    with pytest.raises(SpecError, match="did you mean 'petals'"):
        planner("petal")


def test_plans_do_not_depend_on_the_seed_or_run() -> None:
    """The published planners are deterministic."""
    task = problem_of([("A100", 3), ("L4", 5)], "llama2-13b")
    for name in ("swarm", "petals", "homogeneous", "separate", "separate+"):
        assert planner(name).plan(task, MAXFLOW) == planner(name).plan(task, MAXFLOW)


def test_fleets_of_the_tests_are_joined() -> None:
    """The generator of test fleets joins every pair."""
    assert len(list(fleet([("L4", 3)]).links())) == 12
