"""Plans whose engines serve requests alone, as documents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.document import format_plan, plan_from_dict
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.settings import HandoffSettings, SchedulerSettings, SpeculationSettings
from penstock.spec.load import load_cluster, load_model


@pytest.fixture(scope="module")
def plan() -> Plan:
    cluster = load_cluster("single24")
    model = load_model("llama2-70b")
    layers = model.num_hidden_layers
    limits = BatchLimits(1, 1, 1, 1)
    nodes = [node.name for node in cluster.nodes[:4]]
    prefill = Engine(
        "p",
        (Stage(nodes[0], 0, 40), Stage(nodes[1], 40, layers)),
        1_000_000,
        limits,
        "prefill",
        SchedulerSettings("vllm", max_num_seqs=64, enable_prefix_caching=True),
    )
    decode = Engine(
        "d",
        (Stage(nodes[2], 0, 40), Stage(nodes[3], 40, layers)),
        1_000_000,
        limits,
        "decode",
        SchedulerSettings("vllm"),
        SpeculationSettings("chain", "llama-68m"),
    )
    return Plan(
        cluster=cluster,
        model=model,
        engines=(prefill, decode),
        legs=(
            Leg("coordinator", "p", 1.0, 1.0),
            Leg("p", "d", 1.0, 1.0),
            Leg("d", "coordinator", 1.0, 1.0),
        ),
        planner="goodput",
        objective="goodput",
        value=1.0,
        max_flow_tokens_per_s=0.0,
        routing=Routing(engine_router="round-robin"),
        handoff=HandoffSettings(25e9, 1e-4, layer_by_layer=True),
        checkpoint="models/x",
    )


def test_a_plan_of_whole_engines_survives_the_round_trip(plan: Plan) -> None:
    """Everything that was set comes back; what was not set is not written."""
    text = format_plan(plan)

    again = plan_from_dict(yaml.safe_load(text))
    assert again.engines == plan.engines
    assert (again.routing, again.handoff) == (plan.routing, plan.handoff)
    assert again.checkpoint == "models/x"
    assert again.whole_engines
    assert "decode_router" not in text


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "scheduler",
            {"name": "vllm", "max_num_seq": 3},
            ["scheduler.max_num_seq", "max_num_seqs"],
        ),
        ("scheduler", {"max_num_seqs": 0}, ["engines[0].scheduler.max_num_seqs", "at least 1"]),
        ("scheduler", {"max_num_seqs": "many"}, ["max_num_seqs", "whole number"]),
        ("speculation", {"method": "magic"}, ["speculation.method", "chain"]),
        ("role", "both", ["no engine has the role prefill"]),
        ("stages", [["a100-0", 0, 40]], ["stages"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(
    plan: Plan, path: str, value: object, words: list[str]
) -> None:
    """The line says which key of which engine and what is allowed."""
    document = yaml.safe_load(format_plan(plan))
    document["engines"][0][path] = value

    with pytest.raises(SpecError) as caught:
        plan_from_dict(document, source="plan.yaml")
    for word in ["plan.yaml", *words]:
        assert word in str(caught.value)


def test_engines_with_and_without_schedulers_do_not_mix(plan: Plan) -> None:
    """Either all engines serve alone or all are hops of paths."""
    mixed = replace(plan, engines=(plan.engines[0], replace(plan.engines[1], scheduler=None)))

    with pytest.raises(SpecError, match="needs a scheduler"):
        plan_from_dict(yaml.safe_load(format_plan(mixed)))
