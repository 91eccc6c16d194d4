"""Requests of many models to the engines of a pool, in virtual time.

Events are arrivals, ends of batches, ends of loads, and changes of plan. While only one engine on a
set of nodes has work, or is ahead of the others whatever they do, all its steps until something
can change are one event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from math import inf

from penstock.cost.step_provenance import cost_header
from penstock.cost.steps import HostedCost, StepCostModel
from penstock.measure.fleet import header_entries
from penstock.measure.run import Run
from penstock.plan.planner import Progress
from penstock.plan.pool_plan import PoolPlan
from penstock.policy.fleet import new_sequence
from penstock.sim.engines.engine import NANOSECOND
from penstock.sim.engines.recorder import EngineRecorder
from penstock.sim.engines.result import Ending, engine_run
from penstock.sim.engines.source import Feed, FrontEnd, Source, follow, open_source
from penstock.sim.pools.build import Builder
from penstock.sim.pools.engine import PoolEngine
from penstock.sim.pools.fleet import PoolFleet
from penstock.sim.pools.group import Group
from penstock.sim.pools.options import PoolOptions
from penstock.spec.workload import Request, Workload

_EVENTS_PER_REPORT = 20_000


def simulate_pool(
    pool: PoolPlan,
    workload: Workload,
    costs: Mapping[str, StepCostModel],
    options: PoolOptions | None = None,
) -> Run:
    """Run ``workload`` on the models of ``pool``, all loaded at the start, and say what happened.

    ``costs`` prices each model by name; one that is missing, or is another precision's, is priced
    by its plan. Requests for a model that the pool does not hold are rejected and counted. Nodes
    of the run are those of the plan, the nodes of a pipeline together; ``header["engines"]`` has
    the figures of each engine. Raises ``SpecError`` for plans that cannot work.
    """
    return _PoolSimulation(pool, workload, costs, options or PoolOptions()).run()


class _PoolSimulation:
    def __init__(
        self,
        pool: PoolPlan,
        workload: Workload,
        costs: Mapping[str, StepCostModel],
        options: PoolOptions,
    ) -> None:
        self._pool, self._workload, self._options = pool, workload, options
        self._classes = {entry.name: entry for entry in workload.classes}
        names = [stream.model for stream in workload.streams]
        names += [name for name in _model_names(pool, options) if name not in names]
        self._recorder = EngineRecorder(tuple(self._classes), tuple(names))
        self._builder = Builder(costs, self._classes, self._recorder, options)
        self._fleet = PoolFleet(
            self._builder, self._recorder, self._classes, options.seed, self._schedule
        )
        self._heap: list[tuple[float, int, int]] = []
        self._stamp: dict[int, int] = {}
        self._number = 0
        self._now = 0.0
        self._events = 0
        self._fleet.adopt(pool, 0.0, loaded=True)
        source = open_source(workload, options.seed, self._kv_use)
        self._feeds = isinstance(source, Feed)
        self._source = self._behind_host(source)
        self._changes = deque(options.changes)
        self._replan_s = inf if options.replan is None else options.replan_every_s
        self._seen: list[Request] = []

    def _behind_host(self, source: Source) -> Source | FrontEnd:
        """Requests on their way through HTTP and tokeniser, where cost models know of them."""
        plans = [self._pool, *(plan for _, plan in self._options.changes)]
        known: dict[str, HostedCost] = {}
        for plan in plans:
            for entry in plan.deployments:
                cost = self._builder.cost(entry.name, entry.plan)
                if isinstance(cost, HostedCost):
                    known.setdefault(entry.name, cost)
        if not known:
            return source
        only = next(iter(known)) if len(known) == 1 else ""

        def delay_s(request: Request) -> float:
            cost = known.get(request.model or only)
            return 0.0 if cost is None else cost.request_s(request.prompt_tokens)

        return FrontEnd(source, delay_s)

    def _kv_use(self) -> float:
        return max((engine.kv_use for engine in self._fleet.engines), default=0.0)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> Run:
        end_s = self._end_s()
        report = _EVENTS_PER_REPORT
        heap, source, stamp, fleet = self._heap, self._source, self._stamp, self._fleet
        groups, loads, check = fleet.groups, fleet.loads, self._options.check
        fixed = not self._options.changes and self._options.replan is None
        alone = fixed and len(fleet.engines) == 1
        while True:
            arrival_s = source.next_s
            event_s = heap[0][0] if heap else inf
            # Plans change before requests come: these find what the change has brought.
            timer_s = loads.next_s if fixed else self._timer_s()
            if timer_s < inf and timer_s <= arrival_s and timer_s <= event_s + NANOSECOND:
                if timer_s > end_s or self._over(arrival_s, event_s):
                    break
                self._now = timer_s
                self._timer(timer_s)
            # At equal times arrivals go first: they join the batch that is formed then.
            elif arrival_s <= event_s + NANOSECOND:
                if arrival_s == inf or arrival_s > end_s:
                    break
                self._arrive(source.take(), arrival_s)
            elif event_s > end_s:
                break
            else:
                event_s, number, index = heappop(heap)
                if stamp[index] == number:
                    self._event(groups[index], event_s, arrival_s if alone else inf, check=check)
            if self._events >= report:
                self._options.progress(Progress(f"simulated {self._now:.0f} s"))
                report += _EVENTS_PER_REPORT
        return self._result(end_s)

    def _event(self, group: Group, now: float, arrival_s: float, *, check: bool) -> None:
        self._now = now
        self._events += 1
        fleet = self._fleet
        head: PoolEngine | None = group.order[0] if self._feeds and group.order else None
        ends_s, ended, completed = group.event(now, fleet.share, arrival_s)
        if head is not None:
            follow(self._source, now, head.num_waiting, completed, ended)
        if ends_s < inf:
            self._schedule(group, ends_s)
        elif check:
            for engine in group.engines:
                engine.scheduler.check()
        if fleet.unsettled:
            fleet.settle(now)

    def _end_s(self) -> float:
        if self._options.until_s is not None:
            return self._options.until_s
        return self._workload.duration_s if self._feeds else inf

    def _arrive(self, request: Request | None, now: float) -> None:
        if request is None:
            return
        self._now = now
        row = self._recorder.arrive(request, request.arrival_s)
        if self._options.replan is not None:
            self._seen.append(request)
        self._fleet.arrive(request.model, new_sequence(row, request, self._classes), now)

    def _schedule(self, group: Group, at: float) -> None:
        """The group's next event; an earlier note of it no longer counts."""
        self._number += 1
        self._stamp[group.index] = self._number
        heappush(self._heap, (at, self._number, group.index))

    # -- changes of plan ----------------------------------------------------------------------

    def _timer_s(self) -> float:
        """When a load ends, a plan changes, or the controller is asked."""
        change_s = self._changes[0][0] if self._changes else inf
        return min(self._fleet.loads.next_s, change_s, self._replan_s)

    def _over(self, arrival_s: float, event_s: float) -> bool:
        """Whether nothing is left that a change of plan could matter to."""
        return arrival_s == event_s == self._fleet.loads.next_s == inf

    def _timer(self, now: float) -> None:
        fleet, options = self._fleet, self._options
        if fleet.loads.next_s <= now:
            fleet.ready(now)
        elif self._changes and self._changes[0][0] <= now:
            fleet.adopt(self._changes.popleft()[1], now)
        else:
            assert options.replan is not None
            assert fleet.plan is not None
            self._replan_s += options.replan_every_s
            seen, self._seen = self._seen, []
            plan = options.replan(now, fleet.plan, seen)
            if plan is not None:
                fleet.adopt(plan, now)

    # -- the result ---------------------------------------------------------------------------

    def _result(self, end_s: float) -> Run:
        fleet = self._fleet
        if end_s < inf:
            for engine in fleet.engines:
                engine.stop(end_s)
        ending = Ending(
            self._now,
            end_s,
            self._options.seed,
            self._events,
            self._header(),
            happened=tuple(fleet.happened),
        )
        name = f"{self._pool.planner}-{self._workload.name}"
        labels = [fleet.group_of[engine.index].label for engine in fleet.engines]
        return engine_run(name, self._workload, self._recorder, fleet.engines, ending, nodes=labels)

    def _header(self) -> dict[str, object]:
        pool, fleet = self._pool, self._fleet
        entries = {entry.name: entry for entry in pool.deployments}
        for _, later in self._options.changes:
            for entry in later.deployments:
                entries.setdefault(entry.name, entry)
        costs: dict[str, dict[str, object]] = {}
        for name, entry in entries.items():
            shapes = [engine.spec.shape for engine in fleet.engines if engine.model == name]
            costs[name] = cost_header(self._builder.cost(name, entry.plan), shapes)
        return {
            "planner": pool.planner,
            "cluster": pool.cluster.name,
            "model": ", ".join(entries),
            "turns": pool.sharing.turns,
            "admission": pool.sharing.admission,
            "schedulers": sorted({engine.spec.scheduler.name for engine in fleet.engines}),
            "costs": costs,
            **_band(costs.values()),
            "engines": [
                {
                    "name": engine.spec.name,
                    "nodes": fleet.group_of[engine.index].label,
                    "busy_s": engine.busy_s,
                    "batches": engine.batches,
                    "peak_kv_fraction": engine.scheduler.blocks.peak_fraction,
                }
                for engine in fleet.engines
            ],
            **header_entries(pool.cluster, self._workload.classes),
        }


def _band(costs: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """The widest of the bands of all models; nothing where one has none."""
    bands = [cost.get("band") for cost in costs]
    known = [band for band in bands if isinstance(band, Mapping)]
    if not known or len(known) < len(bands):
        return {}
    return {
        "band": {
            "low": min(band["low"] for band in known),
            "high": max(band["high"] for band in known),
            "extrapolated": sorted({name for band in known for name in band["extrapolated"]}),
        }
    }


def _model_names(pool: PoolPlan, options: PoolOptions) -> tuple[str, ...]:
    """The models of all plans known at the start; () where there is one, which needs no name."""
    plans = [pool, *(plan for _, plan in options.changes)]
    names = tuple(dict.fromkeys(entry.name for plan in plans for entry in plan.deployments))
    return names if len(names) > 1 else ()
