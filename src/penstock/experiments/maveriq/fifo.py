"""One FIFO for all models of a host: the head waits for its GPUs, and everybody waits for it.

MaverIQ's controller polls every 10 ms and looks at the head only. A request holds all GPUs of
its model until it is done: batch 1, no pipelining of different requests, no drops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError

FloatArray = NDArray[np.float64]

POLL_S = 0.01
GRACE_S = 300.0


@dataclass(frozen=True, slots=True)
class Server:
    """A deployed model: the GPUs it holds while it works, and its seconds a request."""

    gpus: tuple[int, ...]
    service_s: float

    def __post_init__(self) -> None:
        if not self.gpus or min(self.gpus) < 0:
            raise InputError("a deployed model needs GPUs of 0 or more; give their indices")
        if not (math.isfinite(self.service_s) and self.service_s > 0):
            raise InputError(f"seconds a request must be above 0 (got {self.service_s})")


@dataclass(frozen=True, slots=True)
class Served:
    """What became of every request, in order of arrival; NaN where it has no end."""

    arrival_s: FloatArray
    start_s: FloatArray
    end_s: FloatArray
    model: NDArray[np.int64]
    rejected: int

    @property
    def done(self) -> NDArray[np.bool_]:
        return np.isfinite(self.end_s)

    @property
    def latency_s(self) -> FloatArray:
        """Seconds from arrival to end of the completed requests."""
        values: FloatArray = (self.end_s - self.arrival_s)[self.done]
        return values

    @property
    def per_minute(self) -> float:
        """Completed requests per minute from the first arrival to the last end."""
        if not np.any(self.done):
            return 0.0
        span_s = float(np.nanmax(self.end_s) - self.arrival_s[self.done][0])
        return 60.0 * int(self.done.sum()) / span_s

    @property
    def per_minute_waiting_twice(self) -> float:
        """As ``per_minute``, with the end taken as start + latency, which counts waiting twice.

        Accelerate's published rates fit this rule: its logs hold the start of the execution and
        the latency from the scheduled arrival on.
        """
        if not np.any(self.done):
            return 0.0
        ends = self.start_s + self.end_s - self.arrival_s
        span_s = float(np.nanmax(ends) - self.arrival_s[self.done][0])
        return 60.0 * int(self.done.sum()) / span_s

    def attainment(self, limits_s: Sequence[float]) -> tuple[float, float]:
        """Share within the limit of their model: of completed, and of sent requests."""
        limits = np.asarray(limits_s)[self.model][self.done]
        good = int(np.count_nonzero(self.latency_s <= limits))
        completed = int(self.done.sum())
        return (good / completed if completed else 0.0), good / len(self.arrival_s)


def serve_fifo(
    arrival_s: FloatArray,
    model: NDArray[np.int64],
    servers: Mapping[int, Sequence[Server]],
    *,
    poll_s: float = POLL_S,
    grace_s: float = GRACE_S,
    blocked_s: Sequence[tuple[float, float]] = (),
) -> Served:
    """Serve requests in order of arrival.

    ``servers`` holds the replicas of each model, which take turns; requests of a model without
    one are rejected. Nothing starts that would end later than ``grace_s`` after the last arrival.
    ``blocked_s`` are (asked at, seconds) of work in the same queue that holds the whole host,
    such as loading in the same thread. With ``poll_s`` 0 the head is seen at once.
    """
    starts, ends = np.full(len(arrival_s), np.nan), np.full(len(arrival_s), np.nan)
    if not len(arrival_s):
        return Served(arrival_s, starts, ends, model, 0)
    free = [0.0] * (1 + max((g for rs in servers.values() for r in rs for g in r.gpus), default=0))
    stop_s = float(arrival_s[-1]) + grace_s
    turns = dict.fromkeys(servers, 0)
    waiting = sorted(blocked_s)
    last_s = -math.inf
    rejected = 0
    for i, (asked_s, which) in enumerate(zip(arrival_s.tolist(), model.tolist(), strict=True)):
        while waiting and waiting[0][0] <= asked_s:
            load_at_s, load_s = waiting.pop(0)
            begun_s = max(load_at_s, last_s, *free)
            free = [begun_s + load_s] * len(free)
        replicas = servers.get(which)
        if not replicas:
            rejected += 1
            continue
        server = replicas[turns[which] % len(replicas)]
        turns[which] += 1
        start_s = max(asked_s, *(free[g] for g in server.gpus))
        if poll_s:
            start_s = max(math.ceil(start_s / poll_s) * poll_s, last_s + poll_s)
        start_s = max(start_s, last_s)
        end_s = start_s + server.service_s
        last_s = start_s
        for g in server.gpus:
            free[g] = end_s
        if end_s <= stop_s:
            starts[i], ends[i] = start_s, end_s
    return Served(arrival_s, starts, ends, model, rejected)
