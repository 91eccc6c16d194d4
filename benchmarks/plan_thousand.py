"""Plan 1,000 nodes in 5 regions and print seconds, flow and bound.

python benchmarks/plan_thousand.py [--objective maxflow|throughput] [--model llama2-70b]
"""

from __future__ import annotations

import argparse
import time
from random import Random

from penstock.cost.load import cost_model
from penstock.errors import SpecError
from penstock.plan.penstock_planner import PenstockPlanner
from penstock.plan.planner import PlannerOptions
from penstock.plan.problem import placement_problem
from penstock.spec.catalogue import parse_machine_type
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.models import preset

MACHINES = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")
REGIONS = ("us-east", "us-west", "eu-north", "asia-east", "brazil")


def thousand_nodes(count: int = 1000, seed: int = 0) -> Cluster:
    """A fleet that depends on ``seed`` alone: mixed machines, 10 Gbit/s inside regions, 2 outside.

    Between regions: 250 MB/s and 40 to 180 ms, equal both ways.
    """
    rng = Random(seed)
    nodes = []
    for i in range(count):
        machine = rng.choice(MACHINES)
        accelerator, gpus = parse_machine_type(machine)
        region = REGIONS[i * len(REGIONS) // count]
        nodes.append(
            Node(
                f"{region}-{i:04d}", accelerator, gpus, machine, region,
                10e9, 10e9, 1e9, accelerator.memory_bytes * gpus,
            )
        )  # fmt: skip
    links = {}
    for a, here in enumerate(REGIONS):
        for there in REGIONS[a:]:
            link = Link(1.25e9, 0.001) if here == there else Link(250e6, rng.randint(40, 180) / 1e3)
            links[here, there] = links[there, here] = link
    return Cluster("thousand", tuple(nodes), Coordinator(REGIONS[0], 10e9, 10e9), links, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", choices=("maxflow", "throughput"), default="maxflow")
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--nodes", type=int, default=1000)
    arguments = parser.parse_args()
    model = preset(arguments.model)
    if model is None:
        raise SpecError("unknown model", key="--model", value=arguments.model)
    started, cpu = time.perf_counter(), time.process_time()
    problem = placement_problem(thousand_nodes(arguments.nodes), cost_model(model))
    print(f"problem: {time.perf_counter() - started:.1f} s")
    plan = PenstockPlanner().plan(problem, PlannerOptions(objective=arguments.objective))
    print(
        f"{arguments.objective} {plan.value:.0f}, max flow {plan.max_flow_tokens_per_s:.0f}, "
        f"bound {plan.max_flow_bound_tokens_per_s:.0f} ({plan.bound_method}), "
        f"{len(plan.engines)} engines, {len(plan.unused)} unused, "
        f"{time.perf_counter() - started:.1f} s wall, {time.process_time() - cpu:.1f} s CPU"
    )
    for reason in plan.reasons:
        print(" ", reason)


if __name__ == "__main__":
    main()
