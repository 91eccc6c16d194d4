"""DistServe's simulator as a setting of ours: zero transfer time, its batch rules and its clock.

TTFT ends with the prompt; TPOT is decode time over output tokens, one decode step more than the
tokens need being run; the two percentiles are taken apart from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.linear import DistServeEngine
from penstock.cost.steps import EngineShape
from penstock.measure.run import Run
from penstock.policy.schedulers.settings import SchedulerSettings
from penstock.sim.disaggregated import RoleFleet, Watch, simulate_disaggregated
from penstock.sim.disaggregated.fleet import DISTSERVE
from penstock.sim.engines.fleet import EngineSpec, Role
from penstock.sim.engines.options import EngineOptions
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import Request, Workload

GPU = "A100-80GB"
Lengths = Sequence[tuple[int, int]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Parallelism of DistServe's instances; ``decode_tp`` 0 = colocated, as its vLLM baseline."""

    prefill_tp: int
    prefill_pp: int = 1
    decode_tp: int = 0
    decode_pp: int = 0
    prefill_instances: int = 1
    decode_instances: int = 1

    @property
    def num_gpus(self) -> int:
        prompts = self.prefill_tp * self.prefill_pp * self.prefill_instances
        return prompts + self.decode_tp * self.decode_pp * self.decode_instances

    def __str__(self) -> str:
        prompts = f"TP{self.prefill_tp} PP{self.prefill_pp}"
        if not self.decode_tp:
            return prompts
        return f"prefill {prompts}, decode TP{self.decode_tp} PP{self.decode_pp}"


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


def compat_fleet(cost: DistServeHostCost, shape: Shape) -> RoleFleet:
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
