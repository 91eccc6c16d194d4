"""The example of a pool: its files belong together."""

from __future__ import annotations

from pathlib import Path

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
