"""Engines on the same nodes: one batch at a time in each stage, and whose it is."""

from __future__ import annotations

from collections import deque
from math import inf

from penstock.policy.schedulers.sequence import Sequence
from penstock.policy.sharing import TimeShare
from penstock.sim.pools.engine import PoolEngine


class Group:
    """Engines that share their stages. ``order`` has an entry a batch in flight, oldest first.

    As many batches are in flight as there are stages, over all engines together; they leave in
    the order in which they came, as the stages are the same.
    """

    def __init__(self, index: int, label: str, num_stages: int) -> None:
        self.index = index
        self.label = label
        self.engines: list[PoolEngine] = []
        self.order: deque[PoolEngine] = deque()
        self._stages = num_stages
        self._free_s = [0.0] * num_stages

    def join(self, engine: PoolEngine) -> None:
        self.engines.append(engine)
        engine.on_stages(self._free_s)

    @property
    def has_room(self) -> bool:
        return len(self.order) < self._stages

    @property
    def ends_s(self) -> float:
        return self.order[0].ends_s if self.order else inf

    def free_s(self, now: float) -> float:
        """When a batch can enter the first stage; ``now`` if at once."""
        if self._stages > 1:
            return max(now, self._free_s[0])
        return self.order[0].step_end_s(now) if self.order else now

    def add(self, engine: PoolEngine, seq: Sequence, now: float) -> bool:
        """Give ``seq`` to one of the engines; True when the oldest batch ends sooner now."""
        moved = engine.add(seq, now)
        order = self.order
        if order and order[0] is not engine:
            # It had the nodes for itself, or was ahead of all others: look again.
            return order[0].cut(now)
        return moved

    def event(self, now: float, share: TimeShare, arrival_s: float) -> tuple[float, int, int]:
        """End the batch that is due and form the next ones; see ``EngineSim.event``."""
        order = self.order
        ended = completed = 0
        if order and order[0].ends_s <= now:
            ended, completed = order.popleft().finish_batch()
        while len(order) < self._stages:
            engine = self._start(now, share, arrival_s)
            if engine is None:
                break
            order.append(engine)
        return order[0].ends_s if order else inf, ended, completed

    def _start(self, now: float, share: TimeShare, arrival_s: float) -> PoolEngine | None:
        """Form one batch; None when nobody has anything to run."""
        able = []
        for engine in self.engines:
            if engine.target_blocks is not None and not engine.settle() and engine.in_flight:
                continue  # it changes its memory once its batches are through
            if engine.scheduler.outstanding:
                able.append(engine)
        while able:
            until_s, chosen = inf, 0
            if len(able) > 1:
                turns = [engine.turn(now) for engine in able]
                chosen = share.next(turns)
                if self._stages == 1:
                    until_s = share.until_s(turns, chosen)
            engine = able.pop(chosen)
            if engine.start(now, arrival_s, until_s):
                engine.urgency.started(now)
                return engine
        return None
