"""What several models have served, as one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from many_rig import Rig, pool, run
from numpy.typing import NDArray
from tests.unit.serve.coordinator.runtime_rig import LineCost, LineTimer

from penstock.measure.compare import compare_runs
from penstock.measure.run import STATUS, Run
from penstock.measure.store import read_run, write_run
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.launch import write_record
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.spec.model import ModelSpec
from penstock.spec.workload import SLO, Request, SLOClass, Workload

TOGETHER = {"a": ((0,),), "b": ((0,),)}
CLASSES = (SLOClass("a", SLO(ttft_s=0.5)), SLOClass("b", SLO(e2e_s=60.0)))


class Spans(LineTimer):
    """Equal steps at once."""

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        return self.decode_s(seqs, context_tokens) * np.arange(1, steps + 1)


class Priced(LineCost):
    """The step times of the rig, for the simulator."""

    def __init__(self, model: ModelSpec) -> None:
        self.model = model
        self.provenance = ()

    def step_timer(self, shape: object) -> Spans:
        return Spans()

    def to_dict(self) -> dict[str, object]:
        return {"kind": "test"}


def recorded(plan: PoolPlan, count: int, folder: Path) -> tuple[Run, Rig]:
    async def body(rig: Rig) -> None:
        await rig.load(count, 10, ("a", "b"))
        write_record(rig.many, folder, CLASSES)

    rig = run(plan, body, classes=CLASSES, record=True)
    return read_run(folder), rig


def test_all_models_are_in_one_run(tmp_path: Path) -> None:
    """Requests in order of arrival with the model each asked for, its class and its engine."""
    measured, rig = recorded(pool(TOGETHER), 60, tmp_path / "run")
    table = measured.requests
    assert measured.model_names == ("a", "b")
    assert measured.class_names == ("a", "b")
    assert table.id.tolist() == list(range(60))
    assert np.all(np.diff(table.arrival_s) >= 0)
    assert table.model_index is not None
    served = rig.many.model_counters()
    for index, name in enumerate(measured.model_names):
        own = table.model_index == index
        assert own.sum() == served[name]["requests_finished"] > 0
        assert set(table.class_index[own]) == {index}
        assert {measured.routes[i] for i in table.route_index[own]} == {(f"{name}.e0",)}
        assert table.generated_tokens[own].sum() == served[name]["generation_tokens"]
    assert measured.counters["finished"] == 60
    assert measured.nodes is not None
    assert measured.nodes.names == ("a.e0", "b.e0")


def test_a_measured_pool_is_compared_with_a_simulated_one(tmp_path: Path) -> None:
    """The same requests simulated: the same models, and the same tokens of each."""
    plan = pool(TOGETHER)
    measured, _ = recorded(plan, 40, tmp_path / "measured")
    table = measured.requests
    assert table.model_index is not None
    requests = tuple(
        Request(
            i,
            float(table.arrival_s[i]),
            int(table.prompt_tokens[i]),
            int(table.output_tokens[i]),
            "ab"[table.model_index[i]],
            "ab"[table.model_index[i]],
        )
        for i in range(40)
    )
    workload = Workload("w", 30.0, trace=requests, classes=CLASSES)
    costs = {entry.name: Priced(entry.plan.model) for entry in plan.deployments}
    simulated = simulate_pool(plan, workload, costs, PoolOptions(step_by_step=True))  # type: ignore[arg-type]
    write_run(simulated, tmp_path / "simulated")
    ours = read_run(tmp_path / "simulated")
    comparison = compare_runs([ours, measured])
    one, other = comparison.summaries
    names = sorted(group.name for group in one.models)
    assert names == sorted(group.name for group in other.models) == ["a", "b"]
    for name in names:
        pair = [next(g for g in s.models if g.name == name) for s in (one, other)]
        assert pair[0].sent == pair[1].sent > 0
        assert pair[0].finished == pair[1].finished
        assert pair[0].slo_attainment == pair[1].slo_attainment
        assert pair[0].output_throughput_tokens_per_s > 0
    np.testing.assert_allclose(
        ours.requests.last_token_s, measured.requests.last_token_s, atol=1e-6, rtol=0
    )


def test_models_that_have_gone_stay_on_record() -> None:
    """A model that was removed keeps its requests; one that was never asked has none."""
    taken: list[Run] = []

    async def body(rig: Rig) -> None:
        await rig.load(30, 4, ("a", "b"))
        await rig.many.administer("models.remove", {"name": "a"})
        await rig.ask(100, "b", 20, 5)
        taken.append(rig.many.run("measured", {}))

    run(pool(TOGETHER), body, record=True)
    [measured] = taken
    assert sorted(measured.model_names) == ["a", "b"]
    assert len(measured.requests.id) == 31
    assert {STATUS[code] for code in measured.requests.status} == {"finished"}
    assert np.all(np.diff(measured.requests.arrival_s) >= 0)


def test_one_model_names_no_models() -> None:
    """A server of one model leaves the run that any server of one model leaves."""
    taken: list[Run] = []

    async def body(rig: Rig) -> None:
        await rig.ask(0, "a", 20, 5)
        taken.append(rig.many.run("measured", {}))

    run(pool({"a": ((0,),)}), body, record=True)
    assert taken[0].model_names == ()
    assert taken[0].requests.model_index is None
    assert taken[0].counters["finished"] == 1
