"""DistServe's simulator as a setting of ours: zero transfer time, its batch rules and its clock.

TTFT ends with the prompt; TPOT is decode time over output tokens, one decode step more than the
tokens need being run; the two percentiles are taken apart from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random

import numpy as np
from numpy.typing import NDArray

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.linear import DistServeEngine, LinearCoefficients
from penstock.cost.steps import EngineShape, StepCostModel
from penstock.measure.run import Run
from penstock.plan.goodput.distserve import Shape
from penstock.plan.settings import SchedulerSettings
from penstock.policy.fleet import DISTSERVE
from penstock.sim.disaggregated import RoleFleet, Watch, simulate_disaggregated
from penstock.sim.engines.fleet import EngineSpec, Role
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.recorder import EngineRecorder
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import Request, Workload

GPU = "A100-80GB"
Lengths = Sequence[tuple[int, int]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Seconds per request, in order of arrival; NaN = not reached (the run was ended early)."""

    ttft_s: Floats
    tpot_s: Floats
    run: Run

    def attainment(self, ttft_s: float, tpot_s: float) -> tuple[float, float, float]:
        """Shares of the requests within the TTFT limit, the TPOT limit and both."""
        first, rest = self.ttft_s <= ttft_s, self.tpot_s <= tpot_s
        return float(first.mean()), float(rest.mean()), float((first & rest).mean())


def sampled(lengths: Lengths, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """``count`` of the lengths, as DistServe's loader draws them."""
    return Random(seed).sample(list(lengths), count)


def poisson_trace(lengths: Lengths, rate_per_s: float, seed: int = 0) -> tuple[Request, ...]:
    """Requests of ``lengths`` at Poisson times from 0 on, as DistServe's client draws them."""
    # Its draws come from NumPy's legacy generator.
    gaps = np.random.RandomState(seed).gamma(1.0, 1.0 / rate_per_s, len(lengths) - 1)
    times = np.concatenate([[0.0], np.cumsum(gaps)]).tolist()
    return tuple(
        Request(i, time, prompt, output)
        for i, (time, (prompt, output)) in enumerate(zip(times, lengths, strict=True))
    )


def compat_fleet(cost: StepCostModel, shape: Shape) -> RoleFleet:
    """Instances of ``shape`` under DistServe's rules. Raises ``Infeasible`` without memory."""
    gpu = catalogue().get(GPU)

    def engines(role: Role, tp: int, pp: int, count: int) -> list[EngineSpec]:
        on = EngineShape(gpu, tp, pp)
        tokens = cost.kv_capacity_tokens(on)
        settings = SchedulerSettings(DISTSERVE, max_num_batched_tokens=tokens)
        return [EngineSpec(f"{role}-{i}", on, settings, role) for i in range(count)]

    if not shape.decode_tp:
        specs = engines("both", shape.prefill_tp, shape.prefill_pp, shape.prefill_instances)
    else:
        specs = [
            *engines("prefill", shape.prefill_tp, shape.prefill_pp, shape.prefill_instances),
            *engines("decode", shape.decode_tp, shape.decode_pp, shape.decode_instances),
        ]
    return RoleFleet(
        tuple(specs),
        prefill_router="least-outstanding",
        decode_router="least-waiting",
        extra_decode_steps=1,
    )


def run_compat(
    model: str,
    engine: DistServeEngine,
    shape: Shape,
    requests: Sequence[Request],
    *,
    watch: Watch | None = None,
    keep_tokens: bool = False,
) -> Outcome:
    """Simulate ``requests`` as DistServe's simulator does.

    Raises ``SpecError`` where DistServe has no latency model and ``Infeasible`` where it has no
    memory for ``shape``.
    """
    cost = DistServeHostCost(load_model(model), engine)
    return run_with(cost, shape, requests, watch, keep_tokens)


def run_with(
    cost: StepCostModel,
    shape: Shape,
    requests: Sequence[Request],
    watch: Watch | None = None,
    keep_tokens: bool = False,
) -> Outcome:
    """``run_compat`` with any step times."""
    fleet = compat_fleet(cost, shape)
    workload = Workload("distserve", 0.0, trace=tuple(requests))
    options = EngineOptions(keep_tokens=keep_tokens)
    run = simulate_disaggregated(fleet, workload, cost, options, watch)
    table = run.requests
    count = len(requests)
    ttft, tpot = np.full(count, np.nan), np.full(count, np.nan)
    ttft[: len(table.id)] = table.first_token_s - table.arrival_s
    tpot[: len(table.id)] = (table.last_token_s - table.first_token_s) / table.output_tokens
    return Outcome(ttft, tpot, run)


class Hopeless:
    """Ends a run as soon as a 90th percentile is certain to miss its limit.

    A waiting request counts as late once its time so far is: nothing is guessed.
    """

    def __init__(self, requests: int, ttft_s: float, tpot_s: float) -> None:
        # With so many values at or over the limit, the interpolated percentile is too.
        self._enough = requests - int(0.9 * (requests - 1))
        self._ttft_s = ttft_s
        self._tpot_s = tpot_s
        self.certain = False

    def __call__(self, recorder: EngineRecorder, now_s: float) -> bool:
        n = len(recorder)
        first = np.array(recorder.first[:n])
        begun = ~np.isnan(first)
        waited = np.where(begun, first, now_s) - np.array(recorder.arrival)
        last = np.array(recorder.last[:n])
        until = np.where(np.isnan(last), now_s, last)
        # An extra step and rounding stand between the two ways to count a decode: keep a hair.
        slow = begun & ((until - first) / np.array(recorder.output) >= self._tpot_s * (1 + 1e-9))
        late = int(np.count_nonzero(waited >= self._ttft_s * (1 + 1e-9)))
        self.certain = max(late, int(np.count_nonzero(slow))) >= self._enough
        return self.certain


class _DecodeOnly(DistServeHostCost):
    """Prompts cost nothing: what is left is the decode phase alone."""

    def coefficients(self, tensor_parallel_size: int) -> LinearCoefficients:
        found = super().coefficients(tensor_parallel_size)
        return replace(found, prefill_fixed_s=0.0, prefill_per_token_s=0.0, prefill_per_pair_s=0.0)


@dataclass(frozen=True)
class Probes:
    """Simulates one trace at many rates: DistServe's criterion for its searches.

    Percentiles are compared strictly. The lengths are those of the first sample at every rate.
    """

    model: str
    engine: DistServeEngine
    lengths: Lengths
    ttft_s: float
    tpot_s: float

    def both(self, shape: Shape, rate_per_s: float) -> bool:
        """The phases together: ``Passes`` of the published searches."""
        cost = DistServeHostCost(load_model(self.model), self.engine)
        return self._meets(cost, shape, rate_per_s, (self.ttft_s, self.tpot_s))

    def prefill(self, shape: Shape, rate_per_s: float) -> bool:
        """TTFT alone, on instances that only compute prompts."""
        alone = replace(shape, decode_tp=shape.prefill_tp, decode_pp=shape.prefill_pp)
        cost = DistServeHostCost(load_model(self.model), self.engine)
        return self._meets(cost, alone, rate_per_s, (self.ttft_s, inf))

    def decode(self, shape: Shape, rate_per_s: float) -> bool:
        """TPOT alone, with prompts that cost nothing."""
        cost = _DecodeOnly(load_model(self.model), self.engine)
        return self._meets(cost, shape, rate_per_s, (inf, self.tpot_s))

    def _meets(
        self,
        cost: DistServeHostCost,
        shape: Shape,
        rate_per_s: float,
        limits: tuple[float, float],
    ) -> bool:
        watch = Hopeless(len(self.lengths), *limits)
        outcome = run_with(cost, shape, poisson_trace(self.lengths, rate_per_s), watch)
        if watch.certain:
            return False
        values = (outcome.ttft_s, outcome.tpot_s)
        return all(
            limit == inf or float(np.percentile(found, 90)) < limit
            for found, limit in zip(values, limits, strict=True)
        )
