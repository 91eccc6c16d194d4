"""What the experiments share: cost tables, lengths, traffic and stored placements as plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.cost.base import CostModel
from penstock.cost.load import cost_model
from penstock.experiments.helix.cases import MODELS, Simulation
from penstock.experiments.helix.flows import Edges, PublishedFlow, StoredPlacement, fleet_of
from penstock.plan.helix_import import import_placement
from penstock.plan.plan import Plan, Routing
from penstock.spec.helix_ini import read_cluster
from penstock.spec.load import load_model

AVERAGE_OUTPUT_TOKENS = 240
"""The output length Helix's admission expects before it is scaled by the run's ratio."""


def table_cost(helix: Path, model: str) -> CostModel:
    """The published layer tables of ``llama30b`` or ``llama70b``."""
    return cost_model(load_model(MODELS[model]), helix / "profiles")


def published_plan(helix: Path, flow: PublishedFlow) -> Plan:
    """The stored placement of a row of ``max_flow.csv``, with a max flow of our own."""
    cluster, solution = flow.stored.files(helix)
    return import_placement(
        cluster,
        solution,
        table_cost(helix, flow.model),
        force_set=flow.over_full,
        throughput_cluster=fleet_of(helix, flow.machines),
    )


def simulated_plan(helix: Path, simulation: Simulation, edges: Edges | None) -> Plan:
    """The plan a run used: stored placement, stored edge flows (``edges``), router, settings."""
    stored = StoredPlacement(simulation.placement, simulation.prefix)
    cluster, solution = stored.files(helix)
    routing = Routing(router=simulation.router)
    if simulation.kv_high_water_mark is not None and simulation.output_ratio is not None:
        routing = replace(
            routing,
            kv_high_water_mark=simulation.kv_high_water_mark,
            expected_output_tokens=AVERAGE_OUTPUT_TOKENS * simulation.output_ratio,
        )
    return import_placement(
        cluster,
        solution,
        table_cost(helix, simulation.model),
        flows=edges if simulation.router == "maxflow" else None,
        force_set=simulation.force_set,
        throughput_cluster=read_cluster(helix / simulation.cluster_file),
        routing=routing,
        admission=simulation.admission,
    )
