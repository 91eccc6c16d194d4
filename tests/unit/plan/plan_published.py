"""The published clusters, models and placements, for tests against the reference data."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from penstock.cost.tables import LayerTableCost
from penstock.plan.placement import PlacementProblem
from penstock.plan.problem import placement_problem
from penstock.spec.cluster import Cluster
from penstock.spec.helix_ini import read_cluster, read_solution
from penstock.spec.model import ModelSpec

MODELS = {
    "llama70b": ModelSpec("llama2-70b", 80, 8192, 64, 8, 128, 28672, 32000, 4096),
    "llama30b": ModelSpec("llama-30b", 60, 6656, 52, 52, 128, 17920, 32000, 2048),
}
CLUSTERS = {
    "single": "single/cluster24",
    "distributed": "distributed/3cluster24",
    "het42": "high_heterogeneity/cluster42",
    "quality": "quality/cluster10",
    "a100": "single/a100",
}
PLANNED = (
    ("single", "llama30b"),
    ("single", "llama70b"),
    ("distributed", "llama30b"),
    ("distributed", "llama70b"),
    ("het42", "llama70b"),
)
_COMPOSITION = {
    "{A100: 4, L4: 8, T4: 12}": "single/cluster24",
    "{A100: 4}": "single/a100",
    "{L4: 8}": "single/l4",
    "{T4: 12}": "single/t4",
    "{L4: 4, T4: 6}": "quality/cluster10",
}
_FOLDERS = {
    "single_cluster": "single_{model}",
    "distributed_clusters": "distributed_{model}",
    "high_heterogeneity": "het42_{model}",
    "model_placement/layout_single": "single_{model}",
    "model_placement/layout_distributed": "distributed_{model}",
    "examples/simulation": "single_{model}",
}


@lru_cache
def cluster(reference: Path, name: str) -> Cluster:
    folder = reference / "helix" / "clusters"
    path = folder / f"{CLUSTERS.get(name, name)}.ini"
    return read_cluster(path, folder / "machine_profiles.ini")


@lru_cache
def cost(reference: Path, model: str) -> LayerTableCost:
    return LayerTableCost(MODELS[model], reference / "helix" / "profiles")


@lru_cache
def problem(
    reference: Path, name: str, model: str, partial_inference: bool = False
) -> PlacementProblem:
    return placement_problem(
        cluster(reference, name), cost(reference, model), partial_inference=partial_inference
    )


def placements(reference: Path) -> Path:
    return reference / "helix" / "placements"


def solution(reference: Path, path: str) -> dict[str, tuple[int, int]]:
    return dict(read_solution(placements(reference) / path))


@dataclass(frozen=True)
class Stored:
    """One row of ``max_flow.csv`` and where its files are."""

    label: str
    model: str
    simulator_cluster: Path
    solution: Path
    composition: str
    over_full: bool
    nodes: int
    nodes_with_flow: int
    links: int
    partial_links: int
    max_flow: float


def stored(reference: Path) -> Iterator[Stored]:
    with (reference / "helix" / "expected" / "max_flow.csv").open() as file:
        for row in csv.DictReader(file):
            folder = placements(reference) / _folder(row)
            cluster_file = Path(row["simulator_cluster_file"]).name
            if not (folder / cluster_file).exists():
                folder = folder.parent
            yield Stored(
                label=f"{row['experiment']} {row['model']} {row['placement']}",
                model=row["model"],
                simulator_cluster=folder / cluster_file,
                solution=folder / Path(row["solution_file"]).name,
                composition=_COMPOSITION.get(row["machine_num_dict"], CLUSTERS["het42"]),
                over_full=bool(row["over_recommended_layers"]),
                nodes=int(row["nodes_in_file"]),
                nodes_with_flow=int(row["nodes_with_flow"]),
                links=int(row["links"]),
                partial_links=int(row["partial_links"]),
                max_flow=float(row["max_flow_tokens_per_s"]),
            )


def _folder(row: dict[str, str]) -> str:
    experiment, placement, model = row["experiment"], row["placement"], row["model"]
    if experiment.startswith("ablation/"):
        return "ablation_" + experiment.split("/")[1]
    if experiment.startswith("request_scheduling/"):
        return experiment.replace("/layout", "") + f"_{model}"
    if placement == "homogeneous":
        return f"example_homogeneous_{model}"
    if (experiment, placement) == ("examples/simulation", "ilp"):
        return f"request_scheduling_single_{model}"
    return _FOLDERS[experiment].format(model=model) + f"/{placement}"
