"""Seconds of the joint planner: 8 models on 8 equal GPUs, 24 models on 24 unequal ones.

    python benchmarks/pool_planning.py [--simulate] [--rate 1.0]

Prints CPU seconds (the second run: without compilation), candidates and attainment by the replay of
the search; with ``--simulate`` finalists are scored by the token-level simulator, as
``penstock plan`` does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from penstock.cost.step_roofline import StepRoofline
from penstock.plan.joint.planner import JointPlanner
from penstock.plan.planner import silent
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolQuestion, Score
from penstock.spec.arrivals import GammaArrivals
from penstock.spec.cluster import Cluster
from penstock.spec.cluster_file import cluster_from_dict
from penstock.spec.intent import Wish
from penstock.spec.lengths import LogNormal, MarginalLengths
from penstock.spec.load import load_model
from penstock.spec.served import ServedModel
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import SLO, ModelStream, SLOClass, Workload

MODELS = ("llama3-8b", "llama2-7b", "llama2-13b", "opt-13b", "yi-34b", "codellama-7b")
VARIANTS = (
    Variant(Precision("float16"), 1.0),
    Variant(Precision("int8"), 0.99),
    Variant(Precision("int4"), 0.97),
)
EQUAL = [{"name": "a", "accelerator": "RTX-A6000", "accelerators_per_node": 8}]
UNEQUAL = [
    {"name": "h", "accelerator": "A100-80GB", "accelerators_per_node": 8},
    {"name": "a", "accelerator": "RTX-A6000", "accelerators_per_node": 8},
    {"name": "l", "accelerator": "L4", "accelerators_per_node": 4, "count": 2},
]


def cluster(groups: list[dict[str, object]]) -> Cluster:
    network = {"in_region": {"bandwidth": "25 Gbit/s", "latency": "50 us"}}
    return cluster_from_dict({"name": "pool", "nodes": groups, "network": network})


def question(groups: list[dict[str, object]], count: int, rate: float) -> PoolQuestion:
    """``count`` models of six kinds, popularity (i + 1)^-0.5, bursts of CV 4, 5 minutes."""
    models, streams = [], []
    weights = [(i + 1) ** -0.5 for i in range(count)]
    for i, weight in enumerate(weights):
        name = f"m{i}"
        spec = load_model(MODELS[i % len(MODELS)])
        models.append(ServedModel(name, spec, VARIANTS, Wish("min_latency")))
        lengths = MarginalLengths(LogNormal(400, 0.8, 16, 3000), LogNormal(120, 0.7, 4, 800))
        limit = SLO(ttft_s=2.0, tpot_s=0.1)
        each = rate * weight / sum(weights)
        streams.append(
            ModelStream(name, lengths, GammaArrivals(each, 4.0), (SLOClass(name, limit),))
        )
    classes = tuple(entry for stream in streams for entry in stream.classes)
    workload = Workload("bench", 300.0, classes=classes, streams=tuple(streams))
    return PoolQuestion(cluster(groups), tuple(models), workload, StepRoofline)


def by_replay(plans: Sequence[PoolPlan]) -> list[float]:
    return [plan.value for plan in plans]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--proposals", type=int, default=JointPlanner().proposals)
    given = parser.parse_args()
    for name, groups, count, factor in (
        ("8 models, 8 A6000", EQUAL, 8, 1.0),
        ("24 models, 24 unequal GPUs", UNEQUAL, 24, 3.0),
    ):
        asked = question(groups, count, factor * given.rate)
        score: Score = by_replay
        if given.simulate:
            from penstock.pool_planning import pool_score  # noqa: PLC0415

            score = pool_score(asked)
        for _ in range(2):
            started = time.process_time()
            found = JointPlanner(given.proposals).plan(asked, score, silent)
            seconds = time.process_time() - started
        requests = sum(1 for _ in asked.workload.requests())
        print(f"{name}: {requests} requests, {100 * found.value:.2f} %, {seconds:.2f} CPU s")
        for nodes, engines in found.groups.items():
            held = ", ".join(f"{m} {found.deployment(m).precision}" for m, _ in engines)
            print(f"  {' + '.join(nodes)}: {held}")
        for line in (*found.reasons, *(f"{u.model}: {u.reason}" for u in found.unplaced)):
            print(f"  {line}")


if __name__ == "__main__":
    main()
