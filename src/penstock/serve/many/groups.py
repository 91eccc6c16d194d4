"""Which engines stand on the same nodes, while engines come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.plan.pool_plan import TurnRule
from penstock.policy.sharing import TimeShare, Urgency
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.many.turns import Turns
from penstock.spec.workload import SLOClass

Place = tuple[frozenset[tuple[str, int]], ...]
"""The GPUs of every stage, in order."""


class Groups:
    """All groups of a server, who take turns by ``rule``."""

    def __init__(
        self, rule: TurnRule, classes: Mapping[str, SLOClass], clock: Callable[[], float]
    ) -> None:
        self._rule = rule
        self._classes = classes
        self._clock = clock
        self._turns: dict[Place, Turns] = {}
        self._places: dict[EngineDriver, Place] = {}

    def set_rule(self, rule: TurnRule) -> None:
        """Take turns by ``rule`` from now on."""
        self._rule = rule
        for turns in self._turns.values():
            turns.policy = TimeShare(rule)

    def join(self, driver: EngineDriver, place: Place, priority: int) -> None:
        """Add an engine that has no request yet."""
        turns = self._turns.get(place)
        if turns is None:
            turns = self._turns[place] = Turns(TimeShare(self._rule), len(place), self._clock)
        driver.urgency = Urgency(self._classes, priority)
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
