"""Published placements come in and go out unchanged."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from plan_published import cluster, cost, placements, stored

from penstock.errors import InputError, SpecError
from penstock.plan.helix_import import export_placement, import_placement
from penstock.plan.plan import Plan
from penstock.spec.cluster import COORDINATOR

pytestmark = pytest.mark.reference


def _partial_legs(plan: Plan) -> int:
    return sum(
        plan.engine(leg.src).end_layer != plan.engine(leg.dst).start_layer
        for leg in plan.legs
        if COORDINATOR not in (leg.src, leg.dst)
    )


def test_every_stored_placement_imports_exactly(reference: Path) -> None:
    """Nodes, links, partial links and max flow equal the published table in every row."""
    count = 0
    for row in stored(reference):
        plan = import_placement(
            row.simulator_cluster,
            row.solution,
            cost(reference, row.model),
            force_set=row.over_full,
            throughput_cluster=cluster(reference, row.composition),
        )
        count += 1
        assert plan.value == pytest.approx(row.max_flow, abs=0.01), row.label
        assert len(plan.engines) == row.nodes, row.label
        assert len(plan.legs) == row.links, row.label
        assert _partial_legs(plan) == row.partial_links, row.label
    assert count == 54


def _single(reference: Path, **options: object) -> Plan:
    folder = placements(reference) / "single_llama70b" / "ilp"
    return import_placement(
        folder / "simulator_cluster.ini",
        folder / "ilp_sol.ini",
        cost(reference, "llama70b"),
        **options,  # type: ignore[arg-type]
    )


def test_kv_capacity_and_leg_order_are_the_files(reference: Path) -> None:
    """Engines take the file's KV capacity; legs keep the file's order."""
    plan = _single(reference)
    assert plan.engine("compute_node_4").kv_capacity_layer_tokens == 2031488
    assert plan.engine("compute_node_2").kv_capacity_layer_tokens == 3004416
    assert [(leg.src, leg.dst) for leg in plan.legs[:3]] == [
        (COORDINATOR, "compute_node_17"),
        ("compute_node_6", COORDINATOR),
        ("compute_node_16", "compute_node_2"),
    ]
    assert plan.admission == "drop"


def test_given_flows_become_the_router_weights(reference: Path) -> None:
    """Stored edge flows replace the computed ones, under the file's names."""
    flows = {}
    with (reference / "helix" / "expected" / "max_flow_edges.csv").open() as file:
        for row in csv.DictReader(file):
            if row["placement"] == "single_llama70b/ilp" and row["kind"] == "link":
                flows[row["from"], row["to"]] = float(row["flow_tokens_per_s"])
    plan = _single(reference, flows=flows)
    assert len(plan.legs) == len(flows)
    assert plan.value == pytest.approx(1289.556, abs=1e-3)
    first = plan.legs[0]
    assert first.flow_tokens_per_s == flows["source", "compute_node_17"]


def test_a_flow_for_an_unknown_leg_is_refused(reference: Path) -> None:
    """A weight for a leg that is not in the file is the caller's mistake."""
    with pytest.raises(SpecError, match="not in the file"):
        _single(reference, flows={("source", "compute_node_3"): 1.0})


def test_too_many_layers_need_force_set(reference: Path) -> None:
    """An over-full node is refused by name unless extrapolation is asked for."""
    folder = placements(reference) / "single_llama70b" / "separate"
    files = (folder / "a100_simulator_cluster.ini", folder / "a100_solution_file.ini")
    with pytest.raises(SpecError, match=r"compute_node_2: holds more than the 12 layers"):
        import_placement(*files, cost(reference, "llama70b"))


def test_a_leg_between_layers_that_do_not_follow_is_refused(
    reference: Path, tmp_path: Path
) -> None:
    """A solution that does not belong to the cluster file is one line, not a traceback."""
    folder = placements(reference) / "single_llama70b" / "ilp"
    changed = tmp_path / "ilp_sol.ini"
    text = (folder / "ilp_sol.ini").read_text().replace("[0, 1, 2]", "[0, 1]")
    changed.write_text(text)
    with pytest.raises(SpecError, match="do not follow each other"):
        import_placement(folder / "simulator_cluster.ini", changed, cost(reference, "llama70b"))


def test_export_and_import_give_the_same_placement(reference: Path, tmp_path: Path) -> None:
    """Files written from a plan read back as the same engines and legs."""
    plan = _single(reference)
    written = export_placement(plan, tmp_path)
    assert [path.name for path in written] == ["solution.ini", "simulator_cluster.ini"]
    again = import_placement(written[1], written[0], cost(reference, "llama70b"))
    assert again.engines == plan.engines
    assert [(leg.src, leg.dst) for leg in again.legs] == [(leg.src, leg.dst) for leg in plan.legs]
    assert again.value == pytest.approx(plan.value, rel=1e-12)


def test_engines_of_several_stages_cannot_be_exported(reference: Path, tmp_path: Path) -> None:
    """Helix files know one stage per node: anything else is refused in words."""
    plan = _single(reference)
    double = replace(plan.engines[0], stages=plan.engines[0].stages * 2)
    with pytest.raises(InputError, match="one stage"):
        export_placement(replace(plan, engines=(double, *plan.engines[1:])), tmp_path)
