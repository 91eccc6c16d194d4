"""Accelerate, AlpaServe and MaverIQ on one question, each served by its own rules.

Accelerate    one request at a time on the whole host, with the seconds that its logs hold
AlpaServe     the published search on right input: it knows the very requests, all models are
              there from the start, and a request that would be late is refused
MaverIQ       the published selector; one FIFO whose head waits for its GPUs, batch 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.experiments.accelerate.replay import load_blocks
from penstock.experiments.maveriq.data import RunKey
from penstock.experiments.maveriq.fifo import Server, serve_fifo
from penstock.experiments.maveriq.pool_questions import Traffic
from penstock.experiments.maveriq.serving import read_logs, simulate_run
from penstock.plan.pool.search import AS_MAVERIQ, mp_search
from penstock.plan.published.alpaserve import pool_problem
from penstock.plan.published.asked import Asked
from penstock.plan.published.equal_gpus import equal_machines
from penstock.plan.published.maveriq import deployments
from penstock.spec.intent import Intent
from penstock.spec.variants import Precision

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """n requests sent. ``latency_s`` [n] from arrival to last token, NaN where there is none."""

    arrival_s: FloatArray
    latency_s: FloatArray
    detail: str = ""

    def attainment(self, limit_s: FloatArray) -> float:
        """Share of all requests sent that end within ``limit_s`` [n]."""
        good = np.isfinite(self.latency_s) & (self.latency_s <= limit_s)
        return float(np.mean(good))

    @property
    def completed(self) -> int:
        return int(np.isfinite(self.latency_s).sum())

    @property
    def per_minute(self) -> float:
        """Completed requests a minute, from the first arrival to the last end."""
        if not self.completed:
            return 0.0
        end_s = float(np.nanmax(self.arrival_s + self.latency_s))
        return 60.0 * self.completed / (end_s - float(self.arrival_s[0]))

    @property
    def median_s(self) -> float:
        """The median latency of all requests sent; infinite where most are not completed."""
        return float(np.median(np.where(np.isfinite(self.latency_s), self.latency_s, np.inf)))


def asked_of(traffic: Traffic, precisions: frozenset[Precision], intent: Intent) -> Asked:
    question = traffic.question(precisions, intent)
    return Asked(question, equal_machines(question.cluster, "baseline"))


def accelerate(traffic: Traffic) -> Outcome:
    """Its models are in 16 bit always."""
    case = traffic.case
    key = RunKey("Accelerate", case.models, "None", case.trace, case.scale, 0.0)
    served = simulate_run(traffic.maveriq, read_logs(traffic.maveriq), key, load_blocks)
    return Outcome(served.arrival_s, served.end_s - served.arrival_s)


def alpaserve(traffic: Traffic, precisions: frozenset[Precision]) -> Outcome:
    asked = asked_of(traffic, precisions, "min_latency")
    problem = pool_problem(asked, AS_MAVERIQ)
    found = mp_search(problem, AS_MAVERIQ)
    latency_s = np.where(found.outcome.good, found.outcome.latency_s, np.nan)
    return Outcome(problem.traffic.arrival_s, latency_s, str(found.placement))


def maveriq(traffic: Traffic, precisions: frozenset[Precision], intent: Intent) -> Outcome:
    asked = asked_of(traffic, precisions, intent)
    servers: dict[int, Sequence[Server]] = {}
    said = []
    for index, one in enumerate(deployments(asked)):
        if one.choice is not None:
            servers[index] = [Server(one.choice.layer_map.gpus, one.choice.latency_s)]
            said.append(f"{one.served.name} {one.choice.configuration}")
    trace = traffic.drawn()
    served = serve_fifo(trace.arrival_s, trace.model, servers)
    return Outcome(served.arrival_s, served.end_s - served.arrival_s, ", ".join(said))
