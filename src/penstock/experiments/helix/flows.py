"""The stored placements: where they lie, their flows, and their max flow against the published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import InputError, SpecError
from penstock.experiments.reference import Record, number, read_table
from penstock.spec.cluster import COORDINATOR, Cluster
from penstock.spec.helix_ini import read_cluster

Edges = Mapping[tuple[str, str], float]
CLUSTER_FILES = (
    "clusters/single/cluster24.ini",
    "clusters/single/a100.ini",
    "clusters/single/l4.ini",
    "clusters/single/t4.ini",
    "clusters/high_heterogeneity/cluster42.ini",
    "clusters/quality/cluster10.ini",
)
"""One file per mix of machines: T(k) depends on the mix alone, not on the links."""

_FOLDERS = {
    "single_cluster": "single_{model}",
    "distributed_clusters": "distributed_{model}",
    "high_heterogeneity": "het42_{model}",
    "model_placement/layout_single": "single_{model}",
    "model_placement/layout_distributed": "distributed_{model}",
    "request_scheduling/layout_single": "request_scheduling_single_{model}",
    "request_scheduling/layout_distributed": "request_scheduling_distributed_{model}",
    "examples/simulation": "single_{model}",
}
_EXAMPLES = {
    "ilp": "request_scheduling_single_{model}",
    "homogeneous": "example_homogeneous_{model}",
}
_WHOLE_FOLDER = ("request_scheduling_", "example_", "ablation_")


@dataclass(frozen=True, slots=True)
class StoredPlacement:
    """One stored placement: a folder under ``placements/`` and which of its files."""

    folder: str
    prefix: str = ""

    def files(self, helix: Path) -> tuple[Path, Path]:
        """(simulator cluster, solution). Raises ``InputError`` where they are not there."""
        folder = helix / self.folder
        cluster = sorted(folder.glob(f"{self.prefix}*simulator_cluster.ini"))
        solution = sorted(
            path
            for path in folder.glob(f"{self.prefix}*.ini")
            if path.stem.endswith(("_sol", "solution_file"))
        )
        if len(cluster) != 1 or len(solution) != 1:
            raise InputError(
                f"{folder}: does not hold one placement named '{self.prefix}*' "
                "(a solution and its simulator_cluster.ini); restore the reference folder"
            )
        return cluster[0], solution[0]


@dataclass(frozen=True)
class PublishedFlow:
    """A row of ``expected/max_flow.csv``."""

    experiment: str
    placement: str
    model: str
    stored: StoredPlacement
    machines: tuple[tuple[str, int], ...]
    over_full: bool
    value: float
    nodes_with_flow: int


def read_published_flows(helix: Path) -> tuple[PublishedFlow, ...]:
    """Every stored placement with its published max flow, in file order."""
    path = helix / "expected" / "max_flow.csv"
    columns = ("experiment", "model", "placement", "max_flow_tokens_per_s", "machine_num_dict")
    return tuple(_published(row, path) for row in read_table(path, *columns))


def _published(row: Record, path: Path) -> PublishedFlow:
    return PublishedFlow(
        experiment=row["experiment"],
        placement=row["placement"],
        model=row["model"],
        stored=_stored(row["experiment"], row["model"], row["placement"], path),
        machines=machines(row["machine_num_dict"], path),
        over_full=bool(row["over_recommended_layers"]),
        value=number(row, "max_flow_tokens_per_s", path),
        nodes_with_flow=int(number(row, "nodes_with_flow", path)),
    )


def _stored(experiment: str, model: str, placement: str, path: Path) -> StoredPlacement:
    if experiment.startswith("ablation/"):
        return StoredPlacement(f"placements/ablation_{experiment.removeprefix('ablation/')}")
    pattern = _FOLDERS.get(experiment)
    if experiment == "examples/simulation":
        pattern = _EXAMPLES.get(placement, pattern)
    if pattern is None:
        raise SpecError("unknown experiment", source=path, key="experiment", value=experiment)
    folder = f"placements/{pattern.format(model=model)}"
    if pattern.startswith(_WHOLE_FOLDER):
        return StoredPlacement(folder)
    method, _, part = placement.partition("/")
    if method == "separate" and not pattern.startswith("het42"):
        return StoredPlacement(f"{folder}/separate", f"{part}_")
    return StoredPlacement(f"{folder}/{placement}")


def machines(text: str, path: Path) -> tuple[tuple[str, int], ...]:
    """Machines by type from ``{A100: 4, L4: 8}``. Raises ``SpecError``."""
    pairs = []
    for part in text.strip("{} ").split(","):
        name, _, count = part.strip().partition(":")
        if not name or not count.strip().isdigit():
            raise SpecError("is not a list TYPE: COUNT", source=path, value=text)
        pairs.append((name, int(count)))
    return tuple(sorted(pairs))


def fleet_of(helix: Path, mix: tuple[tuple[str, int], ...]) -> Cluster:
    """The published fleet with these machines. Raises ``InputError``."""
    for name in CLUSTER_FILES:
        cluster = read_cluster(helix / name)
        found = Counter(node.machine_type for node in cluster.nodes)
        if tuple(sorted(found.items())) == mix:
            return cluster
    raise InputError(f"{helix}: no cluster file has the machines {dict(mix)}")


def read_edge_flows(helix: Path) -> Mapping[str, Edges]:
    """Published flow of every link by placement; names as in our clusters."""
    path = helix / "expected" / "max_flow_edges.csv"
    found: dict[str, dict[tuple[str, str], float]] = {}
    for row in read_table(path, "placement", "kind", "from", "to", "flow_tokens_per_s"):
        if row["kind"] == "link":
            pair = (_name(row["from"]), _name(row["to"]))
            found.setdefault(row["placement"], {})[pair] = number(row, "flow_tokens_per_s", path)
    return found


def _name(vertex: str) -> str:
    return COORDINATOR if vertex in ("source", "sink") else vertex
