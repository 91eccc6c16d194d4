"""Fit the roofline: ``python -m penstock.cost.fit --profiles DIR --collectives DIR``.

``--profiles`` holds layer tables (Helix format); ``--collectives`` holds ``comm_<gpu>.csv.gz``
files (collective, impl, launch, world_size, bytes, time_ms) of all-reduce times over NVLink, which
the profiled machines lack. Prints the error per phase and machine and, with ``--write``, renews
``coefficients.yaml``. The fit is a deterministic pattern search on the mean absolute log ratio of
modelled to measured time.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

import yaml

from penstock.cost.arithmetic import all_reduce_bytes, layer_work
from penstock.cost.coefficients import BUNDLED, Chip, Coefficients, Group, Shared
from penstock.cost.roofline import RooflineCost, roofline_timer
from penstock.cost.tables import LayerTableCost, normalised_model_name
from penstock.spec.catalogue import catalogue
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec

MACHINES = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")
CHIPS = ("A100", "V100", "L4", "T4")
# Share of memory the profiled engine was given (Helix artifact, vLLM 0.4.0.post1).
PROFILED_UTILIZATION = 0.8
MODELS = (
    ModelSpec("llama1-30b", 60, 6656, 52, 52, 128, 17920, 32000, 2048, dtype="fp16"),
    ModelSpec("llama2-70b", 80, 8192, 64, 8, 128, 28672, 32000, 4096, dtype="fp16"),
)
_START_CHIP = (0.5, 0.5, 0.8)
_START_SHARED = (100e-6, 30.0)
_START_GROUP = (0.5, 20e-6)
_START_CONTEXT_TOKENS = 800.0
# A share of a datasheet peak cannot pass 1; the launch time of a layer stays within reason.
_UPPER_CHIP = (0.95, 0.95, 0.95)
_UPPER_SHARED = (500e-6, 100.0)
_UPPER_GROUP = (1.0, 200e-6)
_NVLINK = ("a100_sxm", "h100_sxm")
_NOTES = (
    "engine of the tables: vLLM 0.4.0.post1, eager mode, fp16, one layer at a time",
    "the decode tables ignore context length; the context they were taken at was fitted too",
    "most prompt points are whole milliseconds: small batches of fast machines are coarse",
    "prefill and decode are separate steps, so their times are added",
    "NVLink groups were not in the tables: against Splitwise's LLaMA-2 70B times, groups of 2 are "
    "within about 10 % in decode, groups of 8 come out 25 to 45 % too fast",
)


@dataclass(frozen=True)
class Series:
    """One measured table: times of one layer over batch size."""

    model: ModelSpec
    node: Node
    phase: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Error:
    """Relative error of one table, as fractions."""

    label: str
    median: float
    p90: float


def machine(machine_type: str) -> Node:
    """A profiled machine with datasheet figures."""
    name, _, count = machine_type.partition("x")
    gpus = int(count or 1)
    chip = catalogue().get(name)
    memory = gpus * chip.memory_bytes
    return Node(machine_type, chip, gpus, machine_type, "", 1e10, 1e10, 1e9, memory)


def read_series(profiles: Path) -> list[Series]:
    """All tables of the two published models."""
    series = []
    for model in MODELS:
        cost = LayerTableCost(model, profiles)
        for name in MACHINES:
            node = machine(name)
            profile = cost.profile(node)
            for phase, table in (("prefill", profile.prompt), ("decode", profile.decode)):
                points = zip(table.sizes.tolist(), table.seconds.tolist(), strict=True)
                series.append(Series(model, node, phase, tuple((x, t) for x, t in points if x > 0)))
    return series


def unpack(values: Sequence[float]) -> tuple[Coefficients, float]:
    """Coefficients without texts, and the decode context of the tables, from a flat list."""
    width = len(fields(Chip))
    chips = {name: Chip(*values[i * width : (i + 1) * width]) for i, name in enumerate(CHIPS)}
    launch_s, passes, share, latency_s, context = values[len(CHIPS) * width :]
    middle = Chip(*(median(getattr(c, f.name) for c in chips.values()) for f in fields(Chip)))
    group = Group(share, latency_s)
    shared = Shared(launch_s, passes, usable_memory=1.0)
    return Coefficients(chips, middle, shared, group, group, "", "", "", ()), context


def fit(series: Sequence[Series]) -> tuple[Coefficients, float]:
    """Fit chips, shared figures and PCIe all-reduce; also the decode context of the tables."""
    start = [*(_START_CHIP * len(CHIPS)), *_START_SHARED, *_START_GROUP, _START_CONTEXT_TOKENS]
    upper = [*(_UPPER_CHIP * len(CHIPS)), *_UPPER_SHARED, *_UPPER_GROUP, 4096.0]

    def loss(logs: Sequence[float]) -> float:
        if any(x > math.log(top) for x, top in zip(logs, upper, strict=True)):
            return math.inf
        found, context = unpack([math.exp(x) for x in logs])
        return _mean_log([r for s in series for r in _ratios(s, found, context)])

    return unpack([math.exp(x) for x in pattern_search(loss, [math.log(x) for x in start])])


def fit_nvlink(folder: Path) -> tuple[Group, Error]:
    """Bandwidth share and latency of an all-reduce over NVLink (groups of 2, 4 and 8)."""
    points: list[tuple[float, int, float, float]] = []
    for name in _NVLINK:
        bandwidth = catalogue().get(name.split("_")[0]).interconnect_bytes_per_s
        with gzip.open(folder / f"comm_{name}.csv.gz", "rt", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["collective"] == "all_reduce" and row["launch"] == "nccl-tests":
                    members = int(row["world_size"])
                    ring = all_reduce_bytes(float(row["bytes"]), members)
                    points.append((ring, members, bandwidth, float(row["time_ms"]) / 1000))

    def ratios(logs: Sequence[float]) -> list[float]:
        group = Group(math.exp(logs[0]), math.exp(logs[1]))
        return [
            (group.latency_of(members) + ring / (peak * group.bandwidth)) / t
            for ring, members, peak, t in points
        ]

    best = pattern_search(lambda logs: _mean_log(ratios(logs)), [math.log(x) for x in _START_GROUP])
    found = Group(math.exp(best[0]), math.exp(best[1]))
    return found, _error("all-reduce NVLink", [abs(r - 1) for r in ratios(best)])


def pattern_search(
    loss: Callable[[Sequence[float]], float],
    start: Sequence[float],
    *,
    step: float = 0.3,
    smallest: float = 0.002,
) -> list[float]:
    """Minimise ``loss``: try each coordinate up and down, halve the step when none helps.

    Hooke and Jeeves (1961), exploratory moves with their sum repeated as pattern move.
    """
    at, value = list(start), loss(start)
    while step > smallest:
        before, start_value = list(at), value
        for i in range(len(at)):
            for move in (step, -step):
                trial = [*at[:i], at[i] + move, *at[i + 1 :]]
                found = loss(trial)
                if found < value:
                    at, value = trial, found
                    break
        if value >= start_value:
            step /= 2
            continue
        leap = [2 * new - old for new, old in zip(at, before, strict=True)]
        found = loss(leap)
        if found < value:
            at, value = leap, found
    return at


def fit_usable_memory(profiles: Path, base: Coefficients) -> tuple[Coefficients, Error]:
    """Share of the printed memory that explains the KV capacities best; and the error left."""
    rows: list[tuple[ModelSpec, Node, int, int]] = []
    with (profiles / "node_capacity.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = normalised_model_name(row["model"])
            model = next(m for m in MODELS if normalised_model_name(m.name) == wanted)
            entries = int(row["kv_cache_capacity_entries"])
            rows.append((model, machine(row["machine"]), int(row["num_layers"]), entries))

    def errors(share: float) -> tuple[Coefficients, list[float]]:
        found = replace(base, shared=replace(base.shared, usable_memory=share))
        costs = {
            m.name: RooflineCost(m, found, gpu_memory_utilization=PROFILED_UTILIZATION)
            for m in MODELS
        }
        return found, [
            abs(costs[m.name].kv_capacity_layer_tokens(node, k) / entries - 1)
            for m, node, k, entries in rows
        ]

    def mean(logs: Sequence[float]) -> float:
        left = errors(math.exp(logs[0]))[1]
        return sum(left) / len(left)

    best = math.exp(pattern_search(mean, [0.0], step=0.05, smallest=1e-4)[0])
    found, left = errors(round(best, 4))
    return found, _error("KV capacity", left)


def table_errors(series: Iterable[Series], found: Coefficients, context: float) -> list[Error]:
    """Relative error of every table."""
    return [
        _error(
            f"{s.phase} {s.model.name} {s.node.machine_type}",
            [abs(r - 1) for r in _ratios(s, found, context)],
        )
        for s in series
    ]


def by_phase_and_machine(
    series: Sequence[Series], found: Coefficients, context: float
) -> list[Error]:
    """Both models together: what the bundled file states."""
    errors = []
    for phase in ("prefill", "decode"):
        for name in (*MACHINES, "all"):
            left = [
                abs(r - 1)
                for s in series
                if s.phase == phase and name in ("all", s.node.machine_type)
                for r in _ratios(s, found, context)
            ]
            errors.append(_error(f"{phase} {name}", left))
    return errors


def document(found: Coefficients, context: float, errors: Sequence[Error]) -> str:
    """The text of ``coefficients.yaml``."""
    overall = {e.label: e for e in errors}
    body = {
        "chips": {name: _rounded(chip) for name, chip in found.chips.items()},
        "other_chips": _rounded(found.other),
        "shared": _rounded(found.shared),
        "all_reduce": {"pcie": _rounded(found.pcie), "nvlink": _rounded(found.nvlink)},
        "source": "fitted to the layer tables of the Helix (ASPLOS'25) artifact; NVLink all-reduce "
        "to nccl-tests on A100 and H100 of ai-dynamo/aiconfigurator (both Apache-2.0)",
        "domain": "LLaMA 30B and LLaMA-2 70B on " + ", ".join(MACHINES),
        "error": "; ".join(
            f"{label}: median {overall[key].median:.1%}, p90 {overall[key].p90:.1%}"
            for label, key in (
                ("prefill", "prefill all"),
                ("decode", "decode all"),
                ("KV capacity", "KV capacity"),
                ("NVLink all-reduce", "all-reduce NVLink"),
            )
        ),
        "notes": [*_NOTES, f"decode context of the tables, as fitted: {context:.0f} tokens"],
        "relative_error": {
            e.label: {"median": round(e.median, 3), "p90": round(e.p90, 3)} for e in errors
        },
    }
    head = (
        "# Written by `python -m penstock.cost.fit --profiles DIR --write`. What the names mean:\n"
        "# cost/coefficients.py. `relative_error` is over the tables the figures were fitted to.\n"
    )
    return head + yaml.safe_dump(body, sort_keys=False, width=100)


def _ratios(series: Series, found: Coefficients, context: float) -> list[float]:
    seconds = roofline_timer(layer_work(series.model), series.model, series.node, found)
    if series.phase == "prefill":
        return [seconds(x, 0, 0) / t for x, t in series.points]
    return [seconds(0, x, int(x * context)) / t for x, t in series.points]


def _mean_log(ratios: Sequence[float]) -> float:
    return sum(abs(math.log(r)) for r in ratios) / len(ratios)


def _error(label: str, left: Sequence[float]) -> Error:
    ordered = sorted(left)
    return Error(label, median(ordered), ordered[int(len(ordered) * 0.9)])


def _rounded(values: Chip | Shared | Group) -> dict[str, float]:
    return {f.name: float(f"{getattr(values, f.name):.4g}") for f in fields(values)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="penstock.cost.fit", description=__doc__)
    parser.add_argument("--profiles", type=Path, required=True, help="folder of layer tables")
    parser.add_argument("--collectives", type=Path, required=True, help="folder of comm tables")
    parser.add_argument("--write", action="store_true", help="renew coefficients.yaml")
    options = parser.parse_args(arguments)
    series = read_series(options.profiles)
    found, context = fit(series)
    nvlink, link_error = fit_nvlink(options.collectives)
    found, memory_error = fit_usable_memory(options.profiles, replace(found, nvlink=nvlink))
    errors = [*by_phase_and_machine(series, found, context), memory_error, link_error]
    for error in (*table_errors(series, found, context), *errors):
        print(f"{error.label:32} median {error.median:6.1%}  p90 {error.p90:6.1%}")
    text = document(found, context, errors)
    if options.write:
        BUNDLED.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
