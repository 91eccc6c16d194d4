"""SDS beside ours: the split of the pool, the policy over the full trace, pools and a replay.

SDS publishes no figures; "published" are runs of its policy and of DistServe's simulator, and its
one stated outcome, the file ``distserve-2000-10.exp``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.steps import EngineShape
from penstock.experiments.distserve.compat import GPU, poisson_trace, run_compat, sampled
from penstock.experiments.distserve.data import read_lengths
from penstock.experiments.output import make_folder
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, at_most, information, judged
from penstock.experiments.runner import Task
from penstock.experiments.sds.figures import sds_plots
from penstock.experiments.system import Request, System, Table, table_of
from penstock.measure.formats import write_distserve_exp
from penstock.plan.goodput.distserve import Shape
from penstock.plan.planner import ProgressCallback, silent
from penstock.plan.settings import HandoffSettings, SchedulerSettings
from penstock.policy.roles import (
    Gpu,
    PoolRole,
    Traffic,
    best_split,
    pool_throughput,
    prefill_per_decode,
    rebalance,
)
from penstock.sim.disaggregated.dips import cost_per_1000_good, good_requests, slo_dips
from penstock.sim.disaggregated.elastic import (
    ElasticRun,
    Pool,
    PoolChange,
    changes_by_operations,
    changes_by_policy,
    simulate_elastic,
)
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.spec.availability import AvailabilityEvent, read_availability, read_operations
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, Workload

SECTIONS = ("policy", "pools", "operations", "trace")
MODEL = "opt-13b"
A = 1.7
LIMITS = SLO(ttft_s=0.25, tpot_s=0.1)
EXP_FILE = "distserve-2000-10.exp"
START: dict[int, PoolRole] = {g: "prefill" if g < 5 else "decode" for g in range(8)}
SPLITS = {8: (5, 3), 7: (4, 3), 6: (4, 2), 5: (3, 2), 4: (2, 2)}
TRACE_RATE_PER_S = 2.0
# One NVLink direction of an A100; DistServe moves KV memory between GPUs of one node.
LINK_BYTES_PER_S = 300e9


def reproduce_sds(distserve: Path, request: Request, progress: ProgressCallback = silent) -> Table:
    """Run the chosen parts; ``distserve`` is its reference folder, which holds ``sds``."""
    calls: dict[str, Callable[[], list[Row]]] = {
        "policy": partial(policy_rows, distserve),
        "pools": partial(pool_rows, distserve),
        "operations": partial(operation_rows, distserve, request.output),
        "trace": partial(trace_rows, distserve),
    }
    tasks = [Task(name, 1.0, calls[name]) for name in request.sections]
    table = table_of(tasks, request, progress)
    return replace(table, plots=tuple(sds_plots(table.rows)))


# -- the policy -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """A policy over a trace; ``gap`` is the largest distance from the best throughput."""

    role_changes: int
    losses: int
    prefill_losses: int
    gap: float


def replay_policy(events: Sequence[AvailabilityEvent], a: float) -> PolicyOutcome:
    """Follow the roles of all GPUs through a trace."""
    live: dict[int, Gpu] = {}
    changes = losses = prefills = 0
    gap, last = 0.0, events[0].time_s
    for event in events:
        passed, last = event.time_s - last, event.time_s
        live = {g: replace(gpu, age_s=gpu.age_s + passed) for g, gpu in live.items()}
        for gpu in event.lost:
            losses += 1
            prefills += live.pop(gpu).role == "prefill"
        live |= {gpu: Gpu(gpu, None) for gpu in event.returned}
        roles = rebalance(list(live.values()), a)
        changes += sum(gpu.role not in {None, roles[g]} for g, gpu in live.items())
        live = {g: replace(gpu, role=roles[g]) for g, gpu in live.items()}
        decode = sum(gpu.role == "decode" for gpu in live.values())
        best = pool_throughput(*best_split(len(live), a), a)
        gap = max(gap, best - pool_throughput(len(live) - decode, decode, a))
    return PolicyOutcome(changes, losses, prefills, gap)


def policy_rows(distserve: Path) -> list[Row]:
    """Splits, and the policy over the full trace against our replay of the published policy."""
    rows = []
    for engines, (prefill, _) in SPLITS.items():
        subject = Labels("policy", f"best split of {engines}").of("prefill engines", "")
        rows.append(judged(subject, prefill, best_split(engines, A)[0], Tolerance(absolute=0.1)))
    events = read_availability(distserve / "sds" / "testfull.json")
    for a, changes in ((1.7, 58.0), (2.1, 42.0)):
        found = replay_policy(events, a)
        labels = Labels("policy", f"full trace, a = {a:g}")
        rows += [
            at_most(labels.of("gap to the best T(P, D)", ""), 0.0, found.gap, 0.0),
            judged(
                labels.of("role changes", ""), changes, found.role_changes, Tolerance(relative=0.1)
            ),
        ]
        if a == A:
            subject = labels.of("losses that hit prefill", "")
            rows.append(judged(subject, 125.0, found.prefill_losses, Tolerance(relative=0.05)))
    cost = DistServeHostCost(load_model(MODEL))
    shape = EngineShape(catalogue().get(GPU))
    lengths = np.array(read_lengths(distserve, "sharegpt"))
    traffic = Traffic(float(lengths[:, 0].mean()), float(lengths[:, 1].mean()), LIMITS.tpot_s)
    timer = cost.stage_timers(shape)[0]
    ours = prefill_per_decode(timer, cost.kv_capacity_tokens(shape), traffic)
    note = "from DistServe's latency model, mean lengths, KV memory and the TPOT limit"
    rows.append(information(Labels("policy", "OPT-13B TP1").of("a", ""), A, ours, note=note))
    return rows


def pool_rows(distserve: Path) -> list[Row]:
    """Fixed pools of one-GPU engines at 10 req/s."""
    path = distserve / "sds" / "static_pool_simulation.csv"
    requests = poisson_trace(sampled(read_lengths(distserve, "sharegpt"), 2000), 10.0)
    rows = []
    for row in read_table(path, "prefill_engines", "decode_engines"):
        prefill, decode = int(row["prefill_engines"]), int(row["decode_engines"])
        outcome = run_compat(MODEL, "distserve", Shape(1, 1, 1, 1, prefill, decode), requests)
        labels = Labels("pools", f"{prefill}P{decode}D")
        for metric, values in (("ttft", outcome.ttft_s), ("tpot", outcome.tpot_s)):
            for percent in (50, 90, 99):
                published = number(row, f"{metric}_p{percent}_ms", path)
                ours = 1e3 * float(np.percentile(values, percent))
                subject = labels.of(f"{metric.upper()} p{percent}", "ms")
                rows.append(judged(subject, published, ours, Tolerance(relative=0.01)))
        joint = 100 * outcome.attainment(0.25, 0.1)[2]
        subject = labels.of("joint attainment", "%")
        published = number(row, "joint_attainment_pct", path)
        rows.append(judged(subject, published, joint, Tolerance(absolute=0.5, unit="%")))
    return rows


# -- replays ----------------------------------------------------------------------------------


def spot_pool(changes: tuple[PoolChange, ...], initial: dict[int, PoolRole]) -> Pool:
    """One-GPU engines of OPT-13B with honest KV memory and transfers over NVLink."""
    settings = SchedulerSettings("vllm", max_num_batched_tokens=8192, enable_chunked_prefill=False)
    engine = EngineSpec("gpu", EngineShape(catalogue().get(GPU)), settings)
    handoff = HandoffSettings(LINK_BYTES_PER_S, 1e-4, "pull")
    return Pool(engine, initial, changes, handoff)


def _workload(distserve: Path, count: int, rate_per_s: float, start_s: float) -> Workload:
    pool = read_lengths(distserve, "sharegpt")
    lengths = [pool[i % len(pool)] for i in range(count)]
    requests = poisson_trace(lengths, rate_per_s)
    return Workload(
        "sharegpt-like",
        0.0,
        trace=tuple(replace(one, arrival_s=one.arrival_s + start_s) for one in requests),
    )


def operation_rows(distserve: Path, output: Path | None) -> list[Row]:
    """``ops.json`` under 2000 requests at 10 req/s (the published run), and over its 2000 s."""
    operations = read_operations(distserve / "sds" / "ops.json", START)
    pool = spot_pool(changes_by_operations(operations), START)
    cost = DistServeHostCost(load_model(MODEL))
    short = simulate_elastic(pool, _workload(distserve, 2000, 10.0, 0.0), cost)
    if output is not None:
        make_folder(output)
        write_distserve_exp(short.run, output / EXP_FILE)
    rows = _replay_rows(Labels("operations", "2000 requests at 10 req/s"), short)
    options = EngineOptions(keep_tokens=False)
    whole = simulate_elastic(pool, _workload(distserve, 10_000, 5.0, 0.0), cost, options)
    return rows + _replay_rows(Labels("operations", "2000 s at 5 req/s"), whole)


def trace_rows(distserve: Path) -> list[Row]:
    """The full availability trace under the policy: 10.6 hours."""
    events = read_availability(distserve / "sds" / "testfull.json")
    start = events[0].time_s
    pool = spot_pool(changes_by_policy(events, A), {})
    count = int(TRACE_RATE_PER_S * (events[-1].time_s - start))
    workload = _workload(distserve, count, TRACE_RATE_PER_S, start)
    cost = DistServeHostCost(load_model(MODEL))
    found = simulate_elastic(pool, workload, cost, EngineOptions(keep_tokens=False))
    return _replay_rows(Labels("trace", f"full trace at {TRACE_RATE_PER_S:g} req/s"), found)


def _replay_rows(labels: Labels, found: ElasticRun) -> list[Row]:
    run = found.run
    lost = run.counters["requests"] - run.counters["finished"]
    good = int(np.count_nonzero(good_requests(run, LIMITS)))
    dips = slo_dips(run, LIMITS, [effect.time_s for effect in found.effects])
    price = catalogue().get(GPU).price_per_hour
    rows = [
        at_most(labels.of("requests lost", ""), None, lost, 0.0),
        information(
            labels.of("joint attainment", "%"), None, 100 * good / run.counters["requests"]
        ),
        information(
            labels.of("role changes", ""), None, sum(e.role_changes for e in found.effects)
        ),
        information(
            labels.of("requests started over", ""), None, sum(e.retried for e in found.effects)
        ),
        information(
            labels.of("re-prefilled tokens", ""),
            None,
            sum(e.reprefilled_tokens for e in found.effects),
        ),
        information(labels.of("deepest SLO dip", "%"), None, 100 * max(d.depth for d in dips)),
        information(labels.of("longest SLO dip", "s"), None, max(d.length_s for d in dips)),
    ]
    if price is not None:
        dollars = cost_per_1000_good(found.gpu_seconds, price, good)
        rows.append(information(labels.of("cost of 1000 good requests", "$"), None, dollars))
    return rows


SDS_SYSTEM = System("sds", SECTIONS, reproduce_sds, folder="distserve")
