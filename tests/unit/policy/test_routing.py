"""Paths, KV expectation and admission."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest

from penstock.cost.base import BatchLimits
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.policy.admission import ClosedLoopFeeder, Gate, SaturatingFeeder, Verdict
from penstock.policy.kv import KVExpectation, KVPool, preemption_victim
from penstock.policy.routing import make_router
from penstock.policy.topology import Topology
from penstock.spec.cluster import COORDINATOR, Cluster
from penstock.spec.hardware import Coordinator
from penstock.spec.model import ModelSpec
from penstock.spec.workload import ClosedLoop, Saturating

MODEL = ModelSpec("toy", 4, 256, 4, 4, 64, 512, 1000, 4096)


def plan(flows, *, kv=4000, routing=None) -> Plan:
    """Engines a, b hold layers 0-1, c, d hold 2-3; ``flows`` by (src, dst), "" = coordinator."""
    spans = {"a": (0, 2), "b": (0, 2), "c": (2, 4), "d": (2, 4)}
    limits = BatchLimits(1, 512, 8, 8000)
    return Plan(
        cluster=Cluster("toy", (), Coordinator("r", 1e9, 1e9), {}, {}),
        model=MODEL,
        engines=tuple(
            Engine(name, (Stage(name, *span),), kv, limits) for name, span in spans.items()
        ),
        legs=tuple(Leg(a or COORDINATOR, b or COORDINATOR, f, 1e6) for (a, b), f in flows.items()),
        planner="test",
        objective="maxflow",
        value=1.0,
        max_flow_tokens_per_s=1.0,
        routing=routing or Routing(expected_output_tokens=100.0),
    )


FLOWS = {
    ("", "a"): 75.0, ("", "b"): 25.0, ("a", "c"): 75.0, ("a", "d"): 1.0,
    ("b", "d"): 25.0, ("c", ""): 75.0, ("d", ""): 25.0,
}  # fmt: skip


def parts(document: Plan):
    topology = Topology.of(document)
    kv = KVExpectation(topology)
    return topology, kv, make_router(topology, document.routing, kv, Random(0))


def names(topology, route):
    return [topology.names[hop.engine] for hop in route.hops]


def test_paths_follow_the_flow_and_leave_trickles_alone():
    """Three in four prompts take a; the leg with under 5 % of a's flow is never used."""
    topology, _, router = parts(plan(FLOWS))
    routes = [names(topology, router.route(100, 200, check_kv=True)) for _ in range(400)]
    assert routes.count(["a", "c"]) == 300
    assert routes.count(["b", "d"]) == 100


def test_a_full_engine_is_passed_by_and_a_dead_end_leaves_no_load_behind():
    """Expected KV closes engines; a request without a path changes nothing."""
    topology, kv, router = parts(plan(FLOWS))
    route = router.route(100, 1500, check_kv=True)
    kv.charge(route.hops, 1500)
    assert names(topology, route) == ["a", "c"]
    second = router.route(100, 1500, check_kv=True)
    assert names(topology, second) == ["b", "d"]
    kv.charge(second.hops, 1500)
    assert router.route(100, 1500, check_kv=True) is None
    assert router.route(600, 700, check_kv=False) is None
    kv.release(route.hops, 1500)
    kv.release(second.hops, 1500)
    assert kv.use() == 0.0
    _, other, fresh = parts(plan(FLOWS))
    other.charge(fresh.route(100, 1500, check_kv=True).hops, 1500)
    fresh.route(100, 1500, check_kv=True)
    other.rebuild(topology)
    other.release(route.hops, 1500)
    later = [names(topology, router.route(10, 20, check_kv=True)) for _ in range(50)]
    assert later == [names(topology, fresh.route(10, 20, check_kv=True)) for _ in range(50)]


def test_use_is_that_of_the_tightest_layer_with_idle_holders_counted():
    """1500 tokens on a and c: half of the two engines' room for each layer, 4000 / 2 each."""
    _, kv, router = parts(plan(FLOWS))
    route = router.route(100, 1500, check_kv=True)
    kv.charge(route.hops, 1500)
    assert kv.use() == pytest.approx(1500 / 4000)


def test_what_is_left_after_failures_is_on_whole_paths():
    """Without c, a leads only to d; without c and d nothing is left."""
    topology = Topology.of(plan(FLOWS))
    left = topology.restricted([2], [])
    assert [topology.dst[leg] for leg in left.out[0]] == [3]
    assert left.out[2] == ()
    assert not topology.restricted([2, 3], []).connected
    no_way_out_of_a = topology.restricted([2], [3])
    assert [topology.dst[leg] for leg in no_way_out_of_a.out[4]] == [1]


def test_swarm_prefers_the_leg_that_has_been_quick():
    """Priorities grow by the moving average of each leg's times."""
    _, _, router = parts(replace(plan(FLOWS), routing=Routing("swarm")))
    router.observe(0, 1.0)
    router.observe(1, 0.1)
    chosen = [router.next_leg(4, (0, 1), lambda engine: 0) for _ in range(90)]
    assert chosen.count(1) > 5 * chosen.count(0)


def test_shortest_queue_waits_for_the_engine_with_the_shortest_queue():
    """It takes no other leg, even a free one."""
    _, _, router = parts(replace(plan(FLOWS), routing=Routing("shortest-queue")))
    queue = {0: 5, 1: 2}.__getitem__
    assert router.next_leg(4, (0, 1), queue) == 1
    assert router.next_leg(4, (0,), queue) is None


@dataclass
class Asks:
    prompt_tokens: int
    generated_tokens: int = 0


def gate(mode, **kwargs):
    document = plan(FLOWS, **kwargs)
    topology, kv, router = parts(document)
    return Gate(topology, document.routing, router, kv, mode)


def test_those_who_wait_are_served_in_order():
    """A small request does not slip past a large one that waits."""
    entry = gate("queue")
    tickets = [entry.offer(Asks(400))[1] for _ in range(4)]
    big, small = Asks(500), Asks(1)
    while entry.offer(Asks(400))[0] is Verdict.ADMITTED:
        pass
    entry.waiting.clear()
    assert entry.offer(big)[0] is Verdict.WAITS
    assert entry.offer(small)[0] is Verdict.WAITS
    assert entry.next_waiting() is None
    entry.release(tickets[0], tickets[0].route.hops)
    entry.release(tickets[1], tickets[1].route.hops)
    assert entry.next_waiting()[0] is big
    assert entry.next_waiting()[0] is small


def test_dropping_drops_and_the_impossible_is_told_at_once():
    """Drop mode refuses when full; what an idle system cannot hold never waits."""
    entry = gate("drop")
    while entry.offer(Asks(400))[0] is Verdict.ADMITTED:
        pass
    assert not entry.waiting
    assert gate("queue", kv=300).offer(Asks(400)) == (Verdict.NEVER, None)


def test_pools_refuse_what_does_not_fit():
    """Use never passes capacity, and the peak is kept."""
    pool = KVPool(10)
    assert pool.take(8)
    assert not pool.take(3)
    pool.give(8)
    assert (pool.used, pool.peak) == (0, 8)


def test_the_youngest_makes_room():
    """The request admitted last is preempted."""
    assert preemption_victim([4, 9, 2]) == 1


def test_feeders_answer_as_published():
    """Saturating feeds at or under the mark; a closed loop only when one ends."""
    feeder = SaturatingFeeder(Saturating(3, 0.8, 0.1))
    assert feeder.start() == pytest.approx([0.0, 0.1, 0.2])
    assert feeder.after_prompt(lambda: 0.8, 0) == 0.1
    assert feeder.after_end(lambda: 0.81, 0) is None
    assert feeder.after_end(lambda: 0.1, 1) is None
    loop = ClosedLoopFeeder(ClosedLoop(2))
    assert loop.after_prompt(lambda: 0.0, 0) is None
    assert loop.after_end(lambda: 1.0, 5) == 0.1


def test_a_dead_end_is_left_again_when_another_path_is_open():
    """Published, a walk into a full pipeline fails; with backtracking the other one is found."""
    topology, kv, router = parts(plan(FLOWS))
    behind_a = next(hop for hop in router.route(1, 1, check_kv=True).hops if hop.start_layer == 2)
    kv.charge([behind_a], 1900)
    fresh = make_router(topology, Routing(), kv, Random(0))
    assert fresh.route(100, 200, check_kv=True) is None
    found = fresh.route(100, 200, check_kv=True, backtrack=True)
    assert names(topology, found) == ["b", "d"]
    kv.charge(found.hops, 1900)
    assert fresh.route(100, 200, check_kv=True, backtrack=True) is None
