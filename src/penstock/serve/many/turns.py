"""Engines on the same nodes take turns: whose step enters next is the policy's decision.

The policy is the simulator's (``policy/sharing.py``); here it is only asked.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.policy.sharing import TimeShare, Turn
from penstock.serve.coordinator.engine import EngineDriver


class Turns:
    """The engines of one group of ``stages`` nodes, with at most that many steps on their way."""

    def __init__(self, policy: TimeShare, stages: int, clock: Callable[[], float]) -> None:
        self.policy = policy
        self.drivers: list[EngineDriver] = []
        self._stages = stages
        self._clock = clock

    def join(self, driver: EngineDriver) -> None:
        driver.turns = self
        self.drivers.append(driver)

    def leave(self, driver: EngineDriver) -> None:
        """Its steps that are under way count no more."""
        driver.turns = None
        self.drivers.remove(driver)
        self.pump()

    def free_s(self) -> float:
        """Seconds until a step can enter the first stage, by estimate."""
        if not any(driver.in_flight for driver in self.drivers):
            return 0.0
        return max(0.0, max(driver.first_free_s for driver in self.drivers) - self._clock())

    def pump(self) -> None:
        """Send off as many steps as the nodes take."""
        now = self._clock()
        ready = [driver for driver in self.drivers if driver.alive and driver.outstanding]
        while ready and sum(driver.in_flight for driver in self.drivers) < self._stages:
            index = self.policy.next([_turn(driver, now) for driver in ready])
            driver = ready[index]
            if driver.step_off():
                assert driver.standing is not None
                driver.standing.urgency.started(now)
            else:
                del ready[index]
        for driver in self.drivers:
            driver.settle()


def _turn(driver: EngineDriver, now: float) -> Turn:
    assert driver.standing is not None
    return driver.standing.turn(now)
