"""Figures 11 and 12: the two searches and vLLM's shapes compared, and how long searches take."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.linear import DistServeEngine
from penstock.errors import Infeasible, SpecError
from penstock.experiments.distserve.compat import (
    Outcome,
    Probes,
    poisson_trace,
    run_with,
    sampled,
)
from penstock.experiments.distserve.data import read_lengths
from penstock.experiments.rows import Labels, Row, at_least, information
from penstock.plan.goodput.distserve import (
    Affinity,
    Bisection,
    Shape,
    colocated_instances,
    pairs_of_instances,
    search_goodput,
)
from penstock.spec.load import load_model

MODEL = "opt-66b"
LIMITS = (0.4, 0.1)
RATES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
SCALES = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
SCALE_RATE = 0.375
REQUESTS = 200
NODES, GPUS_PER_NODE = 2, 8
ORDER = ("DistServe-High", "DistServe-Low", "vLLM++", "vLLM")
UNPUBLISHED = "not published as numbers; synthetic lengths, 2 nodes of 8 GPUs"
SIZES: tuple[tuple[int, int], ...] = ((1, 2), (1, 4), (1, 8), (2, 8), (4, 8))


def shapes_of(system: str) -> tuple[DistServeEngine, list[Shape]]:
    """The engine and every shape that a system of Figure 11 may choose from."""
    model = load_model(MODEL)
    if system == "DistServe-High":
        return "distserve", pairs_of_instances(model, "high", NODES, GPUS_PER_NODE)
    if system == "DistServe-Low":
        return "distserve", pairs_of_instances(model, "low", NODES, GPUS_PER_NODE)
    every = colocated_instances(model, NODES * GPUS_PER_NODE)
    if system == "vLLM++":
        return "vllm", every
    return "vllm", [shape for shape in every if shape.prefill_pp == 1]


def ablation_rows(distserve: Path, rate: float) -> list[Row]:
    """Figure 11 at one rate per GPU: the best shape of every system; its right part at 0.375."""
    lengths = sampled(read_lengths(distserve, "sharegpt"), REQUESTS)
    outcomes: dict[tuple[DistServeEngine, Shape], Outcome | None] = {}
    by_rate: dict[str, float] = {}
    by_scale: dict[str, list[float]] = {}
    for system in ORDER:
        engine, shapes = shapes_of(system)
        for shape in shapes:
            if (engine, shape) not in outcomes:
                outcomes[engine, shape] = _run(engine, shape, rate, lengths)
        found = [run for shape in shapes if (run := outcomes[engine, shape]) is not None]
        by_rate[system] = max(100 * run.attainment(*LIMITS)[2] for run in found)
        by_scale[system] = [
            max(100 * run.attainment(*(x * limit for limit in LIMITS))[2] for run in found)
            for x in SCALES
        ]
    labels = Labels("figure 11", f"OPT-66B {rate:g} req/s per GPU")
    rows = [
        information(labels.of(f"{system} attainment", "%"), None, share, note=UNPUBLISHED)
        for system, share in by_rate.items()
    ]
    rows.append(_order(labels, [by_rate[system] for system in ORDER]))
    if rate == SCALE_RATE:
        for i, scale in enumerate(SCALES):
            labels = Labels("figure 11", f"OPT-66B SLO scale {scale:g}")
            rows += [
                information(labels.of(f"{system} attainment", "%"), None, y[i], note=UNPUBLISHED)
                for system, y in by_scale.items()
            ]
            rows.append(_order(labels, [by_scale[system][i] for system in ORDER]))
    return rows


def _run(
    engine: DistServeEngine, shape: Shape, rate: float, lengths: list[tuple[int, int]]
) -> Outcome | None:
    cost = DistServeHostCost(load_model(MODEL), engine)
    try:
        return run_with(cost, shape, poisson_trace(lengths, rate * shape.num_gpus))
    except (SpecError, Infeasible):
        return None


def _order(labels: Labels, shares: list[float]) -> Row:
    """High >= Low > vLLM++ >= vLLM, as the paper says; ties count as kept."""
    kept = sum(a >= b for a, b in pairwise(shares))
    subject = labels.of("neighbours in the published order", "%")
    return at_least(subject, 100.0, 100.0 * kept / (len(shares) - 1), 100.0)


def search_time_rows(distserve: Path, affinity: Affinity, nodes: int, gpus: int) -> list[Row]:
    """Figure 12: CPU seconds of the search over a cluster of ``nodes`` times ``gpus`` GPUs."""
    lengths = sampled(read_lengths(distserve, "sharegpt"), 300)
    shapes = pairs_of_instances(load_model("opt-13b"), affinity, nodes, gpus)
    probes = Probes("opt-13b", "distserve", lengths, 0.2, 0.1)
    started = time.process_time()
    found = search_goodput(shapes, probes.both, Bisection())
    cpu_s = time.process_time() - started
    labels = Labels("figure 12", f"OPT-13B {affinity} affinity, {nodes * gpus} GPUs")
    probed = sum(candidate.probes for candidate in found.candidates)
    note = "not published as numbers: up to a few minutes on a host of 96 cores"
    return [
        information(labels.of("shapes", ""), None, len(shapes), note=note),
        information(labels.of("simulations", ""), None, probed, note=note),
        information(labels.of("CPU time", "s"), None, cpu_s, note=note),
        information(
            labels.of("goodput per GPU", "req/s"),
            None,
            found.candidates[0].rate_per_gpu if found.candidates else 0.0,
            note=note,
        ),
    ]
