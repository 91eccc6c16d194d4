"""Which engine takes a request: the router's choice, where it is in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from penstock.policy.engine_routing import EngineRouter, choose_able
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.protocol import Overloaded


class InTime(Protocol):
    """Whether a request would end within its limits on an engine."""

    def __call__(self, engine: EngineDriver, seq: Served) -> bool: ...


def pick(
    router: EngineRouter, seq: Served, able: Sequence[EngineDriver], in_time: InTime | None
) -> EngineDriver:
    """One of ``able``, all of which fit ``seq``. Raises ``Overloaded`` where none is in time."""
    if in_time is None:
        picked = router.pick(seq, able).index
        return next(engine for engine in able if engine.index == picked)
    engine, _ = choose_able(router, seq, able, partial(in_time, seq=seq))
    if engine is None:
        raise Overloaded("the request would end after the limits of its class")
    return engine
