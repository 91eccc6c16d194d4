"""The reference folder of AlpaServe: profiles, scenarios, workloads, placements, outcomes."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import InputError
from penstock.experiments.reference import number, read_table
from penstock.plan.pool.model import (
    NOBODY,
    Group,
    LatencyProfile,
    PoolCluster,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    PoolTraffic,
    Shape,
    Timing,
)
from penstock.plan.pool.simulate import TimedPlacement

FAULT_FACTOR = 5.0
"""The published table holds a fifth of every measured latency."""


def read_json(path: Path) -> Any:
    """Raises ``InputError`` where the file is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the reference") from error


def read_profiles(runs: Path) -> Mapping[str, LatencyProfile]:
    """Every profile of both families by name, latencies as stored."""
    found = {}
    for family in read_json(runs / "profiles.json").values():
        for name, entries in family.items():
            timings = {
                Shape(entry["tp"], entry["pp"]): Timing(
                    {1: tuple(entry["stage_latency_s"])}, tuple(entry["stage_weight_bytes"])
                )
                for entry in entries
            }
            found[name] = LatencyProfile(name, timings)
    return found


def read_workload(path: Path) -> PoolTraffic:
    """A ``t_s,model_index,slo_s`` table, gzipped. Raises ``InputError``."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return PoolTraffic(
            np.array([float(row["t_s"]) for row in rows]),
            np.array([int(row["model_index"]) for row in rows], dtype=np.int32),
            np.array([float(row["slo_s"]) for row in rows]),
        )
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the reference") from error


@dataclass(frozen=True)
class Scenario:
    """One stored scenario: right ids, latencies as stored in the profile table."""

    name: str
    problem: PoolProblem
    maveriq: bool

    def variant(self, name: str) -> PoolProblem:
        """``published`` (both faults), ``ids_fixed`` or ``ids_and_latency_fixed``."""
        if name == "published":
            return with_shifted_ids(self.problem)
        if name == "ids_and_latency_fixed":
            return with_true_latency(self.problem)
        return self.problem


def with_shifted_ids(problem: PoolProblem) -> PoolProblem:
    """The first fault: a request is for the next model, one for the last model for nobody."""
    count = len(problem.models)
    ids = [*range(1, count), NOBODY]
    return replace(problem, traffic=problem.traffic.renamed(ids))


def with_true_latency(problem: PoolProblem) -> PoolProblem:
    """The second fault undone: every latency times 5."""
    models = tuple(
        replace(model, profile=model.profile.scaled(FAULT_FACTOR)) for model in problem.models
    )
    return replace(problem, models=models)


def read_scenarios(runs: Path) -> Mapping[str, Scenario]:
    """Every stored scenario by name."""
    profiles = read_profiles(runs)
    found = {}
    for entry in read_json(runs / "scenarios.json"):
        models = tuple(
            PoolModel(
                profiles[model["profile"]],
                model.get("slo_s", float("inf")),
                model.get("rate_rps", 0.0),
            )
            for model in entry["models"]
        )
        problem = PoolProblem(
            models,
            PoolCluster(entry["gpus"], entry["gpu_mem_bytes"]),
            read_workload(runs / entry["workload"]),
        )
        found[entry["id"]] = Scenario(entry["id"], problem, entry["family"] != "synthetic")
    return found


def _placement(groups: Any) -> PoolPlacement:
    return PoolPlacement(tuple(Group(Shape(g["tp"], g["pp"]), tuple(g["models"])) for g in groups))


def read_placements(runs: Path) -> Mapping[str, PoolPlacement | TimedPlacement]:
    """Stored placements by ``scenario|variant|policy`` or ``scenario|policy``."""
    found: dict[str, PoolPlacement | TimedPlacement] = {}
    for key, entry in read_json(runs / "placements.json").items():
        if "groups" in entry:
            found[key] = _placement(entry["groups"])
        else:
            segments = entry["segments"]
            found[key] = TimedPlacement(
                tuple(float(one["start"]) for one in segments),
                tuple(_placement(one["groups"]) for one in segments),
            )
    return found


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Models of a MaverIQ set in load order, and the minute at which each is loaded."""

    models: tuple[str, ...]
    load_bins: tuple[int, ...]


def read_model_sets(maveriq: Path) -> Mapping[str, ModelSet]:
    path = maveriq / "model_sets.csv"
    rows = read_table(path, "model_set", "model", "load_bin")
    sets = {}
    for name in dict.fromkeys(row["model_set"] for row in rows):
        mine = [row for row in rows if row["model_set"] == name]
        sets[name] = ModelSet(
            tuple(row["model"] for row in mine), tuple(int(row["load_bin"]) for row in mine)
        )
    return sets


def read_minutes(maveriq: Path) -> Mapping[str, list[int]]:
    """Requests of every minute by trace: ``code`` and ``conversation``."""
    path = maveriq / "azure_minute_bins.csv"
    traces = ("code", "conversation")
    rows = read_table(path, *(f"{trace}_requests" for trace in traces))
    return {
        trace: [
            int(number(row, f"{trace}_requests", path))
            for row in rows
            if row[f"{trace}_requests"].strip()
        ]
        for trace in traces
    }


def model_deadlines(scenarios: Mapping[str, Scenario], maveriq: Path) -> Mapping[str, float]:
    """Seconds at SLO 5x by model: as in the stored workloads, else from the ground truth."""
    path = maveriq / "slo_base.csv"
    limits = {row["model"]: number(row, "slo5_s", path) for row in read_table(path, "slo5_s")}
    for scenario in scenarios.values():
        traffic = scenario.problem.traffic
        if scenario.maveriq:
            for m, model in enumerate(scenario.problem.models):
                of_model = traffic.slo_s[traffic.model == m]
                if len(of_model):
                    limits[model.profile.name] = float(of_model[0])
    return limits
