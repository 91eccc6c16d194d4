"""What a placement does with its traffic: the fast simulator and its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.plan.pool.kernel import (
    OVERHEAD_S,
    Record,
    compiled_replay,
    empty_record,
    replay,
)
from penstock.plan.pool.model import Floats, PoolPlacement, PoolProblem, PoolTraffic
from penstock.plan.pool.tables import requests_of, state_of, tables_of

PER_SECOND_OF_LATENCY = 1e-4
PER_REPLICA = 1e-6


@dataclass(frozen=True)
class PoolOutcome:
    """What happened to n requests; those rejected or not placed are misses with latency 0.

    ``good`` [n] met its deadline, ``latency_s`` [n], ``group`` [n] the group asked (-1 none).
    """

    good: NDArray[np.bool_]
    latency_s: Floats
    group: NDArray[np.int32]

    @cached_property
    def attainment(self) -> float:
        """Requests that met their deadline, of all requests; 1 where there is none."""
        return float(np.mean(self.good)) if len(self.good) else 1.0

    @cached_property
    def mean_latency_s(self) -> float:
        return float(np.mean(self.latency_s)) if len(self.good) else 0.0

    def score(self, replicas: int) -> float:
        """AlpaServe's objective: attainment, then latency, then replicas."""
        latency = PER_SECOND_OF_LATENCY * self.mean_latency_s
        return self.attainment - latency + PER_REPLICA * replicas


@dataclass(frozen=True)
class TimedPlacement:
    """Placements that follow each other; ``start_s`` ascending, the first one from the start on."""

    start_s: tuple[float, ...]
    placements: tuple[PoolPlacement, ...]


def simulate_pool(
    problem: PoolProblem, placement: PoolPlacement, *, compiled: bool = True
) -> PoolOutcome:
    """Replay the traffic of ``problem``; ``compiled`` False runs the same code as plain Python."""
    problem.check(placement)
    requests = requests_of(problem)
    tables = tables_of(problem.models, [group.shape for group in placement.groups])
    record = empty_record(problem.traffic.num_requests, tables.latency.shape[2])
    run = compiled_replay() if compiled else replay
    run(requests, tables, state_of(problem, placement), record)
    return outcome_of(problem.traffic, record)


def outcome_of(traffic: PoolTraffic, record: Record) -> PoolOutcome:
    """The outcome that a finished replay recorded."""
    good = record.taken >= 0
    latency_s = np.where(good, record.end + OVERHEAD_S - traffic.arrival_s, 0.0)
    return PoolOutcome(good, latency_s, record.choice.copy())


def score(problem: PoolProblem, placement: PoolPlacement) -> float:
    """``placement``'s score on the problem's traffic."""
    return simulate_pool(problem, placement).score(placement.replicas)


def simulate_changing(problem: PoolProblem, timed: TimedPlacement) -> PoolOutcome:
    """Swap whole placements at no cost; a request that comes at the very swap is of the old one."""
    arrival = problem.traffic.arrival_s
    cuts = [0]
    for start in timed.start_s[1:]:
        cuts.append(max(cuts[-1], int(np.searchsorted(arrival, start, side="right"))))
    cuts.append(len(arrival))
    return _joined(
        [
            simulate_pool(
                PoolProblem(problem.models, problem.cluster, problem.traffic.part(first, last)),
                placement,
            )
            for first, last, placement in zip(cuts[:-1], cuts[1:], timed.placements, strict=True)
        ]
    )


def _joined(parts: Sequence[PoolOutcome]) -> PoolOutcome:
    return PoolOutcome(
        np.concatenate([part.good for part in parts]),
        np.concatenate([part.latency_s for part in parts]),
        np.concatenate([part.group for part in parts]),
    )
