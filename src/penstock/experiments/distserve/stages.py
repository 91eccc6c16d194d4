"""Figures 10 and 1: where a request's time goes, and what the phases cost each other.

Unlike DistServe's simulator these runs count KV memory and transfers: every GPU of the decode
instance pulls its part of the KV memory over NVLink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from penstock.cost.steps import EngineShape, StepCostModel
from penstock.experiments.distserve.compat import GPU, Floats, Probes, poisson_trace, sampled
from penstock.experiments.distserve.data import (
    APPLICATIONS,
    FIGURE_REQUESTS,
    NO_TIMES,
    NOT_REAL,
    Application,
    read_lengths,
)
from penstock.experiments.rows import (
    Labels,
    Row,
    Subject,
    Tolerance,
    at_least,
    at_most,
    information,
    judged,
)
from penstock.plan.goodput.distserve import Bisection, Shape, search_goodput
from penstock.plan.settings import HandoffSettings, SchedulerSettings
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.simulate import RoleSimulation
from penstock.sim.disaggregated.transfers import Handoff
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.spec.catalogue import catalogue
from penstock.spec.workload import Request, Workload

# One NVLink direction of an A100, and the start of a copy.
LINK_BYTES_PER_S, LINK_S = 300e9, 1e-4
STAGES = ("prefill queue", "prefill", "transmission", "decode queue", "decode")
RATES = {
    "opt-13b": (0.5, 1.0, 1.5, 2.0),
    "opt-66b": (0.125, 0.25, 0.375, 0.5, 0.625),
    "opt-175b": (0.05, 0.1, 0.15, 0.2, 0.28),
}
UNPUBLISHED = "not published as numbers"
READ_OFF = "read off the figure of OPT-175B: decode 60 to 80 %, its queue about 15 % at 0.28"
# (model, stage, rate; 0 = every rate) -> share in percent and how far it may be off, in points.
SHARES = {
    ("opt-175b", "decode", 0.0): (70.0, 10.0),
    ("opt-175b", "decode queue", 0.28): (15.0, 5.0),
}


class _Timed(RoleSimulation):
    """Notes when each transfer began and ended."""

    moved: dict[int, tuple[float, float]]

    def _received(self, handoff: Handoff, now: float) -> None:
        if not handoff.cancelled:
            self.moved[handoff.seq.row] = (handoff.begin_s, now)
        super()._received(handoff, now)


def stage_times(cost: StepCostModel, shape: Shape, requests: Sequence[Request]) -> Floats:
    """``[requests, 5]`` seconds of each request in ``STAGES``."""
    gpu = catalogue().get(GPU)
    settings = SchedulerSettings("vllm", max_num_batched_tokens=8192, enable_chunked_prefill=False)
    pairs = min(shape.prefill_tp * shape.prefill_pp, shape.decode_tp * shape.decode_pp)
    fleet = RoleFleet(
        (
            EngineSpec(
                "prefill", EngineShape(gpu, shape.prefill_tp, shape.prefill_pp), settings, "prefill"
            ),
            EngineSpec(
                "decode", EngineShape(gpu, shape.decode_tp, shape.decode_pp), settings, "decode"
            ),
        ),
        HandoffSettings(LINK_BYTES_PER_S * pairs, LINK_S, "pull"),
    )
    workload = Workload("figure 10", 0.0, trace=tuple(requests))
    simulation = _Timed(fleet, workload, cost, EngineOptions(keep_tokens=False))
    simulation.moved = {}
    table = simulation.run().requests
    # A request of one token has nothing to move: it ends with its prompt.
    moved = np.array([simulation.moved.get(i, (np.nan, np.nan)) for i in range(len(table.id))])
    begun = np.where(np.isnan(moved[:, 0]), table.first_token_s, moved[:, 0])
    ended = np.where(np.isnan(moved[:, 1]), table.first_token_s, moved[:, 1])
    return np.stack(
        [
            table.admitted_s - table.arrival_s,
            table.first_token_s - table.admitted_s,
            ended - begun,
            begun - table.first_token_s,
            table.last_token_s - ended,
        ],
        axis=1,
    )


def breakdown_rows(distserve: Path, model: str) -> list[Row]:
    """Figure 10 of one model: shares of the latency over rate, and the times of transfers."""
    application = next(a for a in APPLICATIONS if a.model == model)
    lengths = sampled(read_lengths(distserve, application.lengths), FIGURE_REQUESTS)
    cost, shape = application.cost("distserve"), application.ours
    note = NOT_REAL if application.published_times else NO_TIMES
    rows: list[Row] = []
    transfers: list[Floats] = []
    for rate in RATES[model]:
        times = stage_times(cost, shape, poisson_trace(lengths, rate * shape.num_gpus))
        shares = 100 * times.sum(axis=0) / times.sum()
        labels = Labels("figure 10", f"{application.name} {rate:g} req/s per GPU")
        for stage, share in zip(STAGES, shares.tolist(), strict=True):
            subject = labels.of(f"share of {stage}", "%")
            if stage == "transmission":
                rows.append(at_most(subject, 1.0, share, 1.0, note=note))
            else:
                rows.append(_share_row(subject, share, (model, stage, rate)))
        transfers.append(times[:, 2])
    return rows + _transfer_rows(application, np.concatenate(transfers))


def _share_row(subject: Subject, share: float, case: tuple[str, str, float]) -> Row:
    model, stage, rate = case
    known = SHARES.get((model, stage, rate)) or SHARES.get((model, stage, 0.0))
    if known is None:
        return information(subject, None, share, note=UNPUBLISHED)
    published, points = known
    tolerance = Tolerance(absolute=points, unit="points")
    return judged(subject, published, share, tolerance, note=READ_OFF)


def _transfer_rows(application: Application, seconds: Floats) -> list[Row]:
    labels = Labels("figure 10", f"{application.name} transfers")

    def within(limit_s: float) -> float:
        return 100 * float((seconds <= limit_s).mean())

    if application.published_times:
        subject = labels.of("share within 15 ms", "%")
        note = "published: nearly all, read off the figure"
        rows = [at_least(subject, None, within(0.015), 95.0, note=note)]
    else:
        rows = [
            information(labels.of("share within 5 ms", "%"), 72.0, within(0.005)),
            information(labels.of("share within 35 ms", "%"), 94.0, within(0.035)),
        ]
    for percent in (50, 90, 99):
        value = 1e3 * float(np.percentile(seconds, percent))
        subject = labels.of(f"p{percent}", "ms")
        rows.append(information(subject, None, value, note=UNPUBLISHED))
    return rows


# -- Figure 1 ---------------------------------------------------------------------------------

FIGURE1_LENGTHS = (512, 64)
FIGURE1_LIMITS = (0.4, 0.04)
FIGURE1_NOTE = "512 prompt and 64 output tokens, TTFT 0.4 s, TPOT 40 ms, as the paper is recalled"


def interference_rows() -> list[Row]:
    """Figure 1: goodput of one A100 that only prefills, only decodes, or does both."""
    probes = Probes("opt-13b", "distserve", [FIGURE1_LENGTHS] * FIGURE_REQUESTS, *FIGURE1_LIMITS)
    both = replace(probes, engine="vllm")
    search = Bisection(20.0, 0.05)
    alone = [Shape(1)]
    labels = Labels("figure 1", "OPT-13B on A100s")
    prefill = search_goodput(alone, probes.prefill, search).best.rate_per_s
    # The decode GPU alone: the GPU of the free prompts does not count.
    decode = search_goodput([Shape(1, 1, 1, 1)], probes.decode, Bisection(20.0, 0.05)).best
    colocated = search_goodput(alone, both.both, search).best.rate_per_s
    decode_rate = decode.rate_per_s
    apart = min(2 * prefill, decode_rate) / 3
    values = (
        ("prefill only", 5.6, prefill),
        ("decode only", 10.0, decode_rate),
        ("colocated", 1.6, colocated),
        ("2 prefill and 1 decode, per GPU", 3.3, apart),
    )
    rows = [
        information(labels.of(name, "req/s"), published, ours, note=FIGURE1_NOTE)
        for name, published, ours in values
    ]
    gain = apart / colocated if colocated else inf
    rows.append(information(labels.of("gain over colocated", "x"), 2.1, gain, note=FIGURE1_NOTE))
    return rows
