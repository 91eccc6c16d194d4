"""Run a plan under a workload in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import cast

import numpy as np

from penstock import __version__
from penstock.cost.base import CostModel
from penstock.cost.network import loading_s
from penstock.cost.steps import StepCostModel
from penstock.errors import InputError
from penstock.measure.fleet import header_entries
from penstock.measure.run import LinkTotals, NodeSeries, NodeTotals, Run
from penstock.plan.plan import Plan
from penstock.plan.planner import Progress
from penstock.policy.admission import Gate, make_feeder
from penstock.policy.batching import Batcher, LayerwiseBatcher, NodewiseBatcher
from penstock.policy.kv import KVExpectation, KVPool
from penstock.policy.routing import Router, make_router
from penstock.policy.topology import Topology
from penstock.sim.contention import ContendedTransport
from penstock.sim.coordinator import CoordinatorState
from penstock.sim.engine_plans import simulate_engine_plan
from penstock.sim.faults import FaultInjector
from penstock.sim.invariants import check_run
from penstock.sim.link import (
    LinkState,
    equal_rates,
    make_links,
    planned_rates,
    published_rates,
)
from penstock.sim.loop import ARRIVE, Loop
from penstock.sim.node import NodeState
from penstock.sim.options import SimulationOptions
from penstock.sim.recorder import Recorder
from penstock.sim.sequence import Sequence
from penstock.sim.series import Series
from penstock.sim.transport import FixedRateTransport, Paths, Transport
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload, class_picker


def simulate(
    plan: Plan,
    workload: Workload,
    cost: CostModel | StepCostModel,
    options: SimulationOptions | None = None,
) -> Run:
    """Return the run of ``workload`` on ``plan``; equal inputs give equal runs, bit for bit.

    ``cost`` is a ``StepCostModel`` where the plan has whole engines, else a ``CostModel``. Raises
    ``InputError`` for a plan the simulator cannot run or a workload without requests.
    """
    options = options or SimulationOptions()
    if plan.whole_engines:
        return simulate_engine_plan(plan, workload, cast(StepCostModel, cost), options)
    return _Simulation(plan, workload, cast(CostModel, cost), options).run()


class _Simulation:
    """Wires loop, nodes, links, coordinator and policies for one run."""

    def __init__(
        self, plan: Plan, workload: Workload, cost: CostModel, options: SimulationOptions
    ) -> None:
        _check(plan)
        self._plan, self._workload, self._cost, self._options = plan, workload, cost, options
        self._published = options.granularity == "layerwise"
        self._start_s = _start_s(plan, cost) if options.start_s is None else options.start_s
        self._lengths_rng = Random(options.seed)
        self._loop = Loop()
        self._topology = Topology.of(plan)
        self._kv = KVExpectation(self._topology)
        self._router = self._make_router()
        self._gate: Gate[Sequence] = Gate(
            self._topology, plan.routing, self._router, self._kv, plan.admission
        )
        self._series = self._make_series()
        self._nodes = [self._make_node(i) for i in range(len(plan.engines))]
        self._links = make_links(plan, self._topology)
        self._recorder = Recorder(tuple(c.name for c in workload.classes))
        self._home = CoordinatorState(
            loop=self._loop,
            gate=self._gate,
            router=self._router,
            kv=self._kv,
            nodes=self._nodes,
            recorder=self._recorder,
            first_iteration_is_token=not self._published,
        )
        self._transport = self._make_transport()
        self._home.attach(self._transport)
        self._faults = FaultInjector(
            plan=plan,
            cost=cost,
            topology=self._topology,
            loop=self._loop,
            nodes=self._nodes,
            links=self._links,
            home=self._home,
            change=self._change_topology,
        )
        for node in self._nodes:
            node.attach(self)

    def depart(self, vertex: int, items: list[Sequence], now: float) -> None:
        self._transport.send(vertex, [item for item in items if not item.dead], now)

    def make_room(self, vertex: int, batch: list[Sequence]) -> None:
        self._home.make_room(vertex, batch)

    def _change_topology(self, left: Topology, impaired: bool) -> None:
        self._topology = left
        self._router.rebuild(left)
        self._kv.rebuild(left)
        self._gate.rebuild(left, impaired=impaired)
        if self._paths is not None:
            self._paths.topology = left
        elif impaired:
            # Requests on their way may still use legs without new flow, so that shares by flow
            # could overload a NIC; equal shares cannot.
            for link, rate in zip(self._links, equal_rates(self._plan, left), strict=True):
                link.rate_bytes_per_s = rate

    def run(self) -> Run:
        workload = self._workload
        end_s = self._start_s + workload.duration_s
        self._faults.schedule(self._options.faults, self._start_s)
        feeds = isinstance(workload.arrivals, ClosedLoop | Saturating) and not len(workload.trace)
        drain = not feeds if self._options.drain is None else self._options.drain
        if feeds:
            self._feed(end_s)
        else:
            self._schedule_arrivals()
        self._loop.run(math.inf if drain else end_s, self._reporter(end_s))
        self._home.finish_run()
        run = self._result(end_s)
        pools = [node.pool for node in self._nodes]
        check_run(run, pools, len(self._home.active), self._loop.now)
        return run

    def _make_router(self) -> Router:
        # The published runs share one generator between lengths and random routing.
        seed = f"{self._options.seed}/router"
        rng = self._lengths_rng if self._published else Random(seed)
        return make_router(self._topology, self._plan.routing, self._kv, rng)

    def _make_series(self) -> Series | None:
        if self._options.series_bucket_s <= 0:
            return None
        return Series(self._topology.names, self._start_s, self._options.series_bucket_s)

    def _make_node(self, i: int) -> NodeState:
        engine = self._plan.engines[i]
        start, end = engine.start_layer, engine.end_layer
        entries = self._topology.entry_layers(i)

        def batcher() -> Batcher[Sequence]:
            kind = LayerwiseBatcher if self._published else NodewiseBatcher
            return kind(start, end, entries, engine.limits)

        return NodeState(
            vertex=i,
            loop=self._loop,
            batcher=batcher,
            timer=self._cost.layer_timer(self._plan.cluster.node(engine.stages[0].node)),
            pool=KVPool(engine.kv_capacity_layer_tokens),
            activation_bytes=self._plan.model.activation_bytes_per_token,
            per_layer=self._published,
            series=self._series,
        )

    def _make_transport(self) -> Transport:
        plan, topology = self._plan, self._topology
        self._paths: Paths | None = None
        rates: list[float] | None
        if self._router.plans_whole_route:
            rates = planned_rates(plan, topology)
        else:
            self._paths = Paths(topology, self._router, self._nodes)
            rates = self._hop_router_rates()
        if rates is None:
            assert self._paths is not None
            return ContendedTransport(
                plan=plan,
                loop=self._loop,
                links=self._links,
                nodes=self._nodes,
                home=self._home,
                paths=self._paths,
            )
        for link, rate in zip(self._links, rates, strict=True):
            link.rate_bytes_per_s = rate
        return FixedRateTransport(
            loop=self._loop,
            links=self._links,
            nodes=self._nodes,
            home=self._home,
            paths=self._paths,
            per_batch=not self._published,
        )

    def _hop_router_rates(self) -> list[float] | None:
        if not self._published:
            return equal_rates(self._plan, self._topology)
        if self._router.picks_free_legs and any(len(legs) > 1 for legs in self._topology.out):
            return None
        return published_rates(self._plan, self._topology)

    def _feed(self, end_s: float) -> None:
        workload = self._workload
        lengths = workload.lengths
        assert isinstance(workload.arrivals, ClosedLoop | Saturating)
        if lengths is None:
            raise InputError(f"workload {workload.name} has no lengths to draw from")
        number = count()
        pick = class_picker(workload.classes, self._options.seed)

        def next_request() -> Request:
            prompt, output = lengths.sample(self._lengths_rng)
            return Request(next(number), self._loop.now, prompt, output, pick())

        self._home.feed(make_feeder(workload.arrivals), next_request, self._start_s, end_s)

    def _schedule_arrivals(self) -> None:
        self._arrive_next(self._workload.requests(self._options.seed))

    def _arrive_next(self, requests: Iterator[Request]) -> None:
        request = next(requests, None)
        if request is not None:
            self._loop.at(
                self._start_s + request.arrival_s, ARRIVE, self._arrive, (request, requests)
            )

    def _arrive(self, what: tuple[Request, Iterator[Request]]) -> None:
        self._arrive_next(what[1])
        self._home.arrive(what[0])

    def _reporter(self, end_s: float) -> Callable[[float], None]:
        span = max(end_s - self._start_s, 1e-9)

        def report(now: float) -> None:
            done = min(1.0, max(0.0, (now - self._start_s) / span))
            self._options.progress(Progress(f"simulated {now - self._start_s:.0f} s", done))

        return report

    def _result(self, end_s: float) -> Run:
        plan, workload = self._plan, self._workload
        requests, tokens = self._recorder.tables(not self._published)
        last = max(end_s, self._loop.now)
        return Run(
            name=f"{plan.planner}-{workload.name}",
            header={
                "kind": "simulated",
                "version": __version__,
                "seed": self._options.seed,
                "granularity": self._options.granularity,
                "planner": plan.planner,
                "router": plan.routing.router,
                "admission": plan.admission,
                "workload": workload.name,
                "model": plan.model.name,
                "cluster": plan.cluster.name,
                "start_s": self._start_s,
                "end_s": self._loop.now,
                **header_entries(plan.cluster, workload.classes),
            },
            window_s=(self._start_s + workload.warmup_s, end_s),
            requests=requests,
            tokens=tokens,
            nodes=self._node_totals(),
            node_series=self._node_series(last),
            links=self._link_totals(),
            events=tuple(self._faults.events),
            routes=self._recorder.routes(self._topology.names),
            class_names=tuple(c.name for c in workload.classes),
            first_iteration_is_token=not self._published,
            counters={
                "events": self._loop.events,
                "requests": len(self._recorder),
                "finished": self._recorder.status_count("finished"),
                "dropped": self._recorder.status_count("dropped"),
                "rejected": self._recorder.status_count("rejected"),
                "failed": self._recorder.status_count("failed"),
                "preemptions": self._home.preemptions,
                "batches": sum(node.batches for node in self._nodes),
            },
        )

    def _node_series(self, end_s: float) -> NodeSeries | None:
        if self._series is None:
            return None
        return self._series.result(end_s, [node.pool.capacity for node in self._nodes])

    def _node_totals(self) -> NodeTotals:
        nodes = self._nodes
        return NodeTotals(
            names=self._topology.names,
            busy_s=np.array([node.busy_s for node in nodes]),
            batches=np.array([node.batches for node in nodes], np.int64),
            prefill_tokens=np.array([node.prefill_tokens for node in nodes], np.int64),
            decode_tokens=np.array([node.decode_tokens for node in nodes], np.int64),
            peak_kv_fraction=np.array([n.pool.peak / max(n.pool.capacity, 1) for n in nodes]),
            prompt_residence_s=np.array([node.prompt_residence_s for node in nodes]),
            prompt_visits=np.array([node.prompt_visits for node in nodes], np.int64),
        )

    def _link_totals(self) -> LinkTotals:
        links: list[LinkState] = self._links
        return LinkTotals(
            src=tuple(leg.src for leg in self._plan.legs),
            dst=tuple(leg.dst for leg in self._plan.legs),
            busy_s=np.array([link.busy_s for link in links]),
            bytes=np.array([float(link.sent_bytes) for link in links]),
        )


def _check(plan: Plan) -> None:
    for engine in plan.engines:
        if len(engine.stages) != 1:
            raise InputError(
                f"engine {engine.name} has {len(engine.stages)} stages; the simulator runs engines "
                "of one stage each: split it into one engine per node"
            )


def _start_s(plan: Plan, cost: CostModel) -> float:
    """When all nodes have loaded their weights, rounded up, and one second more (published)."""
    longest = max(
        loading_s(cost, plan.cluster.node(engine.stages[0].node), engine.num_layers)
        for engine in plan.engines
    )
    return float(math.ceil(longest) + 1)
