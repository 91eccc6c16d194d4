"""What becomes of requests when the engine that serves them goes."""

from __future__ import annotations

from math import inf

from penstock.cost.steps import StepCostModel
from penstock.policy.fleet import unreserve
from penstock.policy.schedulers.sequence import Sequence
from penstock.sim.disaggregated.engine import RoleEngine
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.simulate import RoleSimulation
from penstock.sim.disaggregated.transfers import Handoff
from penstock.sim.engines.options import EngineOptions
from penstock.spec.workload import Workload


class ChangingSimulation(RoleSimulation):
    """``RoleSimulation`` whose engines can be withdrawn and stopped; no request is lost.

    ``_retried`` requests started over, with ``_reprefilled`` tokens in all; ``_rescued`` ones
    moved with their KV memory.
    """

    def __init__(
        self, fleet: RoleFleet, workload: Workload, cost: StepCostModel, options: EngineOptions
    ) -> None:
        super().__init__(fleet, workload, cost, options)
        self._draining: set[int] = set()
        self._retried = self._reprefilled = self._rescued = 0

    def _resume(self, now: float) -> None:
        """Somebody has a role again that requests wait for."""
        waiting, self._homeless = self._homeless, type(self._homeless)()
        for seq in waiting:
            self._send(seq, now)
        self._retry(now)

    def _withdraw(self, engine: RoleEngine, now: float, *, rescue: bool) -> None:
        """Nothing new comes here; what only waits goes elsewhere; decodes move if they can."""
        for group in (self._prefillers, self._decoders):
            if engine in group:
                group.remove(engine)
        if engine.spec.role == "decode":
            if rescue and self._decoders:
                self._rescue(engine, now)
            return
        waiting = [seq for seq in engine.rules.waiting if not seq.computed]
        for seq in waiting:
            if engine.rules.remove(seq):
                self._send(seq, now)

    def _rescue(self, engine: RoleEngine, now: float) -> None:
        """Send the KV memory of running decodes to other engines."""
        for seq in engine.halt(now):
            known = seq.prompt_tokens > self._recorder.prompt[seq.row]
            if not known:
                self._start_over(seq, now)
                continue
            # ``prompt_tokens`` counts all tokens so far; all but the last have KV entries.
            seq.computed = seq.prompt_tokens
            self._rescued += 1
            seq.preemptions += 1
            self._hand_over(engine, seq, now)

    def _stop(self, engine: RoleEngine, now: float) -> None:
        """The engine is gone: everything on it or on its way to or from it starts over."""
        self._withdraw(engine, now, rescue=False)
        self._draining.discard(engine.index)
        self._stamp[engine.index] = -1
        self._due_s[engine.index] = inf
        for handoff in [h for h in self._handoffs if engine in (h.source, h.target)]:
            self._cancel(handoff, engine, now)
        for seq in engine.halt(now):
            self._start_over(seq, now)
        self._retry(now)

    def _cancel(self, handoff: Handoff, gone: RoleEngine, now: float) -> None:
        handoff.cancelled = True
        self._handoffs.remove(handoff)
        if handoff in self._pending:
            self._pending.remove(handoff)
        seq, target = handoff.seq, handoff.target
        if target is not None:
            unreserve(target.rules, seq)
        if handoff.source is gone:
            seq.prompt_tokens = max(seq.prompt_tokens, seq.computed)
            seq.computed = 0
            self._start_over(seq, now)
            return
        again = Handoff(seq, handoff.source, handoff.held_blocks, 0.0)
        self._handoffs.append(again)
        self._pending.append(again)

    def _start_over(self, seq: Sequence, now: float) -> None:
        self._retried += 1
        row = seq.row
        if self._recorder.first[row] == self._recorder.first[row]:
            self._reprefilled += seq.prompt_tokens
            # Its first token is out: the engine must not book another one.
            seq.preemptions += 1
            self._recorder.preemptions[row] += 1
        self._send(seq, now)
