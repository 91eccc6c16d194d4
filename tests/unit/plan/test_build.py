"""From placement and flow to a plan, and the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from plan_fleets import problem_of

from penstock.plan.build import HOLDS_NOTHING, build_plan
from penstock.plan.flow import max_flow
from penstock.plan.placement import Placement
from penstock.plan.plan import Unused
from penstock.spec.cluster import COORDINATOR

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from plan_fleets import problem_of
from penstock.plan.document import format_plan
from penstock.plan.planner import PlannerOptions
from penstock.plan.prune import prune
from penstock.plan.registry import planner
task = problem_of([("A100", 5), ("L4", 8), ("T4", 9)], "llama2-70b", regions=2)
for name in ("swarm", "petals", "homogeneous", "separate+"):
    sys.stdout.write(format_plan(planner(name).plan(task, PlannerOptions(objective="maxflow"))))
sys.stdout.write(str(list(prune(task, 3).cluster.pair_links)))
"""


def test_each_used_node_is_an_engine_and_the_rest_say_why() -> None:
    """Engines in node order with the cost model's memory; nodes without layers are listed."""
    task = problem_of([("A100", 2), ("L4", 2)], "llama2-13b")
    names = [node.name for node in task.cluster.nodes]
    placement = Placement(((0, 20), (20, 40), None, None))
    flow = max_flow(task, placement)
    plan = build_plan(
        task,
        placement,
        flow,
        planner="by hand",
        objective="maxflow",
        value=flow.value,
        unused=[Unused(names[3], "too slow")],
        reasons=["because"],
        seed=7,
    )
    assert [engine.name for engine in plan.engines] == names[:2]
    node = task.cluster.nodes[0]
    assert plan.engines[0].kv_capacity_layer_tokens == task.cost.kv_capacity_layer_tokens(node, 20)
    assert plan.engines[0].limits == task.cost.batch_limits(node, 20)
    assert [(leg.src, leg.dst) for leg in plan.legs] == [
        (COORDINATOR, names[0]),
        (names[0], names[1]),
        (names[1], COORDINATOR),
    ]
    assert plan.unused == (Unused(names[2], HOLDS_NOTHING), Unused(names[3], "too slow"))
    assert plan.max_flow_tokens_per_s == flow.value
    assert plan.seed == 7


def test_plans_are_the_same_bytes_under_another_hash_seed() -> None:
    """Nothing iterates a set of names into a result."""
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000
