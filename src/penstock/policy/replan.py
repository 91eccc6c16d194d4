"""When traffic has moved enough to plan a pool anew, and the traffic to plan for.

A plan is made for a rate of each model. Requests of a sliding window say what the rate is now; it
has moved when it lies outside ``factor`` times, or a ``factor``-th of, the planned one, and by
more than chance explains: ``z`` standard deviations of the count that the planned rate gives.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

from penstock.errors import SpecError
from penstock.spec.workload import Request, Workload


@dataclass(frozen=True, slots=True)
class ReplanSettings:
    """How much has to move, and how often a pool may change.

    ``window_s`` seconds of requests are looked at and planned for; ``rest_s`` must pass after a
    question before the next one. ``dispersion`` is the variance of counts over their mean: 1 for
    Poisson arrivals, the squared coefficient of variation of gaps for bursty ones.
    """

    window_s: float = 300.0
    rest_s: float = 300.0
    factor: float = 1.5
    z: float = 3.0
    dispersion: float = 1.0

    def __post_init__(self) -> None:
        for key in ("window_s", "dispersion"):
            value = getattr(self, key)
            if not 0 < value < inf:
                raise SpecError("must be finite and above 0", key=f"replan.{key}", value=value)
        for key in ("rest_s", "z"):
            value = getattr(self, key)
            if not 0 <= value < inf:
                raise SpecError("must be finite and 0 or more", key=f"replan.{key}", value=value)
        if not 1 < self.factor < inf:
            raise SpecError("must be above 1", key="replan.factor", value=self.factor)


@dataclass(frozen=True, slots=True)
class Moved:
    """One model whose rate has left its band: requests/s."""

    model: str
    planned_per_s: float
    seen_per_s: float


class ReplanController:
    """Counts requests of each model and says when the planned rates no longer hold.

    ``rates_per_s``: what the plan in force was made for, by model; a model that is absent has
    rate 0. Pure: the driver tells the time.
    """

    def __init__(
        self, rates_per_s: Mapping[str, float], settings: ReplanSettings | None = None
    ) -> None:
        self.settings = settings or ReplanSettings()
        self.rates_per_s = dict(rates_per_s)
        self._seen: deque[Request] = deque()
        self._counts: Counter[str] = Counter()
        self._rests_until_s = -inf

    def observe(self, now_s: float, requests: Sequence[Request]) -> None:
        """Take in what has arrived until ``now_s``; forget what is older than the window."""
        self._seen.extend(requests)
        self._counts.update(request.model for request in requests)
        while self._seen and self._seen[0].arrival_s < now_s - self.settings.window_s:
            self._counts[self._seen.popleft().model] -= 1

    def moved(self, now_s: float) -> tuple[Moved, ...]:
        """Models outside of their band, the largest change first.

        None before a full window has passed, nor while the controller rests.
        """
        if now_s < max(self.settings.window_s, self._rests_until_s):
            return ()
        found = [
            Moved(model, self.rates_per_s.get(model, 0.0), self.seen_per_s(model))
            for model in sorted({*self.rates_per_s, *self._counts})
            if self._outside(model)
        ]
        return tuple(sorted(found, key=lambda one: -abs(one.seen_per_s - one.planned_per_s)))

    def seen_per_s(self, model: str) -> float:
        """Requests/s of ``model`` in the window."""
        return self._counts[model] / self.settings.window_s

    def ask(self, now_s: float, like: Workload) -> Workload | None:
        """The traffic to plan for, if a rate has moved; the controller then takes it as planned.

        It is the window's own requests, from time 0 on, with the classes of ``like``.
        """
        if not self.moved(now_s):
            return None
        settings = self.settings
        self._rests_until_s = now_s + settings.rest_s
        self.rates_per_s = {
            model: self.seen_per_s(model) for model, count in self._counts.items() if count
        }
        start_s = now_s - settings.window_s
        trace = tuple(
            replace(request, id=number, arrival_s=request.arrival_s - start_s)
            for number, request in enumerate(self._seen)
        )
        return Workload(
            f"{like.name} at {now_s:g} s",
            settings.window_s,
            trace=trace,
            classes=like.classes,
            seed=like.seed,
        )

    def _outside(self, model: str) -> bool:
        settings = self.settings
        expected = self.rates_per_s.get(model, 0.0) * settings.window_s
        count = self._counts[model]
        # A model that was not planned for counts with its first requests beyond chance.
        spread = settings.z * sqrt(max(1.0, expected) * settings.dispersion)
        within = expected / settings.factor <= count <= expected * settings.factor
        return not within and abs(count - expected) > spread


def rates_of(workload: Workload, seed: int | None = None) -> dict[str, float]:
    """Requests/s of each model of ``workload``, over its duration or until its last request."""
    counts: Counter[str] = Counter()
    last_s = 0.0
    for request in workload.requests(seed):
        counts[request.model] += 1
        last_s = request.arrival_s
    span_s = workload.duration_s if 0 < workload.duration_s < inf else last_s
    return {model: count / max(span_s, 1e-9) for model, count in counts.items()}
