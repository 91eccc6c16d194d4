"""Which engines stand on the same nodes, while engines come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from penstock.plan.pool_plan import TurnRule
from penstock.policy.deadline import DeadlineAdmission, Pace, within
from penstock.policy.schedulers.sequence import Sequence
from penstock.policy.sharing import TimeShare
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.coordinator.standing import Standing
from penstock.serve.many.turns import Turns
from penstock.spec.workload import SLO, SLOClass

Place = tuple[frozenset[tuple[str, int]], ...]
"""The GPUs of every stage, in order."""


class Groups:
    """All groups of a server, who take turns by ``rule``."""

    def __init__(
        self, rule: TurnRule, classes: Iterable[SLOClass], clock: Callable[[], float]
    ) -> None:
        self.classes: Mapping[str, SLOClass] = {one.name: one for one in classes}
        self._rule = rule
        self._clock = clock
        self._turns: dict[Place, Turns] = {}
        self._places: dict[EngineDriver, Place] = {}

    def set_rule(self, rule: TurnRule) -> None:
        """Take turns by ``rule`` from now on."""
        self._rule = rule
        for turns in self._turns.values():
            turns.policy = TimeShare(rule)

    def set_classes(self, classes: Iterable[SLOClass]) -> None:
        """Go by the limits of ``classes``; engines that are here keep those they came with."""
        self.classes = {one.name: one for one in classes}

    def join(self, driver: EngineDriver, place: Place, priority: int, pace: Pace | None) -> None:
        """Add an engine that has no request yet; with a ``pace`` its times can be estimated."""
        turns = self._turns.get(place)
        if turns is None:
            turns = self._turns[place] = Turns(TimeShare(self._rule), len(place), self._clock)
        driver.standing = Standing(self.classes, priority, pace)
        self._places[driver] = place
        turns.join(driver)

    def leave(self, driver: EngineDriver) -> None:
        place = self._places.pop(driver, None)
        if place is None:
            return
        turns = self._turns[place]
        turns.leave(driver)
        if not turns.drivers:
            del self._turns[place]

    def in_time(self, engine: EngineDriver, seq: Sequence) -> bool:
        """Whether ``seq`` would end within the limits of its class on ``engine``."""
        entry, standing = self.classes.get(seq.client), engine.standing
        if entry is None or entry.slo == SLO() or standing is None or standing.pace is None:
            return True
        now = self._clock()
        own = standing.neighbour(now, engine.under_way)
        turns = self._turns[self._places[engine]]
        others = [
            other.standing.neighbour(now, other.under_way)
            for other in turns.drivers
            if other is not engine
            and other.standing is not None
            and other.standing.pace is not None
            and other.standing.backlog.requests
        ]
        expected = DeadlineAdmission(self._rule).estimate(
            seq,
            own.pace,
            own.work,
            others,
            free_s=turns.free_s(),
            priority=standing.urgency.priority,
        )
        output_tokens = seq.total_tokens - seq.prompt_tokens
        return within(entry.slo, expected, output_tokens, now - seq.arrival_s)
