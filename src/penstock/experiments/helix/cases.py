"""The published experiments as values: what to simulate, and the figures that were printed.

Read from ``expected/experiments.csv`` (settings of every run) and ``expected/expected_results.csv``
(every figure of the artifact guide). Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from penstock.errors import SpecError
from penstock.experiments.reference import Record, number, optional, read_table
from penstock.experiments.rows import Labels
from penstock.plan.plan import AdmissionName, RouterName
from penstock.sim.options import Granularity

Kind = Literal["simulation", "prototype"]
Mode = Literal["offline", "online"]
PERCENTILES = ("p5", "p25", "p50", "p75", "p95")
TOTAL = "total"

_ROUTERS: Mapping[str, RouterName] = {
    "maxflow": "maxflow",
    "swarm": "swarm",
    "random": "random",
    "naive(random)": "random",
    "shortest_queue": "shortest-queue",
}
_FOLDERS = {
    "single": "single_cluster",
    "distributed": "distributed_clusters",
    "het42": "high_heterogeneity",
    "ablation_no_prune_24": "ablation",
    "ablation_no_prune_42": "ablation",
}
_CLUSTERS = {
    "clusters/single": "single24",
    "clusters/distributed": "distributed24",
    "clusters/high_heterogeneity": "het42",
    "clusters/quality": "quality10",
}
MODELS = {"llama30b": "llama-30b", "llama70b": "llama2-70b"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Load and measured window of one run.

    ``in_flight``: initial queries where feeding follows KV memory (``feed_mark`` given), else the
    constant number in flight; None for traffic that arrives at ``token_rate`` (tokens/s, prompt
    and output). ``drains``: run on after the window until all are served.
    """

    token_rate: float | None
    in_flight: int | None
    feed_mark: float | None
    warmup_s: float
    window_s: float
    drains: bool


@dataclass(frozen=True, slots=True)
class Simulation:
    """One run of the simulator in the published settings.

    ``placement`` is a folder under ``placements/``; ``prefix`` picks one of several placements in
    it; ``cluster_file`` is the fleet it was made for. Only offline Helix turned requests away
    (``drop``). Online it masks by KV memory and never had to wait (``queue`` is then the same);
    the baselines look at no memory at all (``none``).
    """

    model: str
    placement: str
    prefix: str
    router: RouterName
    cluster_file: str
    force_set: bool
    traffic: Traffic
    kv_high_water_mark: float | None
    output_ratio: float | None
    admission: AdmissionName
    granularity: Granularity = "layerwise"

    @property
    def key(self) -> str:
        """Name of the stored placement, as ``expected/max_flow_edges.csv`` writes it."""
        return self.placement.removeprefix("placements/")


@dataclass(frozen=True, slots=True)
class Figure:
    """One published figure. ``scope`` is a sub-cluster or ``total``."""

    scope: str
    metric: str
    unit: str
    value: float
    source_line: str


@dataclass(frozen=True)
class Case:
    """One published measurement: simulations whose throughputs add up and whose samples pool."""

    section: str
    experiment: str
    kind: Kind
    model: str
    mode: Mode
    method: str
    cluster: str
    parts: Mapping[str, Simulation]
    figures: tuple[Figure, ...] = field(default=())

    @property
    def labels(self) -> Labels:
        kind = "" if self.kind == "simulation" else " (prototype)"
        return Labels(
            f"{self.section} {self.experiment}", f"{self.model} {self.mode} {self.method}{kind}"
        )

    def matches(self, words: str) -> bool:
        """Whether every word occurs in what the case is called."""
        return matches(words, self.labels, f"{self.cluster} {self.kind}")


def _admission(row: Record) -> AdmissionName:
    if row["scheduler"] != "maxflow":
        return "none"
    return "queue" if row["mode"] == "online" else "drop"


def matches(words: str, labels: Labels, more: str = "") -> bool:
    """Whether every one of ``words`` occurs in the labels (or in ``more``), in any case."""
    text = f"{labels.experiment} {labels.case} {more}".lower()
    return all(word in text for word in words.lower().split())


def read_cases(helix: Path) -> tuple[Case, ...]:
    """Every published case in the order of ``experiments.csv``; ``helix`` is its data folder."""
    path = helix / "expected" / "experiments.csv"
    rows = read_table(path, "section", "method", "scope", "placement", "scheduler", "kind")
    figures = read_figures(helix)
    groups: dict[tuple[str, str, str, str, str, str], dict[str, Simulation]] = {}
    clusters: dict[tuple[str, str, str, str, str, str], str] = {}
    for row in rows:
        if row["scope"] == TOTAL and not row["cluster_file"]:
            continue
        simulation = _simulation(row, path)
        for method in _methods(row):
            place = (row["section"], row["experiment"], row["kind"], row["model"], row["mode"])
            key = (*place, method)
            groups.setdefault(key, {})[row["scope"]] = simulation
            clusters[key] = _CLUSTERS[str(Path(row["cluster_file"]).parent)]
    return tuple(
        _case(key, parts, clusters[key], figures.get(_figure_key(key), ()))
        for key, parts in groups.items()
    )


def _case(
    key: tuple[str, str, str, str, str, str],
    parts: Mapping[str, Simulation],
    cluster: str,
    figures: Sequence[Figure],
) -> Case:
    section, experiment, kind, model, mode, method = key
    return Case(
        section=section,
        experiment=experiment,
        kind="prototype" if kind == "prototype" else "simulation",
        model=MODELS[model],
        mode="online" if mode == "online" else "offline",
        method=method,
        cluster=cluster,
        parts=dict(parts),
        figures=tuple(figures),
    )


def _methods(row: Record) -> tuple[str, ...]:
    """The methods a run counts for: SP's pipelines are part of SP+ too."""
    name = row["method"].partition(":")[2] or row["method"]
    name = {"ilp": "helix", "maxflow": "helix", "naive(random)": "random"}.get(name, name)
    if name == "separate+sp_plus":
        return ("separate", "sp_plus")
    return (name,)


def _figure_key(key: tuple[str, str, str, str, str, str]) -> tuple[str, ...]:
    section, experiment, kind, model, mode, method = key
    if experiment.startswith("ablation_"):
        method = f"{method}_{experiment.removeprefix('ablation_')}"
    return (section, _FOLDERS.get(experiment, experiment), kind, model, mode, method)


def _simulation(row: Record, path: Path) -> Simulation:
    if row["scheduler"] not in _ROUTERS:
        raise SpecError("unknown scheduler", source=path, key="scheduler", value=row["scheduler"])
    folder, _, rest = row["placement"].partition(" (")
    in_flight = optional(row, "initial_queries", path)
    traffic = Traffic(
        token_rate=optional(row, "online_token_rate", path),
        in_flight=None if in_flight is None else int(in_flight),
        feed_mark=optional(row, "feed_hwm", path),
        warmup_s=number(row, "warm_up_s", path),
        window_s=number(row, "measured_window_s", path),
        drains=row["mode"] == "online" and row["kind"] == "simulation",
    )
    return Simulation(
        model=row["model"],
        placement=folder,
        prefix=rest.removesuffix("*)"),
        router=_ROUTERS[row["scheduler"]],
        cluster_file=row["cluster_file"],
        # Real machines hold more layers than recommended without being told to.
        force_set=row["force_set"] == "yes" or row["kind"] == "prototype",
        traffic=traffic,
        kv_high_water_mark=optional(row, "kv_expected_hwm", path),
        output_ratio=optional(row, "expected_output_ratio", path),
        admission=_admission(row),
    )


def read_figures(helix: Path) -> Mapping[tuple[str, ...], tuple[Figure, ...]]:
    """Every printed figure by (section, folder, kind, model, mode, method)."""
    path = helix / "expected" / "expected_results.csv"
    found: dict[tuple[str, ...], list[Figure]] = {}
    columns = ("section", "experiment_dir", "kind", "model", "mode", "method")
    for row in read_table(path, *columns, "scope", "metric", "value", *PERCENTILES):
        bucket = found.setdefault(tuple(row[column] for column in columns), [])
        # The mean over sub-clusters has a line of its own in the guide.
        scope = row["scope"].removesuffix("_mean")
        metric = row["metric"].replace("_", " ")
        for column in ("value", *PERCENTILES):
            value = optional(row, column, path)
            if value is not None:
                name = metric if column != "value" else _plain_metric(metric)
                if column != "value":
                    name = f"{metric} {column}"
                bucket.append(Figure(scope, name, row["unit"], value, row["guide_line"]))
    return {key: tuple(figures) for key, figures in found.items()}


def _plain_metric(metric: str) -> str:
    return f"{metric} mean" if metric.endswith("latency") else metric
