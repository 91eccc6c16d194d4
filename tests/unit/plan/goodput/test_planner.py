"""Whole engines on the machines of a cluster: cutting, searching, pricing and checking."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from penstock.cost.step_roofline import StepRoofline
from penstock.errors import Infeasible, SpecError
from penstock.plan.checker import check_plan
from penstock.plan.goodput.fleet import Phase, Probe
from penstock.plan.goodput.machines import machines_of, pipelines
from penstock.plan.goodput.named import plan_engines
from penstock.plan.goodput.plan_cost import plan_cost
from penstock.plan.goodput.planner import PlanJob, Task
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Plan
from penstock.plan.settings import SpeculationSettings
from penstock.spec.catalogue import catalogue
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.load import load_model

COST = StepRoofline(load_model("llama-3-8b"))
LINK = Link(20e9, 1e-5)


def cluster_of(*machines: tuple[str, int]) -> Cluster:
    """Machines by accelerator and number of GPUs, all in one region."""
    nodes = []
    for i, (name, count) in enumerate(machines):
        gpu = catalogue().get(name)
        nodes.append(
            Node(f"m{i}", gpu, count, f"{name}x{count}", "r", 40e9, 40e9, 1e9, 10**12, 8.0)
        )
    return Cluster("test", tuple(nodes), Coordinator("r", 1e10, 1e10), {("r", "r"): LINK}, {})


def test_a_cut_machine_keeps_its_gpus_its_nic_and_its_neighbours() -> None:
    """Groups share what the machine has and are joined by the link between its GPUs."""
    whole = cluster_of(("H100", 8), ("H100", 8))
    parts = cut(whole, [Parts("m0", (4, 2, 2)), Parts("m1", (8,))])
    assert [(node.name, node.count) for node in parts.nodes] == [
        ("m0.0", 4),
        ("m0.1", 2),
        ("m0.2", 2),
        ("m1", 8),
    ]
    assert sum(node.nic_out_bytes_per_s for node in parts.nodes) == pytest.approx(80e9)
    assert sum(node.price_per_hour or 0 for node in parts.nodes) == pytest.approx(16.0)
    inside = parts.link("m0.0", "m0.2")
    assert inside is not None
    assert inside.bandwidth_bytes_per_s == catalogue().get("H100").interconnect_bytes_per_s
    assert parts.link("m0.1", "m1") == LINK


def test_groups_in_a_row_are_pipelines() -> None:
    """What does not fill a pipeline is left over."""
    assert pipelines(["a", "b", "c", "d", "e"], 2) == [("a", "b"), ("c", "d")]


def gpus(plan: Plan, engine: Engine) -> int:
    return sum(plan.cluster.node(stage.node).count for stage in engine.stages)


class Ruled:
    """Probes from a rule, at once; ``stop_after`` of them come before Ctrl-C."""

    width = 1

    def __init__(
        self, rule: Callable[[Plan, float, Phase], float], stop_after: float = inf
    ) -> None:
        self._rule = rule
        self._left = stop_after

    def submit(self, job: PlanJob) -> Future[Probe]:
        if self._left <= 0:
            raise KeyboardInterrupt
        self._left -= 1
        good = self._rule(job.plan, job.rate_per_s, job.phase)
        future: Future[Probe] = Future()
        future.set_result(Probe(good, good, good, 0.0, 0.0, 1.0, requests=300))
        return future

    def keep(self, job: PlanJob, probe: Probe) -> None:
        """Nothing is remembered."""


def fixed(rates: dict[int, float], stop_after: float = inf) -> Ruled:
    """Engines of n GPUs sustain ``rates[n]`` requests/s of both phases, twice that of one alone."""

    def probe(plan: Plan, rate_per_s: float, phase: Phase) -> float:
        total = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for engine in plan.engines:
            alone = 1.0 if engine.role == "both" else 2.0
            total[engine.role] += alone * rates.get(gpus(plan, engine), 0.0)
        if phase != "both":
            return float(rate_per_s <= 2 * total["both"])
        most = total["both"] + min(total["prefill"], total["decode"])
        return float(rate_per_s <= most)

    return Ruled(probe, stop_after)


def task(cluster: Cluster, rates: dict[int, float], **changes: object) -> Task:
    return replace(
        Task(cluster, COST, 500.0, 100.0, fixed(rates), pipeline_parallel_sizes=(1,)),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("rates", "size"),
    [({1: 10.0, 2: 30.0, 4: 50.0}, 2), ({1: 20.0, 2: 30.0, 4: 50.0}, 1), ({4: 30.0}, 4)],
)
def test_the_size_with_the_most_requests_a_gpu_wins(rates: dict[int, float], size: int) -> None:
    """Engines of the best size fill the machines, and the value is what they sustain together."""
    plan = plan_engines(task(cluster_of(("H100", 4), ("H100", 4)), rates, disaggregated=False))
    assert {gpus(plan, engine) for engine in plan.engines} == {size}
    assert len(plan.engines) == 8 // size
    assert plan.value == pytest.approx(8 // size * rates[size], rel=0.07)
    assert check_plan(plan) == []


def test_ctrl_c_keeps_the_best_layout_so_far() -> None:
    """Stopped while layouts are measured the plan says so; stopped before, there is none."""
    rates = {1: 14.0, 2: 30.0, 4: 50.0}
    asked = task(cluster_of(("H100", 4), ("H100", 4)), rates, disaggregated=False)
    runs = 0

    class Counting(Ruled):
        def keep(self, job: PlanJob, probe: Probe) -> None:
            nonlocal runs
            runs += 1

    whole = plan_engines(replace(asked, probes=Counting(fixed(rates)._rule)))
    stopped = plan_engines(replace(asked, probes=fixed(rates, runs - 1)))
    assert "stopped before its end" in stopped.reasons[-1]
    assert "stopped" not in whole.reasons[-1]
    assert 0 < stopped.value <= whole.value
    with pytest.raises(KeyboardInterrupt):
        plan_engines(replace(asked, probes=fixed(rates, 1)))


def test_phases_part_where_that_sustains_more() -> None:
    """An engine that does one phase sustains twice, so equal halves match engines for both;
    a faster decode phase makes the pair win."""
    cluster = cluster_of(("H100", 4))

    def probe(plan: Plan, rate_per_s: float, phase: Phase) -> float:
        roles = [engine.role for engine in plan.engines]
        if phase != "both":
            return float(rate_per_s <= {"prefill": 4.0, "decode": 12.0}[phase])
        apart = min(4.0 * roles.count("prefill"), 12.0 * roles.count("decode"))
        return float(rate_per_s <= 2.0 * roles.count("both") + apart)

    plan = plan_engines(replace(task(cluster, {}), probes=Ruled(probe)))
    assert [engine.role for engine in plan.engines] == ["prefill"] * 3 + ["decode"]
    assert plan.value == pytest.approx(12.0, rel=0.07)
    assert plan.handoff.bandwidth_bytes_per_s == (catalogue().get("H100").interconnect_bytes_per_s)
    assert check_plan(plan) == []


def test_two_kinds_of_machines_work_together() -> None:
    """Each kind has engines of its own, and requests go by what they sustain."""
    plan = plan_engines(
        task(cluster_of(("H100", 2), ("L40S", 2)), {1: 10.0, 2: 30.0}, disaggregated=False)
    )
    names = {plan.cluster.node(e.stages[0].node).accelerator.name for e in plan.engines}
    assert len(names) == 2
    assert plan.routing.engine_router == "flow-weighted"


def test_distserve_replicates_each_phase_for_a_rate() -> None:
    """One GPU sustains 40 prompts/s or decodes/s alone: 70 requests/s need two of each."""

    def probe(plan: Plan, rate_per_s: float, phase: Phase) -> float:
        many = sum(gpus(plan, engine) == 1 for engine in plan.engines)
        return float(rate_per_s <= (40.0 if phase != "both" else 20.0 * many))

    asked = replace(
        task(cluster_of(("H100", 8)), {}), probes=Ruled(probe), planner="distserve-high"
    )
    plan = plan_engines(asked, 70.0)
    assert sorted(engine.role for engine in plan.engines) == ["decode"] * 2 + ["prefill"] * 2
    with pytest.raises(Infeasible, match="cluster has 8"):
        plan_engines(asked, 1000.0)
    mixed = replace(asked, cluster=cluster_of(("H100", 1), ("L40S", 1)))
    with pytest.raises(SpecError, match="equal machines"):
        plan_engines(mixed, 1.0)


def test_machines_that_are_equal_are_one_group() -> None:
    """Groups keep the order of the cluster."""
    groups = machines_of(cluster_of(("H100", 8), ("L40S", 1), ("H100", 8)))
    assert [group.names for group in groups] == [("m0", "m2"), ("m1",)]
    assert groups[0].tensor_parallel_sizes == (1, 2, 4, 8)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_engines(
        task(cluster_of(("H100", 2), ("H100", 2)), {1: 10.0, 2: 15.0}, disaggregated=False)
    )


def test_the_checker_names_what_is_wrong(plan: Plan) -> None:
    """Flows, memory, nodes and roles, each by code that the search does not use."""
    first, *rest = plan.engines
    leg = plan.legs[0]
    huge = replace(first, kv_capacity_layer_tokens=10**9)
    speculating = replace(first, role="prefill", speculation=SpeculationSettings())
    cases = (
        (replace(plan, legs=(replace(leg, flow_tokens_per_s=1.0), *plan.legs[1:])), "differ by"),
        (replace(plan, engines=(huge, *rest)), "weights and KV memory take"),
        (replace(plan, engines=(replace(first, stages=rest[0].stages), *rest)), "is used by"),
        (replace(plan, legs=plan.legs[1:]), "gets no requests"),
        (replace(plan, engines=(speculating, *rest)), "cannot speculate"),
        (replace(plan, max_flow_tokens_per_s=1.0), "states a flow"),
    )
    for broken, words in cases:
        assert any(words in line for line in check_plan(broken)), words


def test_speculation_needs_an_acceptance(plan: Plan, tmp_path: Path) -> None:
    """It comes with the plan's cost model or with the call; it survives the document."""
    settings = SpeculationSettings("chain", "llama-3.2-1b")
    engines = tuple(replace(engine, speculation=settings) for engine in plan.engines)
    speculating = replace(plan, engines=engines)
    with pytest.raises(SpecError, match="give --acceptance"):
        plan_cost(speculating)
    cost = plan_cost(speculating, 0.8)
    again = plan_cost(replace(speculating, cost=cost.to_dict()))
    assert again.to_dict() == cost.to_dict()
    measured = tmp_path / "curve.yaml"
    measured.write_text("acceptance: [0.8, 0.64]\n", encoding="utf-8")
    assert plan_cost(speculating, str(measured)).to_dict()["acceptance"] == [0.8, 0.64]
    measured.write_text("acceptance: [0.5, 0.9]\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"curve.yaml.*must fall"):
        plan_cost(speculating, str(measured))
    mixed = replace(plan, engines=(engines[0], *plan.engines[1:]))
    with pytest.raises(SpecError, match="one speculation"):
        plan_cost(mixed, 0.8)
