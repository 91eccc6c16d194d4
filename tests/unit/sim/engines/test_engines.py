"""The engine simulator: routing, refusals, hooks, and where requests come from."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest
from tests.unit.sim.engines.engine_runs import COST, run_engine, shape, workload

from penstock.errors import InputError, SpecError
from penstock.measure.metrics import summarise
from penstock.measure.run import STATUS
from penstock.policy.engine_routing import EngineLoad, ShedAbove
from penstock.policy.schedulers import Batch, SchedulerSettings
from penstock.policy.schedulers.vllm import VllmV1
from penstock.sim.engines import EngineFleet, EngineOptions, EngineSpec, simulate_engines
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.lengths import fixed_lengths
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload

VLLM = SchedulerSettings(max_num_seqs=8, max_num_batched_tokens=256)


def steady(count: int, gap_s: float = 0.1) -> list[Request]:
    return [Request(i, gap_s * i, 40, 20) for i in range(count)]


def test_one_request_by_hand() -> None:
    """A prompt step and n - 1 decode steps, each as the cost model says."""
    run = run_engine([Request(7, 1.5, 100, 4)], VLLM)
    timer = COST.step_timer(shape())
    first = 1.5 + timer.step_s([(100, 0)], 0, 0)
    ends = first + np.cumsum([timer.decode_s(1, 100 + j) for j in range(3)])
    np.testing.assert_allclose(run.tokens.times_s, [first, *ends], rtol=1e-12)
    assert run.requests.id.tolist() == [7]
    assert run.requests.last_token_s[0] == pytest.approx(ends[-1], rel=1e-12)
    summary = summarise(run)
    assert summary.overall.ttft.mean == pytest.approx(first - 1.5)
    assert summary.overall.tpot.mean == pytest.approx((ends[-1] - first) / 3)


def test_stages_overlap_two_batches() -> None:
    """With two stages a second request runs beside the first, not after it."""
    pair = [Request(0, 0.0, 64, 30), Request(1, 0.001, 64, 30)]
    run = run_engine(pair, VLLM, stages=2)
    alone = run_engine(pair[:1], VLLM, stages=2)
    slower = run.requests.last_token_s[0] / alone.requests.last_token_s[0]
    assert 1.0 <= slower < 1.1


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        ("round-robin", [0, 1, 2, 0, 1, 2]),
        ("least-outstanding", [0, 1, 2, 0, 1, 2]),
        ("lor", [0, 1, 2, 0, 1, 2]),
        ("least-kv-use", [0, 0, 0, 0, 0, 0]),
        ("flow-weighted", [0, 1, 2, 0, 1, 2]),
    ],
)
def test_routers_at_a_burst(router: str, expected: list[int]) -> None:
    """Six simultaneous requests on three idle engines; KV use is still equal, so the first."""
    burst = [Request(i, 0.0, 40, 20) for i in range(6)]
    run = run_engine(burst, VLLM, replicas=3, router=router)
    assert run.requests.route_index.tolist() == expected


def test_weights_share_the_flow_evenly_interleaved() -> None:
    """Weights 3 : 1 give every fourth request to the second engine."""
    engines = tuple(
        EngineSpec(name, shape(), VLLM, num_blocks=100, weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    )
    run = simulate_engines(EngineFleet(engines, "flow-weighted"), workload(steady(40)), COST)
    route = run.requests.route_index
    assert (route == 1).sum() == 10
    assert (np.diff(np.flatnonzero(route == 1)) == 4).all()


def test_affinity_follows_the_cache() -> None:
    """Requests of one conversation go where its prefix is, unless that engine is much busier."""
    chosen = SchedulerSettings(enable_prefix_caching=True, prefix_piece_tokens=32)
    talk = [
        Request(i, 2.0 * i, 96, 5, prefix_hashes=tuple(10 * (i % 3) + j for j in range(3)))
        for i in range(9)
    ]
    run = run_engine(talk, chosen, replicas=3, router="prefix-affinity", num_blocks=200)
    assert run.counters["prefix_hit_tokens"] == 6 * 64
    for talker in range(3):
        assert len(set(run.requests.route_index[talker::3].tolist())) == 1


def test_what_no_engine_can_hold_is_rejected_and_counted() -> None:
    """A prompt longer than the KV pool never runs and never blocks the others."""
    mixed = [Request(0, 0.0, 5000, 10), Request(1, 0.0, 40, 10)]
    run = run_engine(mixed, VLLM, num_blocks=100)
    assert [STATUS[code] for code in run.requests.status] == ["rejected", "finished"]
    assert run.counters["rejected"] == 1


def test_load_is_shed_above_a_queue() -> None:
    """With at most two waiting, a burst of twenty leaves the places, the queue and no more."""
    burst = [Request(i, 1e-3 * i, 40, 50) for i in range(20)]
    run = run_engine(burst, VLLM, admission=ShedAbove(2))
    assert run.counters["dropped"] > 0
    assert run.counters["finished"] + run.counters["dropped"] == 20


def test_an_autoscaler_opens_engines() -> None:
    """One engine until the queue grows, then all; closed engines finish what they have."""

    def controller(now_s: float, active: int, engines: SequenceOf[EngineLoad]) -> int:
        return 3 if sum(engine.outstanding for engine in engines) > 10 else 1

    run = run_engine(
        steady(200, 0.02), VLLM, replicas=3, autoscaler=controller, autoscale_every_s=0.5
    )
    route = run.requests.route_index
    assert (route[:10] == 0).all()
    assert set(route.tolist()) == {0, 1, 2}
    assert run.counters["finished"] == 200


def test_closed_loops_keep_their_number() -> None:
    """Each end launches the next; at the end of the workload the clock stops."""
    closed = Workload(
        "loop", 30.0, lengths=fixed_lengths(50, 40), arrivals=ClosedLoop(4, interval_s=0.01)
    )
    fleet = EngineFleet((EngineSpec("e", shape(), VLLM, num_blocks=500),))
    spans, steps = (
        simulate_engines(fleet, closed, COST, EngineOptions(step_by_step=single))
        for single in (False, True)
    )
    running = spans.requests.status == STATUS.index("running")
    assert running.sum() + (spans.requests.status == STATUS.index("queued")).sum() <= 4
    assert spans.counters["finished"] > 100
    np.testing.assert_allclose(
        spans.requests.last_token_s, steps.requests.last_token_s, rtol=0, atol=1e-9
    )
    np.testing.assert_array_equal(spans.requests.generated_tokens, steps.requests.generated_tokens)
    np.testing.assert_array_equal(spans.tokens.offsets, steps.tokens.offsets)
    assert (spans.requests.generated_tokens == np.diff(spans.tokens.offsets)).all()


def test_saturating_feeders_stop_at_the_mark() -> None:
    """The feeder keeps the KV memory busy."""
    feed = Workload("feed", 20.0, lengths=fixed_lengths(100, 60), arrivals=Saturating(initial=4))
    fleet = EngineFleet((EngineSpec("e", shape(), VLLM, num_blocks=60),))
    run = simulate_engines(fleet, feed, COST)
    assert run.nodes is not None
    assert run.nodes.peak_kv_fraction[0] > 0.75


def test_the_clock_can_be_stopped() -> None:
    """At ``until_s`` tokens so far count, and no time lies beyond it."""
    run = run_engine(steady(50), VLLM, until_s=2.0)
    assert run.counters["requests"] == 21
    assert run.tokens.times_s.max() <= 2.0
    assert (run.requests.generated_tokens == np.diff(run.tokens.offsets)).all()
    assert run.nodes is not None
    assert run.nodes.busy_s[0] <= 2.0


def test_open_loop_arrivals_are_streamed() -> None:
    """Arrivals and lengths are drawn as needed; the same seed gives the same run."""
    stream = Workload("poisson", 60.0, lengths=fixed_lengths(30, 10), arrivals=PoissonArrivals(5.0))
    fleet = EngineFleet((EngineSpec("e", shape(), VLLM),))
    one, two, other = (
        simulate_engines(fleet, stream, COST, EngineOptions(seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.tokens.times_s, two.tokens.times_s)
    assert len(one.requests.id) != len(other.requests.id)


def test_tokens_need_not_be_kept() -> None:
    """Without them the times of every request are the same."""
    kept, dropped = (run_engine(steady(20), VLLM, keep_tokens=keep) for keep in (True, False))
    np.testing.assert_array_equal(kept.requests.last_token_s, dropped.requests.last_token_s)
    assert len(dropped.tokens.times_s) == 0


class FirstOnly(VllmV1):
    """A user's policy: one sequence at a time."""

    def next_batch(self) -> Batch | None:
        self.max_num_seqs = 1
        return super().next_batch()


def test_a_users_policy_runs_like_ours() -> None:
    """An engine takes a scheduler class of one's own."""
    spec = EngineSpec("own", shape(), VLLM, num_blocks=100, policy=FirstOnly)
    run = simulate_engines(EngineFleet((spec,)), workload(steady(5, 0.0)), COST)
    assert (run.requests.first_token_s[1:] > run.requests.last_token_s[:-1]).all()


def test_mistakes_are_named() -> None:
    """Wrong names, orders and fleets end in one line."""
    with pytest.raises(SpecError, match="did you mean 'round-robin'"):
        run_engine(steady(1), VLLM, router="round-robbin")
    with pytest.raises(InputError, match="sort the workload"):
        run_engine([Request(0, 1.0, 5, 5), Request(1, 0.5, 5, 5)], VLLM)
    with pytest.raises(InputError, match="at least one engine"):
        EngineFleet(())
    with pytest.raises(InputError, match="must differ"):
        EngineFleet((EngineSpec("a", shape()), EngineSpec("a", shape())))
    spec = EngineSpec("a", shape(), role="prefill")
    with pytest.raises(InputError, match="role"):
        simulate_engines(EngineFleet((spec,)), workload(steady(1)), COST)
