"""CPU seconds and memory of ten simulated minutes on a thousand nodes in five regions.

Run: python benchmarks/sim_thousand.py [nodes] [seconds]
"""

from __future__ import annotations

import resource
import sys
import time

from penstock.cost.load import cost_model
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.sim import SimulationOptions, simulate
from penstock.spec.catalogue import accelerator
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.lengths import fixed_lengths
from penstock.spec.load import load_model
from penstock.spec.workload import Saturating, Workload

REGIONS = 5
STAGES = 10
LAYERS = 8


def pipelines(count: int) -> tuple[Plan, object]:
    """Return regional stages of eight 70B layers on A100s; every replica feeds two of the next."""
    model = load_model("llama2-70b")
    cost = cost_model(model)
    gpu = accelerator("A100")
    nodes, engines, legs = [], [], []
    replicas = count // (REGIONS * STAGES)
    for region in range(REGIONS):
        for stage in range(STAGES):
            for i in range(replicas):
                name = f"r{region}-s{stage}-{i}"
                node = Node(name, gpu, 1, "A100", f"r{region}", 10e9, 10e9, 1e9, gpu.memory_bytes)
                nodes.append(node)
                span = Stage(name, stage * LAYERS, (stage + 1) * LAYERS)
                kv = cost.kv_capacity_layer_tokens(node, LAYERS)
                engines.append(Engine(name, (span,), kv, cost.batch_limits(node, LAYERS)))
                if stage == 0:
                    legs.append(Leg(COORDINATOR, name, 100.0, 1e6))
                if stage == STAGES - 1:
                    legs.append(Leg(name, COORDINATOR, 100.0, 1e6))
                else:
                    ahead = [f"r{region}-s{stage + 1}-{j % replicas}" for j in (i, i + 1)]
                    legs.extend(Leg(name, dst, 50.0, 1e6) for dst in ahead)
    near, far = Link(1.25e9, 1e-3), Link(1.25e7, 0.05)
    names = [f"r{i}" for i in range(REGIONS)]
    links = {(a, b): near if a == b else far for a in names for b in names}
    cluster = Cluster("thousand", tuple(nodes), Coordinator("r0", 1e10, 1e10), links, {})
    flow = 100.0 * REGIONS * replicas
    plan = Plan(
        cluster, model, tuple(engines), tuple(legs), "bench", "maxflow", flow, flow,
        routing=Routing(kv_high_water_mark=0.9, expected_output_tokens=232.0),
    )  # fmt: skip
    return plan, cost


def main() -> None:
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 600.0
    plan, cost = pipelines(nodes)
    feeder = Saturating(initial=4 * nodes, interval_s=0.02)
    workload = Workload("saturating", seconds, lengths=fixed_lengths(763, 232), arrivals=feeder)
    start = time.process_time()
    run = simulate(plan, workload, cost, SimulationOptions(start_s=0.0))
    spent = time.process_time() - start
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(plan.engines)} nodes, {seconds:.0f} s simulated: {spent:.1f} s CPU, {rss:.0f} MiB")
    print(dict(run.counters), f"{len(run.tokens.times_s)} tokens")


if __name__ == "__main__":
    main()
