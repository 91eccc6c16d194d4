"""Laws that hold for every pool, whatever is asked of it and however its plan changes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sim.pools.pool_runs import Holds, cluster, cost, pool, run_pool, same_run

from penstock.measure.run import STATUS, Run
from penstock.plan.parts import Parts
from penstock.plan.pool_plan import PoolPlan, Sharing
from penstock.plan.settings import SchedulerSettings
from penstock.sim.pools.engine import State
from penstock.sim.pools.fleet import PoolFleet
from penstock.sim.pools.group import Group
from penstock.spec.workload import SLO, Request, SLOClass

MODELS = "abcd"
CLASSES = tuple(
    SLOClass(name, slo, priority=priority)
    for name, slo, priority in (
        ("a", SLO(ttft_s=0.4, tpot_s=0.05), 0),
        ("b", SLO(e2e_s=0.6), 0),
        ("c", SLO(), 0),
        ("d", SLO(ttft_s=0.2, e2e_s=1.5), 1),
    )
)
SEEDS = st.integers(0, 2**32)
CHOSEN = SchedulerSettings(max_num_seqs=6, max_num_batched_tokens=64, block_size=4)


def draw_requests(rng: Random, models: str = MODELS) -> list[Request]:
    """Bursts and lulls of short and long requests for any of the models."""
    gap = rng.choice([0.0, 0.01, 0.08, 0.5])
    arrival, found = 0.0, []
    for number in range(rng.randint(1, 40)):
        arrival += gap * rng.choice([0.0, rng.random(), 2 * rng.random()])
        name = rng.choice(models)
        output = rng.choice([1, rng.randint(1, 40)])
        found.append(Request(number, arrival, rng.randint(1, 90), output, name, name))
    return found


def draw_pool(rng: Random, sharing: Sharing, models: str = MODELS) -> PoolPlan:
    """Two machines of four GPUs, cut at random; every model on one to three groups, its own or
    shared, some of them pipelines."""
    parts = tuple(
        Parts(name, rng.choice([(4,), (2, 2), (1, 1, 2), (2, 1, 1), (1, 1, 1, 1)]))
        for name in ("m0", "m1")
    )
    nodes = [name for part in parts for name in part.names]
    rng.shuffle(nodes)
    seats: list[tuple[str, ...]] = []
    while nodes:
        size = rng.choice([1, 1, 2]) if len(nodes) > 1 else 1
        seats.append(tuple(nodes[:size]))
        nodes = nodes[size:]
    holds = []
    for name in models:
        count = min(len(seats), rng.choice([1, 1, 2, 3]))
        holds += [Holds(name, seat, rng.randint(33, 120)) for seat in rng.sample(seats, count)]
    return pool(
        cluster(2, 4, disk_bytes_per_s=1e9),
        holds,
        parts=parts,
        settings=CHOSEN,
        sharing=sharing,
        priorities={name: rng.choice([0, 0, 1]) for name in models},
    )


def draw_sharing(rng: Random) -> Sharing:
    return Sharing(
        rng.choice(["earliest-deadline", "round-robin", "first-come"]),
        rng.choice(["queue", "queue", "deadline"]),
    )


def draw_costs(rng: Random):  # type: ignore[no-untyped-def]
    return {
        name: cost(rng.choice([0.004, 0.0107, 0.0231]), 8.3e-8, 3.7e-5, 1.1e-4) for name in MODELS
    }


def check_run(run: Run) -> None:
    """Tokens are conserved and in order, and no node is busy for longer than the run lasts."""
    table, offsets, times = run.requests, run.tokens.offsets, run.tokens.times_s
    finished = table.status == STATUS.index("finished")
    assert (table.generated_tokens[finished] == table.output_tokens[finished]).all()
    counted = np.diff(offsets)
    assert (counted[finished] == table.output_tokens[finished]).all()
    assert (counted[~finished] == 0).all()
    for i in np.flatnonzero(finished):
        mine = times[offsets[i] : offsets[i + 1]]
        assert table.arrival_s[i] <= table.admitted_s[i] < mine[0] == table.first_token_s[i]
        assert mine[-1] == table.last_token_s[i]
        assert (np.diff(mine) > 0).all()
    assert run.nodes is not None
    assert (run.nodes.busy_s <= run.header["end_s"] + 1e-9).all()  # type: ignore[operator]
    assert (run.nodes.peak_kv_fraction <= 1.0).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_laws_of_a_pool(seed: int) -> None:
    """Every request has one fate, and with a queue all are served; spans are their steps."""
    rng = Random(seed)
    sharing = draw_sharing(rng)
    plan, requests, costs = draw_pool(rng, sharing), draw_requests(rng), draw_costs(rng)
    spans, steps = (
        run_pool(plan, requests, classes=CLASSES, costs=costs, step_by_step=single)
        for single in (False, True)
    )
    check_run(spans)
    same_run(spans, steps)
    fates = {"finished", "dropped"} if sharing.admission == "deadline" else {"finished"}
    assert {STATUS[code] for code in spans.requests.status} <= fates


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_change_of_plan_loses_no_request(seed: int) -> None:
    """Whatever the plans, all requests for models that are in each of them are served; and spans
    are their steps."""
    rng = Random(seed)
    sharing = Sharing(draw_sharing(rng).turns)
    models = [MODELS, *(rng.choice([MODELS, "abc", "ab"]) for _ in range(rng.randint(1, 4)))]
    plans = [draw_pool(rng, sharing, present) for present in models]
    times = sorted(rng.choice([0.0, rng.random(), 4 * rng.random()]) for _ in plans[1:])
    requests, costs = draw_requests(rng), draw_costs(rng)
    changes = tuple(zip(times, plans[1:], strict=True))
    spans, steps = (
        run_pool(
            plans[0], requests, classes=CLASSES, costs=costs, changes=changes, step_by_step=single
        )
        for single in (False, True)
    )
    check_run(spans)
    same_run(spans, steps)
    fates = [STATUS[code] for code in spans.requests.status]
    for request, fate in zip(requests, fates, strict=True):
        now = models[sum(time <= request.arrival_s for time in times)]
        assert fate == ("finished" if request.model in now else "rejected")


WEIGHTS_BLOCKS = 1000
"""What the weights of an engine take, in KV blocks."""


def memory_of_plan(plan: PoolPlan) -> Counter[tuple[str, int]]:
    """KV blocks and weights by GPU, as the plan has them."""
    held: Counter[tuple[str, int]] = Counter()
    for entry in plan.deployments:
        for engine in entry.plan.engines:
            gpus = [gpu for stage in engine.stages for gpu in plan.gpus_of(stage.node)]
            for gpu in gpus:
                held[gpu] += (WEIGHTS_BLOCKS + engine.num_blocks) / len(gpus)  # type: ignore[assignment]
    return held


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_memory_is_never_exceeded_by_a_change(seed: int) -> None:
    """At no moment has a GPU more weights and KV memory on it than the richest plan so far gives
    it: engines go and shrink before others are loaded and grow."""
    rng = Random(seed)
    plans = [draw_pool(rng, Sharing()) for _ in range(rng.randint(2, 4))]
    times = sorted(2 * rng.random() for _ in plans[1:])
    most: Counter[tuple[str, int]] = Counter()
    adopt, settle = PoolFleet.adopt, PoolFleet.settle

    def adopting(fleet, pool, now, **more):  # type: ignore[no-untyped-def]
        most.update(memory_of_plan(pool) - most)
        adopt(fleet, pool, now, **more)

    def settling(fleet, now):  # type: ignore[no-untyped-def]
        settle(fleet, now)
        held: Counter[tuple[str, int]] = Counter()
        for engine in fleet.engines:
            if engine.state not in (State.WAITING, State.GONE):
                blocks = WEIGHTS_BLOCKS + engine.scheduler.blocks.num_blocks
                for gpu in engine.gpus:
                    held[gpu] += blocks / len(engine.gpus)  # type: ignore[assignment]
        assert all(size <= most[gpu] + 1e-6 for gpu, size in held.items())

    PoolFleet.adopt, PoolFleet.settle = adopting, settling  # type: ignore[method-assign]
    try:
        changes = tuple(zip(times, plans[1:], strict=True))
        run = run_pool(plans[0], draw_requests(rng), classes=CLASSES, changes=changes)
    finally:
        PoolFleet.adopt, PoolFleet.settle = adopt, settle  # type: ignore[method-assign]
    assert run.counters["finished"] == run.counters["requests"]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_stage_runs_one_batch_at_a_time(seed: int) -> None:
    """Batches of all engines on one node without a pipeline follow each other, without a gap while
    there is work."""
    rng = Random(seed)
    names = "ab" if rng.random() < 0.5 else "abc"
    plan = pool(
        cluster(1),
        [Holds(name, ("m0",), rng.randint(33, 80)) for name in names],
        settings=CHOSEN,
        sharing=draw_sharing(rng),
    )
    requests, costs = draw_requests(rng, names), draw_costs(rng)
    intervals: list[tuple[float, float]] = []
    original = Group.event

    def recorded(group, now, share, arrival_s):  # type: ignore[no-untyped-def]
        flights = [(start, end) for e in group.order for end, _, start, _ in e._flight]
        if flights and flights[0][1] <= now:
            intervals.extend(flights)
        result = original(group, now, share, arrival_s)
        assert group.order or not any(e.scheduler.outstanding for e in group.engines)
        return result

    Group.event = recorded  # type: ignore[method-assign]
    try:
        run = run_pool(plan, requests, classes=CLASSES, costs=costs)
    finally:
        Group.event = original  # type: ignore[method-assign]
    assert intervals == sorted(intervals)
    for (_, end), (start, _) in pairwise(intervals):
        assert start >= end
    busy_s = sum(end - start for start, end in intervals)
    assert run.nodes is not None
    np.testing.assert_allclose(run.nodes.busy_s, [busy_s], rtol=1e-9, atol=1e-12)
