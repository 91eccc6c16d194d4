"""Nodes of a plan of whole engines that fail and come back."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.measure.run import RunEvent
from penstock.sim.disaggregated.changing import ChangingSimulation
from penstock.sim.disaggregated.engine import RoleEngine
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.engines.options import EngineOptions
from penstock.spec.faults import Fault, FaultSchedule
from penstock.spec.workload import Workload

NodesOf = Mapping[str, tuple[str, ...]]
"""Engine name -> the nodes of its stages."""


class FaultySimulation(ChangingSimulation):
    """An engine is lost with any of its nodes and comes back, empty, when all of them are up.

    Requests of a lost engine compute prompt and output so far again elsewhere; where nobody is
    left for a phase they wait.
    """

    def __init__(
        self,
        fleet: RoleFleet,
        workload: Workload,
        cost: StepCostModel,
        options: EngineOptions,
        *,
        nodes_of: NodesOf,
        faults: FaultSchedule,
    ) -> None:
        super().__init__(fleet, workload, cost, options)
        _check(faults, nodes_of)
        self._nodes_of = nodes_of
        self._down: set[str] = set()
        self._at: dict[str, RoleEngine | None] = {e.spec.name: e for e in self._engines}
        for fault in faults.faults:
            self.at(fault.at_s, lambda now, one=fault: self._apply(one, now))  # type: ignore[misc]

    def _apply(self, fault: Fault, now: float) -> None:
        node = fault.node
        assert node is not None
        self._happened.append(RunEvent(now, fault.kind, node))
        if fault.kind == "fail":
            self._down.add(node)
        else:
            self._down.discard(node)
        for spec in self._fleet.engines:
            engine, nodes = self._at[spec.name], self._nodes_of[spec.name]
            lost = any(other in self._down for other in nodes)
            if lost and engine is not None:
                self._at[spec.name] = None
                self._stop(engine, now)
            elif not lost and engine is None:
                self._at[spec.name] = self._open(spec)
                self._resume(now)


def _check(faults: FaultSchedule, nodes_of: NodesOf) -> None:
    """Raise ``SpecError`` for nodes without engines and for what only requests' own paths know."""
    names = [node for nodes in nodes_of.values() for node in nodes]
    faults.check_names(names, [])
    for i, fault in enumerate(faults.faults):
        if fault.kind == "slow":
            raise SpecError(
                "whole engines fail or recover; slow is for paths over nodes",
                source=faults.source or None,
                key=f"faults[{i}].kind",
                value=fault.kind,
                fix="use fail and recover",
            )
