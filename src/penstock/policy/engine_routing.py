"""Which engine serves a request, and whether any does: decided at arrival, never revised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from random import Random
from typing import Protocol, TypeVar

from penstock.errors import SpecError
from penstock.policy.schedulers.sequence import Sequence
from penstock.spec.names import did_you_mean, normalise


class EngineLoad(Protocol):
    """What a router sees of an engine. ``index`` is its place in the fleet."""

    @property
    def index(self) -> int: ...

    @property
    def weight(self) -> float:
        """Planned share of the requests, in any unit."""
        ...

    @property
    def outstanding(self) -> int:
        """Requests it has and has not finished."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests in its waiting queue."""
        ...

    @property
    def kv_use(self) -> float:
        """Share of its KV blocks in use."""
        ...

    def cached_tokens(self, seq: Sequence) -> int:
        """Prompt tokens of ``seq`` in its prefix cache."""
        ...


class EngineRouter(Protocol):
    """Chooses among the engines that accept requests now (at least one)."""

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad: ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._count = -1

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad:
        self._count += 1
        return engines[self._count % len(engines)]


class RandomChoice:
    """Any engine, with equal chances."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"{seed}/router")

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad:
        return engines[self._rng.randrange(len(engines))]


class Least:
    """The engine with the least of a figure; the first of equals."""

    def __init__(self, figure: Callable[[EngineLoad], float]) -> None:
        self._figure = figure

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad:
        return min(engines, key=self._figure)


class PrefixAffinity:
    """The engine that has most of the prompt cached, if the others are not much less busy.

    An engine may have up to ``slack`` outstanding requests more than the least busy one; among
    those with the longest hit the least busy one is taken.
    """

    def __init__(self, slack: int = 8) -> None:
        self._slack = slack

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad:
        limit = min(engine.outstanding for engine in engines) + self._slack
        near = [engine for engine in engines if engine.outstanding <= limit]
        return min(near, key=lambda engine: (-engine.cached_tokens(seq), engine.outstanding))


class FlowWeighted:
    """In proportion to the planned weights, evenly interleaved (smooth weighted round robin)."""

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}

    def pick(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> EngineLoad:
        credit = self._credit
        total = 0.0
        for engine in engines:
            credit[engine.index] = credit.get(engine.index, 0.0) + engine.weight
            total += engine.weight
        best = max(engines, key=lambda engine: credit[engine.index])
        credit[best.index] -= total
        return best


ROUTERS: Mapping[str, Callable[[int], EngineRouter]] = {
    "round-robin": lambda seed: RoundRobin(),
    "random": RandomChoice,
    "least-outstanding": lambda seed: Least(lambda engine: engine.outstanding),
    "least-waiting": lambda seed: Least(lambda engine: engine.num_waiting),
    "least-kv-use": lambda seed: Least(lambda engine: engine.kv_use),
    "prefix-affinity": lambda seed: PrefixAffinity(),
    "flow-weighted": lambda seed: FlowWeighted(),
}
"""``least-waiting`` is Vidur's ``lor``, which does not count running requests."""

_ALIASES = {"lor": "least-waiting", "vidur-lor": "least-waiting"}


def make_router(name: str, seed: int = 0) -> EngineRouter:
    """The router called ``name``. Raises ``SpecError`` with the nearest known name."""
    folded = {normalise(known): make for known, make in ROUTERS.items()}
    folded |= {normalise(alias): ROUTERS[known] for alias, known in _ALIASES.items()}
    make = folded.get(normalise(name))
    if make is None:
        raise SpecError("unknown router", key="router", value=name, fix=did_you_mean(name, ROUTERS))
    return make(seed)


class AbleLoad(EngineLoad, Protocol):
    """An engine that knows whether it could ever serve a request."""

    def fits(self, seq: Sequence) -> bool: ...


E = TypeVar("E", bound=AbleLoad)


def choose(router: EngineRouter, seq: Sequence, engines: SequenceOf[E]) -> E:
    """The router's choice; it is not asked where there is none to make."""
    if len(engines) == 1:
        return engines[0]
    picked = router.pick(seq, engines)
    return next(engine for engine in engines if engine is picked)


def choose_able(
    router: EngineRouter,
    seq: Sequence,
    engines: SequenceOf[E],
    in_time: Callable[[E], bool] | None = None,
) -> tuple[E | None, bool]:
    """(an engine for ``seq``, whether one fits at all): the router's first choice, if it will do.

    ``in_time`` says whether an engine would keep the request's limits; the others are tried where
    the first choice would not.
    """
    if not engines:
        return None, False
    first = choose(router, seq, engines)
    if not first.fits(seq):
        able = [engine for engine in engines if engine.fits(seq)]
        if not able:
            return None, False
        engines, first = able, choose(router, seq, able)
    if in_time is None or in_time(first):
        return first, True
    timely = [e for e in engines if e is not first and e.fits(seq) and in_time(e)]
    return (choose(router, seq, timely) if timely else None), True


class Admission(Protocol):
    """Whether a request may enter; False sheds it."""

    def __call__(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> bool: ...


def admit_all(seq: Sequence, engines: SequenceOf[EngineLoad]) -> bool:
    """Nothing is shed."""
    return True


class ShedAbove:
    """Sheds load while every engine has ``max_waiting`` requests waiting, or more."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting

    def __call__(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> bool:
        return any(engine.num_waiting < self._max_waiting for engine in engines)


class Autoscaler(Protocol):
    """How many engines should accept requests from now on (the first ones of the fleet).

    The others finish what they have. Asked every ``EngineOptions.autoscale_every_s``.
    """

    def __call__(self, now_s: float, active: int, engines: SequenceOf[EngineLoad]) -> int: ...
