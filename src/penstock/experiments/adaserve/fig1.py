"""Figure 1: systems that know classes but cannot give a request its own speed.

Model, trace and settings are not published. Only the limits are (13.2 and 22.0 ms, which is 1.2
and 2.0 of a baseline of 11 ms), so that ours stands beside it for the order alone: Llama on the
nominal trace of 4.0 requests/s, coding at 1.2 and everything else at 2.0 times the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.cost.base import Provenance
from penstock.cost.steps import EngineShape
from penstock.experiments.adaserve.run import URGENT
from penstock.experiments.adaserve.systems import LLAMA, PAIRS, read_profile
from penstock.experiments.adaserve.traces import read_trace
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, information
from penstock.plan.settings import SchedulerSettings
from penstock.sim.engines.fleet import EngineFleet, EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.simulate import simulate_engines
from penstock.sim.speculation.table_cost import TableCost
from penstock.spec.catalogue import accelerator
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, SLOClass, Workload

SECTION = "fig1"
TRACE = "rps3.8.csv"
KV_TOKENS = 512 * 1024
SCHEDULERS = {
    "vLLM": SchedulerSettings("vllm-v0", max_num_seqs=512, max_num_batched_tokens=2048),
    "vLLM + chunked prefill": SchedulerSettings("vllm", max_num_seqs=512),
    "vLLM + Priority": SchedulerSettings("priority", max_num_seqs=512),
    "FastServe": SchedulerSettings("mlfq", max_num_seqs=512),
    "VTC": SchedulerSettings("vtc", max_num_seqs=512),
}
SCALES = {"cat1": 1.2, "cat2": 2.0}
NOTE = "model, trace and settings are not published; ours is Llama at nominal 4.0 requests/s"


@dataclass(frozen=True)
class Published:
    category: str
    attainment_pct: float


def read_fig1(adaserve: Path) -> dict[str, list[Published]]:
    """The printed attainments by system. Raises ``InputError``."""
    path = adaserve / "expected_results.csv"
    found: dict[str, list[Published]] = {}
    for row in read_table(path, "figure", "system", "x", "metric", "value"):
        if row["figure"] == SECTION and row["metric"] == "slo_attainment_pct":
            value = Published(row["x"], number(row, "value", path))
            found.setdefault(row["system"], []).append(value)
    return found


def fig1_rows(adaserve: Path, system: str) -> list[Row]:
    """One system of Figure 1 by the engine simulator, its scheduler and the same step times."""
    ours = scheduler_attainment(adaserve, system)
    return [
        information(
            Labels(SECTION, f"{LLAMA} {published.category}").of(f"{system} attainment", "%"),
            published.attainment_pct,
            ours[published.category],
            note=NOTE,
        )
        for published in read_fig1(adaserve)[system]
    ]


def scheduler_attainment(adaserve: Path, system: str, seed: int = 0) -> dict[str, float]:
    """Share of requests within their TPOT limit, in %, by category."""
    profile = read_profile(adaserve, PAIRS[LLAMA])
    requests, limits = read_trace(adaserve, TRACE, seed)
    classes = tuple(
        SLOClass(name, SLO(tpot_s=limit.seconds(profile.baseline_s)), priority=int(name != URGENT))
        for name, limit in limits.items()
    )
    source = Provenance("measured", "AdaServe artifact, verification table")
    cost = TableCost(load_model("meta-llama/Llama-3.1-70B"), profile.latency, KV_TOKENS, source)
    engine = EngineSpec("engine", EngineShape(accelerator("A100"), 4), SCHEDULERS[system])
    last = requests[-1].arrival_s
    workload = Workload(TRACE, last, trace=tuple(requests), classes=classes)
    run = simulate_engines(EngineFleet((engine,)), workload, cost, EngineOptions(keep_tokens=False))
    table = run.requests
    tpot = (table.last_token_s - table.first_token_s) / np.maximum(1, table.output_tokens - 1)
    urgent = table.class_index == run.class_names.index(URGENT)
    return {
        "cat1": _share(tpot[urgent], SCALES["cat1"] * profile.baseline_s),
        "cat2": _share(tpot[~urgent], SCALES["cat2"] * profile.baseline_s),
    }


def _share(tpot_s: np.ndarray[tuple[int], np.dtype[np.float64]], limit_s: float) -> float:
    return 100.0 * float(np.mean(tpot_s <= limit_s))
