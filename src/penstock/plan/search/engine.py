"""Runs of the annealing kernel: many starts, several demands, one or more processes.

Budgets are counted in proposals and jobs come in rounds of fixed size whose results are merged in
order, so the outcome depends on the seed alone, not on speed or on the number of processes.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from penstock.plan.fleet import Fleet
from penstock.plan.search import kernel
from penstock.plan.search.constructors import Intervals, fill

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNIT = 20
"""Integer price of one missing layer."""
ROUND = 4
"""Jobs per round: fixed, so that the number of processes changes nothing but the speed."""
PATIENCE = 3
"""Rounds without a better placement after which a climb ends."""
HOT, COLD = 0.5, 0.02
"""Temperatures in layers."""
DETOUR_LAYERS = 2.0


@dataclass(frozen=True)
class Job:
    """One annealing run. Prices in layers; ``leg_price`` ``[n+1, n+1]`` in units of ``UNIT``."""

    instance: kernel.Instance
    demand: float
    start: Ints
    end: Ints
    proposals: int
    seed: int
    hop_price: float = 0.0
    detour_price: float = DETOUR_LAYERS
    hot: float = HOT


@dataclass(frozen=True)
class Found:
    """The best states of a run: by energy (layers) and by max flow (tokens/s)."""

    demand: float
    energy: float
    cheapest: Intervals
    max_flow: float
    widest: Intervals


def instance(fleet: Fleet, leg_price: Ints | None = None) -> kernel.Instance:
    """The kernel's view of a fleet; a price on any leg makes links count."""
    n = fleet.num_nodes
    if leg_price is None:
        leg_price = np.zeros((n + 1, n + 1), dtype=np.int64)
    return kernel.Instance(
        num_layers=fleet.num_layers,
        capacity=np.ascontiguousarray(fleet.capacity),
        max_layers=fleet.max_layers,
        alike=fleet.class_of,
        free_links=fleet.free_links and not leg_price.any(),
        link=np.ascontiguousarray(fleet.link),
        leg_price=leg_price,
        partial=fleet.partial,
    )


def run(job: Job) -> Found:
    """Anneal once, in this process."""
    n = len(job.start)
    work = kernel.work_space(n, job.instance.num_layers, UNIT)
    best = np.zeros((4, n), dtype=np.int64)
    prices = kernel.Prices(
        UNIT, round(job.hop_price * UNIT), 2 * round(job.detour_price * UNIT / 2)
    )
    outcome = kernel.compiled()(
        job.instance,
        prices,
        kernel.Schedule(job.proposals, job.hot, COLD, job.seed),
        job.demand,
        job.start.copy(),
        job.end.copy(),
        work,
        best,
    )
    rows = best.tolist()
    return Found(
        demand=job.demand,
        energy=outcome.energy,
        cheapest=list(zip(rows[0], rows[1], strict=True)),
        max_flow=outcome.max_flow,
        widest=list(zip(rows[2], rows[3], strict=True)),
    )


RunJobs = Callable[[Sequence[Job]], list[Found]]


@contextmanager
def runner(processes: int) -> Iterator[RunJobs]:
    """Yield what runs jobs, in order of the jobs; with fresh processes when more than one."""
    if processes <= 1:
        yield lambda jobs: [run(job) for job in jobs]
        return
    kernel.compiled()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_interrupts)
    try:
        yield lambda jobs: list(pool.map(run, jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def random_start(fleet: Fleet, rng: Random) -> tuple[Ints, Ints]:
    """An interval of random length and place for every node."""
    starts, ends = [], []
    for most in fleet.max_layers.tolist():
        held = rng.randint(1, most)
        start = rng.randint(0, fleet.num_layers - held)
        starts.append(start)
        ends.append(start + held)
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def proposals_per_run(num_nodes: int) -> int:
    """A run takes a few seconds of one core whatever the number of nodes, less for small fleets."""
    return int(min(25_000 * num_nodes, max(20_000, 4e8 / num_nodes**2)))


@dataclass
class Deadline:
    """A safety stop in wall time; the budget proper is counted in proposals."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


@dataclass
class Climb:
    """The search for the largest max flow: best so far, and the bound that ends it."""

    fleet: Fleet
    intervals: Intervals
    value: float
    bound: float
    seed: int = 0

    def rounds(self, run_jobs: RunJobs, count: int, deadline: Deadline) -> Iterator[float]:
        """Run up to ``count`` rounds of jobs; yield the best value after each.

        Demands lie between the best value (or most of the bound) and the bound, more often near the
        former; the last job of every third round asks for the bound itself. Seven starts in ten
        are random, the others continue from the best placement at a lower temperature.
        """
        rng = Random(self.seed)
        inst = instance(self.fleet)
        stale = 0
        for number in range(count):
            if deadline.passed or stale == PATIENCE or self.value >= self.bound * (1 - 1e-9):
                return
            before = self.value
            jobs = [self._job(inst, rng, ROUND * number + k) for k in range(ROUND)]
            for found in run_jobs(jobs):
                if found.max_flow > self.value * (1 + 1e-9):
                    self.value, self.intervals = found.max_flow, found.widest
            stale = 0 if self.value > before else stale + 1
            yield self.value

    def _job(self, inst: kernel.Instance, rng: Random, number: int) -> Job:
        low = max(self.value * (1 + 1e-6), 0.75 * self.bound)
        skew = rng.random() ** 3
        asks_bound = number % (3 * ROUND) == ROUND - 1
        demand = self.bound if asks_bound else low + (self.bound - low) * skew
        hot = HOT
        start, end = random_start(self.fleet, rng)
        if rng.random() < 0.3 and self.value > 0:
            start, end = fill(self.fleet, self.intervals)
            hot = HOT * rng.uniform(0.2, 0.6)
        return Job(
            inst,
            demand,
            start,
            end,
            proposals_per_run(self.fleet.num_nodes),
            self.seed * 1_000_003 + number,
            hot=hot,
        )
