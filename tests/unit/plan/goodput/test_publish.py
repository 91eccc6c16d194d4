"""Fleets that a sweep has found, written down as plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import SpecError
from penstock.plan.document import read_plan, write_plan
from penstock.plan.goodput.fleet import EngineChoice, Fleet
from penstock.plan.goodput.publish import Outcome, even_stages, fleet_plan
from penstock.plan.settings import HandoffSettings
from penstock.policy.fleet import engine_scheduler, engine_weights
from penstock.spec.catalogue import catalogue
from penstock.spec.cluster import COORDINATOR
from penstock.spec.load import load_model

H100, L40S = catalogue().get("H100"), catalogue().get("L40S")
COST = StepRoofline(load_model("llama-3-8b"))
OUTCOME = Outcome(10.0, 0.9, 500.0, "sweep")


def test_layers_are_spread_evenly_over_stages() -> None:
    """Ten layers over three nodes are 4, 3 and 3, without a gap."""
    stages = even_stages(("a", "b", "c"), 10)
    assert [(s.node, s.start_layer, s.end_layer) for s in stages] == [
        ("a", 0, 4),
        ("b", 4, 7),
        ("c", 7, 10),
    ]


def test_a_mixture_becomes_engines_on_machines_of_their_own(tmp_path: Path) -> None:
    """Engines, GPUs, price, memory and shares of the fleet survive writing and reading."""
    shape = EngineShape(L40S, 2, 2)
    fleet = Fleet(
        ((EngineChoice(EngineShape(H100)), 1), (EngineChoice(shape, "sarathi", 512), 2)), (3.0, 1.0)
    )
    write_plan(fleet_plan(fleet, COST, OUTCOME), tmp_path / "plan.yaml")
    plan = read_plan(tmp_path / "plan.yaml")

    assert [engine.name for engine in plan.engines] == ["both-0-0", "both-1-0", "both-1-1"]
    assert sum(node.count for node in plan.cluster.nodes) == fleet.num_gpus == 9
    assert sum(node.price_per_hour or 0 for node in plan.cluster.nodes) == pytest.approx(
        fleet.price_per_hour
    )
    weights = engine_weights(plan)
    assert weights[0] / weights[1] == weights[0] / weights[2] == pytest.approx(3.0)
    assert sum(weights) == pytest.approx(10 * 500)
    small = engine_scheduler(plan.engines[1])
    assert small.blocks.num_blocks == COST.kv_capacity_tokens(shape) // 16
    assert (small.num_stages, small.max_tokens, small.max_num_seqs) == (2, 512, 256)
    assert plan.value == pytest.approx(9.0)


def test_prompts_flow_from_prefill_to_decode_engines() -> None:
    """What enters an engine leaves it, and hand-overs are priced in KV bytes of their link."""
    roles = (
        (EngineChoice(EngineShape(H100), role="prefill"), 2),
        (
            EngineChoice(EngineShape(H100), role="decode"),
            3,
        ),
    )
    plan = fleet_plan(Fleet(roles), COST, OUTCOME, handoff=HandoffSettings(10e9, 1e-4))
    for engine in plan.engines:
        into = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.dst == engine.name)
        out = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.src == engine.name)
        assert into == pytest.approx(out)
    handed = [leg for leg in plan.legs if COORDINATOR not in (leg.src, leg.dst)]
    assert len(handed) == 6
    per_token = COST.model.kv_bytes_per_token_per_layer * COST.model.num_hidden_layers
    assert handed[0].capacity_tokens_per_s == pytest.approx(10e9 / per_token)


def test_shapes_a_plan_cannot_express_are_refused() -> None:
    """Data parallelism has no key in a plan."""
    choice = EngineChoice(EngineShape(H100, data_parallel_size=2))
    with pytest.raises(SpecError, match="data_parallel_size"):
        fleet_plan(Fleet(((choice, 1),)), COST, OUTCOME)
