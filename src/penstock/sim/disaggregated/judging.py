"""Probes in general: the requests of one, the limits of each, and the verdict on its run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from math import inf
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.measure.run import Run
from penstock.plan.goodput.fleet import Phase, Probe
from penstock.sim.disaggregated.certainty import Certain
from penstock.spec.workload import SLO, Request, Workload
from penstock.spec.workloads import with_rate

Submit = Callable[..., "Future[Any]"]
S = TypeVar("S")
J = TypeVar("J")


def first_requests(
    workload: Workload, rate_per_s: float, count: int, seed: int, phase: Phase
) -> tuple[Request, ...]:
    """The first ``count`` requests at a rate. Raises ``SpecError`` where there are none."""
    workload = with_rate(workload, rate_per_s)
    if not len(workload.trace):
        workload = replace(workload, duration_s=2 * count / rate_per_s + 60)
    requests = tuple(islice(workload.requests(seed), count))
    if not requests:
        raise SpecError(f"workload {workload.name} has no requests", key="workload")
    if phase == "prefill":
        requests = tuple(replace(one, output_tokens=1) for one in requests)
    return requests


def limits_of(slo: SLO, phase: Phase) -> tuple[float, float, float]:
    """Seconds of TTFT, TPOT and end to end that count in a phase; infinity = no limit."""
    ttft = inf if slo.ttft_s is None or phase == "decode" else slo.ttft_s
    tpot = inf if slo.tpot_s is None or phase == "prefill" else slo.tpot_s
    e2e = inf if slo.e2e_s is None or phase != "both" else slo.e2e_s
    return ttft, tpot, e2e


def judged(run: Run, watch: Certain) -> Probe:
    """What the requests after the warm-up met, by the limits of ``watch``."""
    table, sent = run.requests, slice(watch.skipped, len(watch.limits))
    count = sent.stop - sent.start
    ttft = (table.first_token_s - table.arrival_s)[sent]
    # Decodes alone: waiting for room counts, as it would between the phases.
    begun = table.arrival_s if watch.from_arrival else table.first_token_s
    tokens = table.output_tokens[sent]
    tpot = (table.last_token_s - begun)[sent] / np.maximum(tokens - 1, 1)
    length_s = max(float(run.header["end_s"]) - float(table.arrival_s[0]), 1e-9)  # type: ignore[arg-type]
    probe = Probe(
        watch.joint,
        watch.within(watch.late_first),
        watch.within(watch.late_rest),
        _quantile(ttft, 99),
        _quantile(tpot, 99),
        float(table.generated_tokens.sum()) / length_s,
        watch.certain,
        watch.within(watch.late_queue),
        _quantile(tpot[tokens > 1], 50),
        count,
    )
    if watch.certain:
        return probe
    limits = watch.limits[sent]
    done = ~np.isnan(table.last_token_s[sent])
    first, rest = _within(ttft, limits[:, 0]) & done, _within(tpot, limits[:, 1]) & done
    queued = (table.admitted_s - table.arrival_s)[sent]
    most_s = inf if watch.max_queue_s is None else watch.max_queue_s
    soon = _within(queued, np.full(count, most_s))
    e2e = _within((table.last_token_s - table.arrival_s)[sent], limits[:, 2])
    shares = [float(mask.sum()) / count for mask in (first & rest & e2e & soon, first, rest, soon)]
    return replace(
        probe, joint=shares[0], ttft_share=shares[1], tpot_share=shares[2], queue_share=shares[3]
    )


def _within(values: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values <= limits) | np.isinf(limits)


def _quantile(values: NDArray[np.float64], percent: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, percent)) if len(known) else inf


class PooledProbes(Generic[S, J]):
    """Probes by ``run(setting, job)``, here or over a pool of ``width`` workers.

    ``submit`` is that of a pool (``concurrent.futures`` or alike); None = run at once, here.
    ``runs`` counts the simulations that were asked for.
    """

    def __init__(
        self,
        run: Callable[[S, J], Probe],
        setting: S,
        submit: Submit | None = None,
        width: int = 1,
    ) -> None:
        self._run = run
        self._setting = setting
        self._packed = b"" if submit is None else pickle.dumps((run, setting))
        self._submit = submit
        self._width = width if submit is not None else 1
        self.runs = 0

    @property
    def width(self) -> int:
        return self._width

    def submit(self, job: J) -> Future[Probe]:
        self.runs += 1
        if self._submit is not None:
            return self._submit(run_packed, self._packed, job)
        return answered(self._run(self._setting, job))

    def keep(self, job: J, probe: Probe) -> None:
        """Nothing is remembered."""


def answered(probe: Probe) -> Future[Probe]:
    """A future that has its answer."""
    future: Future[Probe] = Future()
    future.set_result(probe)
    return future


def run_packed(packed: bytes, job: object) -> Probe:
    """Run a job in a worker, which unpacks the setting once."""
    run, setting = _unpacked(packed)
    return run(setting, job)


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> tuple[Callable[[Any, Any], Probe], Any]:
    pair: tuple[Callable[[Any, Any], Probe], Any] = pickle.loads(packed)
    return pair
