"""The example of a pool: its files belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock import api
from penstock.errors import SpecError
from penstock.spec.load import load_cluster, load_workload
from penstock.spec.served_file import is_served_file, load_served
from penstock.spec.workload import SLO

EXAMPLE = Path(__file__).parents[3] / "examples" / "pool"


def test_the_files_name_the_same_models() -> None:
    """Every model that is asked for is served, has limits, and fits the GPUs."""
    models = load_served(EXAMPLE / "models.yaml")
    workload = load_workload(EXAMPLE / "workload.yaml")
    cluster = load_cluster(EXAMPLE / "cluster.yaml")
    assert is_served_file(EXAMPLE / "models.yaml")
    assert not is_served_file(EXAMPLE / "workload.yaml")
    assert workload.models == tuple(model.name for model in models)
    assert all(entry.slo != SLO() for entry in workload.classes)
    memory = sum(node.count * node.accelerator.memory_bytes for node in cluster.nodes)
    weights = [one.model.slice_weight_bytes(0, one.model.num_hidden_layers) for one in models]
    assert sum(weights) < memory


def test_one_model_does_not_take_the_traffic_of_several() -> None:
    """Requests of other models would count as its own: that is refused in one line."""
    with pytest.raises(SpecError, match="names 4 models, and the plan is of one"):
        api.plan(EXAMPLE / "cluster.yaml", "llama2-7b", EXAMPLE / "workload.yaml")
    with pytest.raises(SpecError, match="closed loops are of one model"):
        api.load_traffic(EXAMPLE / "workload.yaml", max_concurrency=4)
