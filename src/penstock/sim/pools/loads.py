"""Weights on their way from disk to GPUs."""

from __future__ import annotations

from math import inf

from penstock.sim.pools.engine import PoolEngine


class Loads:
    """Loads in progress. A node's disk is its share of its machine's (``plan.parts``); the loads
    of engines on the same GPUs at once share it equally."""

    def __init__(self) -> None:
        self._left_s: dict[PoolEngine, float] = {}
        self._now_s = 0.0
        self.next_s = inf
        """When the next one is complete; infinity if nothing is being loaded."""

    def begin(self, engine: PoolEngine, now: float) -> None:
        """Start to read the weights of ``engine``."""
        self._advance(now)
        self._left_s[engine] = engine.load_s
        self._look()

    def cancel(self, engine: PoolEngine, now: float) -> None:
        """Stop reading; nothing where ``engine`` was not being loaded."""
        self._advance(now)
        self._left_s.pop(engine, None)
        self._look()

    def take(self) -> PoolEngine:
        """The engine whose load is complete at ``next_s``."""
        speeds = self._speeds()
        engine = min(self._left_s, key=lambda e: (self._left_s[e] / speeds[e], e.index))
        self._advance(self.next_s)
        del self._left_s[engine]
        self._look()
        return engine

    def _speeds(self) -> dict[PoolEngine, float]:
        """Share of its full speed that each load has."""
        return {
            engine: 1 / sum(not engine.gpus.isdisjoint(other.gpus) for other in self._left_s)
            for engine in self._left_s
        }

    def _advance(self, now: float) -> None:
        for engine, speed in self._speeds().items():
            self._left_s[engine] = max(0.0, self._left_s[engine] - (now - self._now_s) * speed)
        self._now_s = now

    def _look(self) -> None:
        speeds = self._speeds()
        self.next_s = self._now_s + min(
            (left_s / speeds[engine] for engine, left_s in self._left_s.items()), default=inf
        )
