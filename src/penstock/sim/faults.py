"""Failures, recoveries and slow-downs in virtual time, and the new flow after each."""

from __future__ import annotations

from collections.abc import Callable

from penstock.cost.base import CostModel
from penstock.errors import PenstockError
from penstock.measure.run import RunEvent
from penstock.plan.degraded import degraded_flow, leg_nodes
from penstock.plan.plan import Plan
from penstock.policy.topology import Topology
from penstock.sim.coordinator import CoordinatorState
from penstock.sim.link import LinkState
from penstock.sim.loop import ARRIVE, Loop
from penstock.sim.node import NodeState
from penstock.sim.sequence import Sequence
from penstock.spec.faults import Fault, FaultSchedule

TopologyChange = Callable[[Topology, bool], None]
"""Tells routers, admission and links what is left; the flag says whether anything is impaired."""


class FaultInjector:
    """Applies a schedule to nodes and links.

    What a failed node or link carried starts over: the requests give up their KV everywhere and
    are routed again over the survivors, from their prompt and the tokens they already produced.
    When the survivors cannot hold the model, requests wait at the coordinator.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        cost: CostModel,
        topology: Topology,
        loop: Loop,
        nodes: list[NodeState],
        links: list[LinkState],
        home: CoordinatorState,
        change: TopologyChange,
    ) -> None:
        self.events: list[RunEvent] = []
        self._plan, self._cost = plan, cost
        self._whole = topology
        self._loop, self._nodes, self._links, self._home = loop, nodes, links, home
        self._change = change
        self._engines_down: dict[int, None] = {}
        self._legs_down: dict[int, None] = {}

    def schedule(self, schedule: FaultSchedule, start_s: float) -> None:
        """Put all faults on the clock. ``SpecError`` for names the plan does not use."""
        plan = self._plan
        schedule.check_names(
            [engine.stages[0].node for engine in plan.engines],
            [leg_nodes(plan, leg) for leg in range(len(plan.legs))],
        )
        for fault in schedule.faults:
            self._loop.at(start_s + fault.at_s, ARRIVE, self._apply, fault)

    def _apply(self, fault: Fault) -> None:
        if fault.node is not None:
            engines = [
                i for i, e in enumerate(self._plan.engines) if e.stages[0].node == fault.node
            ]
            legs: list[int] = []
        else:
            engines = []
            legs = [i for i in range(len(self._links)) if leg_nodes(self._plan, i) == fault.link]
        if fault.kind == "fail":
            self._engines_down.update(dict.fromkeys(engines))
            self._legs_down.update(dict.fromkeys(legs))
        elif fault.kind == "recover":
            for engine in engines:
                self._engines_down.pop(engine, None)
                self._nodes[engine].alive = True
            for leg in legs:
                self._legs_down.pop(leg, None)
        factor = fault.factor if fault.kind == "slow" else 1.0
        for engine in engines:
            self._nodes[engine].slow = factor
        for leg in legs:
            self._links[leg].slow = factor
        self._note(fault.kind, fault.target + (f" x{factor:g}" if factor != 1.0 else ""))
        self._replan(engines if fault.kind == "fail" else [])

    def _replan(self, failing: list[int]) -> None:
        left = self._whole.restricted(self._engines_down, self._legs_down)
        slowed = any(n.slow != 1.0 for n in self._nodes) or any(k.slow != 1.0 for k in self._links)
        impaired = bool(self._engines_down or self._legs_down or slowed)
        value = self._plan.max_flow_tokens_per_s
        if impaired:
            value, flow = self._flow(left)
            left = self._whole.restricted(self._engines_down, self._legs_down, flow)
        for item in self._stranded(left):
            self._home.evict(item)
        for engine in failing:
            self._nodes[engine].fail()
        self._change(left, impaired)
        self._home.retry()
        self._note(
            "flow", f"{value:.2f} tokens/s" if left.connected else "no path through all layers"
        )

    def _stranded(self, left: Topology) -> list[Sequence]:
        """Requests whose path is broken, the youngest first."""
        stranded = []
        for item in self._home.active.values():
            broken = any(hop.engine in self._engines_down for hop in item.hops)
            broken = broken or any(leg in self._legs_down for leg in item.legs)
            unfinished = len(item.legs) == len(item.hops)
            if unfinished and not broken:
                at = item.hops[-1].engine if item.hops else left.coordinator
                broken = not left.out[at]
            if broken:
                stranded.append(item)
        return sorted(stranded, key=lambda item: -item.order)

    def _flow(self, left: Topology) -> tuple[float, dict[int, float]]:
        """Max flow of what is left, by leg; the plan's own flow where the tables end."""
        usable = [leg for legs in left.out for leg in legs]
        try:
            return degraded_flow(
                self._plan,
                self._cost,
                usable,
                engines_down=self._engines_down,
                engine_slow={i: node.slow for i, node in enumerate(self._nodes)},
                leg_slow={i: link.slow for i, link in enumerate(self._links)},
            )
        except PenstockError:
            kept = {leg: self._plan.legs[leg].flow_tokens_per_s for leg in usable}
            home = left.coordinator
            return sum(f for leg, f in kept.items() if left.src[leg] == home), kept

    def _note(self, kind: str, detail: str) -> None:
        self.events.append(RunEvent(self._loop.now, kind, detail))
