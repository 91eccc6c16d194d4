"""The published systems, as engine settings and speculators, with every constant named.

Fitted by us (specification of AdaServe, sections 8 and 14):

* verify budget 288 tokens for Llama, 256 (as published) for Qwen, which is B1 of the adaptive
  depth too; c1 = c2 = 0;
* ``SPREAD``, how much requests differ in acceptance, one value for both models;
* the acceptance pairs (m, k) and the low end of the verification table come from the
  specification; draft passes of 5.5 and 5.0 ms and 1 ms of host time a step too.

Fitted on AdaServe, Llama, nominal 3.2, 3.8 and 4.6 requests/s (seed 0), and nothing else. The
baselines use the same tables and acceptance: no constant of theirs is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from penstock.errors import SpecError
from penstock.experiments.reference import number, read_table
from penstock.policy.speculation.batching import SlotRules
from penstock.policy.speculation.controller import ControllerSettings, PricedSpeculator
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.policy.speculation.shape import AdaptiveShape
from penstock.policy.speculation.speculator import (
    AdaServeSettings,
    AdaServeSpeculator,
    ChainSpeculator,
    Speculator,
)
from penstock.sim.speculation.acceptance import (
    LLAMA_70B_WITH_1B,
    QWEN_32B_WITH_05B,
    BetaAcceptance,
)
from penstock.sim.speculation.engine import SpeculativeEngine

SPREAD = 40.0
"""Concentration of the mean acceptance over requests."""
HOST_S = 0.001

LLAMA = "Llama-3.1-70B-Instruct"
QWEN = "Qwen2.5-32B-Instruct"
ADASERVE, VLLM, SARATHI, PENSTOCK = "AdaServe", "vLLM", "Sarathi-Serve", "Penstock"
CHAINS = {"vLLM-Spec(4)": 4, "vLLM-Spec(6)": 6, "vLLM-Spec(8)": 8}
PUBLISHED = (ADASERVE, SARATHI, VLLM, *CHAINS)
BASELINES = PUBLISHED[1:]


@dataclass(frozen=True)
class Pair:
    """A target with its draft. ``low_ms`` continues the verification table below 128 tokens."""

    model: str
    acceptance: BetaAcceptance
    draft_pass_s: float
    low_ms: tuple[tuple[int, float], ...]
    slots: int
    verify_budget: int
    draft_tokens: int
    depths: tuple[int, int]


PAIRS = {
    LLAMA: Pair(
        LLAMA,
        replace(LLAMA_70B_WITH_1B, spread=SPREAD),
        0.0055,
        ((1, 29.0), (32, 36.0), (64, 43.0)),
        slots=96,
        verify_budget=288,
        draft_tokens=96,
        depths=(4, 8),
    ),
    QWEN: Pair(
        QWEN,
        replace(QWEN_32B_WITH_05B, spread=SPREAD),
        0.005,
        ((1, 27.0), (32, 31.0), (64, 37.0)),
        slots=80,
        verify_budget=256,
        draft_tokens=80,
        depths=(3, 5),
    ),
}


@dataclass(frozen=True)
class Profile:
    """The published figures of one model: baseline, scheduler's estimates, measured steps."""

    baseline_s: float
    draft_estimate_s: float
    estimate: LatencyTable
    latency: StepLatency


def read_profile(adaserve: Path, pair: Pair) -> Profile:
    """Read ``latency_profile.csv``. Raises ``InputError``."""
    path = adaserve / "latency_profile.csv"
    columns = ("model", "quantity", "tokens_in_batch", "latency_ms")
    rows = [row for row in read_table(path, *columns) if row["model"] == pair.model]
    points: list[tuple[float, float]] = []
    single: dict[str, float] = {}
    for row in rows:
        milliseconds = number(row, "latency_ms", path)
        if row["quantity"] == "verify_step_estimate":
            points.append((number(row, "tokens_in_batch", path), milliseconds))
        else:
            single[row["quantity"]] = milliseconds
    try:
        baseline = single["baseline_decode_per_token"]
        draft = single["speculation_phase_estimate"]
    except KeyError as error:
        raise SpecError(
            "the figure is missing", source=path, key=str(error), fix="restore the file"
        ) from error
    real = [*pair.low_ms, *(point for point in points if point[0] >= 128)]
    return Profile(
        baseline / 1000.0,
        draft / 1000.0,
        _table(points),
        StepLatency(pair.draft_pass_s, _table(real), HOST_S),
    )


def _table(points: list[tuple[float, float]]) -> LatencyTable:
    return LatencyTable(tuple(t for t, _ in points), tuple(ms / 1000.0 for _, ms in points))


def engine_of(pair: Pair, profile: Profile, system: str) -> SpeculativeEngine:
    """The engine as the system configures it (specification, sections 9 and 10)."""
    if system in (ADASERVE, PENSTOCK):
        slots = SlotRules(pair.slots, 1024)
    elif system == SARATHI:
        slots = SlotRules(2048, 2048, 2048)
    else:
        slots = SlotRules(512, 2048, chunked=False)
    return SpeculativeEngine(profile.latency, pair.acceptance, slots)


def speculator_of(pair: Pair, profile: Profile, system: str) -> Speculator:
    """A fresh speculator. Raises ``SpecError`` for an unknown system."""
    if system == ADASERVE:
        least, most = pair.depths
        budget = pair.verify_budget
        shape = AdaptiveShape(budget, pair.draft_tokens, least, most, max_width=3)
        return AdaServeSpeculator(
            AdaServeSettings(shape, budget, profile.draft_estimate_s, profile.estimate)
        )
    if system == PENSTOCK:
        return PricedSpeculator(ControllerSettings(profile.latency, draft_tokens=pair.draft_tokens))
    if system in (VLLM, SARATHI):
        return ChainSpeculator(0)
    if system in CHAINS:
        return ChainSpeculator(CHAINS[system])
    raise SpecError("unknown system", key="system", value=system)
