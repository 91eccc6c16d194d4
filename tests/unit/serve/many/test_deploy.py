"""From an intent to a configuration and its place."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from many_rig import Rig, machine, pool, run

from penstock.cost.fingerprint import Configuration, Demand
from penstock.errors import Infeasible, SpecError
from penstock.plan.parts import Parts
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.many.bodies import DeployBody
from penstock.serve.many.deploy import Answer, deployed
from penstock.serve.many.estimate import StepEstimator
from penstock.serve.many.member import Making
from penstock.spec.load import load_model
from penstock.spec.strict import validate
from penstock.spec.variants import Precision

MAKING = Making(ServeOptions(executor="null"))
EMPTY = pool({})
GIB = 2**30


def ask(plan: PoolPlan, model: str = "a", **more: Any) -> Answer:
    """Deploy Llama 2 7B (13.5 GB in fp16, 32 heads) as ``model``."""
    body = {"model": model, "checkpoint": "llama2-7b", "kv_memory": "4 GiB", **more}
    answer = deployed(plan, validate(DeployBody, body, "body"), MAKING)
    assert check_pool(answer.plan) == []
    return answer


def shape(answer: Answer) -> tuple[int, int]:
    chosen = answer.found.choice.configuration
    return chosen.tensor_parallel_size, chosen.pipeline_parallel_size


def test_intents_choose_as_their_costs_say() -> None:
    """Of all configurations on the machine none is better, by an independent scan."""
    model = load_model("llama2-7b")
    accelerator = EMPTY.cluster.nodes[0].accelerator
    tokens = 4 * GIB // (model.kv_bytes_per_token_per_layer * model.num_hidden_layers)
    estimator = StepEstimator(model, accelerator, {"kind": "step-roofline"}, tokens)
    own, demand = Precision("float16"), Demand(512, 128)
    shapes = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (4, 1)]
    seconds = {s: estimator.latency_s(Configuration(*s, own), demand) for s in shapes}
    size = {s: estimator.memory_bytes(Configuration(*s, own), demand) for s in shapes}
    costs = {
        "min_latency": lambda s: seconds[s],
        "min_cost": lambda s: seconds[s] * size[s],
        "min_memory": lambda s: size[s],
        "min_gpu_cost": lambda s: seconds[s] * s[0] * s[1],
    }
    for intent, cost in costs.items():
        found = shape(ask(EMPTY, intent=intent))
        assert cost(found) <= min(map(cost, shapes)) * (1 + 1e-9)


def test_latency_is_prompt_and_steps_through_all_stages() -> None:
    """Two stages take no less than one: a batch that is alone visits them in turn."""
    model, accelerator = load_model("llama2-7b"), EMPTY.cluster.nodes[0].accelerator
    estimator = StepEstimator(model, accelerator, {"kind": "step-roofline"}, 4096)
    own = Precision("float16")
    one, two, four = (
        estimator.latency_s(Configuration(*s, own), Demand(512, 128))
        for s in ((1, 1), (1, 2), (4, 1))
    )
    assert one <= two < 1.5 * one
    assert four < one
    # 13.5 GB at 1.555 TB/s is 8.7 ms a step: 128 of them take at least 1.1 s.
    assert one > 128 * 13.5e9 / 1.555e12


def test_free_gpus_come_before_shared_ones() -> None:
    """The second model does not share while GPUs are free; the fifth has to."""
    plan = EMPTY
    for i in range(5):
        answer = ask(plan, f"m{i}", intent="min_gpu_cost")
        assert answer.found.shared == (i == 4)
        assert shape(answer) == (1, 1)
        plan = answer.plan
    groups = [sorted(name for name, _ in group) for group in plan.groups.values()]
    assert sorted(map(len, groups)) == [1, 1, 1, 2]


def test_replicas_stand_apart_and_are_stored_alike() -> None:
    """Three engines on three GPUs."""
    answer = ask(EMPTY, replicas=3, intent="min_gpu_cost", precisions=["float16", "float32"])
    [entry] = answer.plan.deployments
    assert len({stage.node for engine in entry.plan.engines for stage in engine.stages}) == 3


def test_machines_are_cut_as_tensor_parallelism_needs() -> None:
    """Nodes of other models are renamed and keep their GPUs."""
    first = ask(EMPTY, "a", tensor_parallel_size=1, pipeline_parallel_size=1)
    second = ask(first.plan, "b", tensor_parallel_size=2, pipeline_parallel_size=1)
    third = ask(second.plan, "c", tensor_parallel_size=1, pipeline_parallel_size=1)
    assert third.plan.parts == (Parts("box", (1, 2, 1)),)
    gpus = {
        entry.name: sorted(
            gpu for e in entry.plan.engines for s in e.stages for gpu in third.plan.gpus_of(s.node)
        )
        for entry in third.plan.deployments
    }
    assert gpus == {"a": [("box", 0)], "b": [("box", 1), ("box", 2)], "c": [("box", 3)]}


def test_a_model_that_is_there_moves() -> None:
    """Deployed again with another intent it has one place, the new one."""
    answer = ask(ask(EMPTY, tensor_parallel_size=1).plan, tensor_parallel_size=4)
    [entry] = answer.plan.deployments
    assert len(entry.plan.engines) == 1
    assert shape(answer) == (4, 1)


@pytest.mark.parametrize(
    ("more", "binding"),
    [
        ({"slo_latency": "1 ms"}, "latency_slo_s"),
        ({"kv_memory": "100 GiB"}, "memory"),
        (
            {
                "accuracy_floor": 0.99,
                "precisions": ["int8", "int4"],
                "accuracy": {"int8": 0.98, "int4": 0.9},
            },
            "accuracy_floor",
        ),
        ({"pipeline_parallel_size": 5}, "pipeline_parallel_size"),
    ],
)
def test_what_binds_is_named(more: dict[str, Any], binding: str) -> None:
    """Where no configuration will do; with the nearest point where there is one."""
    with pytest.raises(Infeasible) as refusal:
        ask(pool({}, gpus=2), **more)
    assert refusal.value.binding == binding
    assert refusal.value.fix


def test_the_nearest_latency_is_that_of_all_sizes() -> None:
    """Not that of the first size that was tried."""
    with pytest.raises(Infeasible, match="TP4 PP1"):
        ask(EMPTY, slo_latency="1 ms")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"precisions": ["int3"]}, "unknown precision"),
        ({"precisions": ["int8"], "accuracy_floor": 0.5}, "accuracy.int8: its accuracy is not"),
        ({"tensor_parallel_size": 3}, "does not divide"),
        ({"kv_memory": "1 MiB"}, "a KV block needs"),
        ({"intent": "min_fun"}, "intent"),
        ({"slo": 3}, "slo: unknown key"),
    ],
)
def test_mistakes_are_one_line(more: dict[str, Any], problem: str) -> None:
    """They name the key."""
    with pytest.raises(SpecError, match=problem):
        ask(EMPTY, **more)


def test_a_precision_that_no_worker_loads_is_refused(tmp_path: Path) -> None:
    """Before anything is looked up; so is a folder that is no checkpoint."""
    body = validate(DeployBody, {"model": "a", "checkpoint": str(tmp_path)}, "body")
    with pytest.raises(SpecError, match=r"config\.json"):
        deployed(EMPTY, body, Making())


def test_unequal_machines_are_priced_by_their_own_gpus() -> None:
    """The faster GPUs of another machine are found."""
    slow, fast = machine(2, "A100-40GB"), machine(2, "H100-SXM")
    [other] = fast.nodes
    cluster = replace(slow, nodes=(*slow.nodes, replace(other, name="fast")))
    plan = replace(EMPTY, cluster=cluster, parts=())
    answer = ask(plan, intent="min_latency", tensor_parallel_size=1, pipeline_parallel_size=1)
    assert answer.found.blocks[0][0][0] == "fast"


def test_a_refused_deployment_changes_nothing() -> None:
    """And an accepted one serves at once; both under load."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(40, 4, ("a", "b")))
        await asyncio.sleep(1)
        before = rig.many.plan
        wanted = {"model": "c", "checkpoint": "llama2-7b", "kv_memory": "2 GiB"}
        with pytest.raises(Infeasible):
            await rig.many.administer("models.add", {**wanted, "slo_latency": "1 ms"})
        assert rig.many.plan is before
        answer = await rig.many.administer("models.add", {**wanted, "intent": "min_memory"})
        assert answer["started"] == ("c.engine-0",)
        await rig.ask(100, "c", 50, 20)
        again = {**wanted, "tensor_parallel_size": 2, "pipeline_parallel_size": 1}
        moved = await rig.many.administer("models.add", again)
        assert moved["tensor_parallel_size"] == 2
        assert moved["ended"] == ("c.engine-0",)
        await rig.ask(101, "c", 50, 20)
        await rig.many.administer("models.remove", {"name": "c"})
        listed = await rig.many.administer("models.get", {})
        assert [entry["name"] for entry in listed["models"]] == ["a", "b"]  # type: ignore[index, attr-defined]
        await loading
        await rig.check_idle()

    rig = run(pool({"a": ((0,),), "b": ((1,),)}), body)
    assert len(rig.answers) == 42, rig.refused
