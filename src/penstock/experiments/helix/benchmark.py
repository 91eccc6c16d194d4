"""Beyond the paper: our planner in the published benchmark, and all methods on equal terms.

``ours``: every planner's plan, made as a user makes it, in the published offline benchmark and at
the published online load. ``fair``: the published placements and ours at equal offered load, with
the same admission (nobody is turned away, first come first served), the same feeding by KV memory
and honest KV memory: separate pipelines get what the memory model leaves them, not the hand-typed
capacities of the published files, and their requests are spread by max flow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from penstock import api
from penstock.errors import PenstockError
from penstock.experiments.helix.benchmark_rows import (
    GOALS,
    OURS,
    Arena,
    Bout,
    Made,
    bout_rows,
    planning_rows,
)
from penstock.experiments.helix.cases import TOTAL, Case, Simulation, Traffic, matches, read_cases
from penstock.experiments.helix.fleet import AVERAGE_OUTPUT_TOKENS, simulated_plan
from penstock.experiments.helix.flows import read_edge_flows
from penstock.experiments.helix.run import run_plan
from penstock.experiments.rows import Labels, Row
from penstock.experiments.runner import Task, run_tasks
from penstock.experiments.system import Request, Table
from penstock.plan.plan import AdmissionName, Plan
from penstock.plan.planner import Progress, ProgressCallback, silent

MODEL = "llama70b"
PRESET = "llama2-70b"
MILP_LIMIT_S = 60.0
PUBLISHED_PRUNING = {"distributed24": 12, "het42": 12}
PLANNERS = ("petals", "swarm", "homogeneous", "separate", "separate+", "helix-milp", OURS)
FAIR = ("helix", "swarm", "petals", "separate", "separate+", OURS)


def benchmark_helix(
    helix: Path,
    request: Request,
    progress: ProgressCallback = silent,
    *,
    ours: bool,
    fair: bool,
) -> Table:
    """Plan, run and compare; ``request.only`` chooses by cluster, method or load."""
    arenas = [a for a in _arenas(read_cases(helix)) if _wanted(a, request.only)]
    bouts: list[Bout] = []
    rows: list[Row] = []
    try:
        for arena in arenas:
            made = _make_plans(helix, arena, request, progress, ours=ours, fair=fair)
            if ours:
                planned = [entry for (origin, _), entry in made.items() if origin == "planned"]
                rows += planning_rows(arena, planned, request.only)
                bouts += _ours_bouts(arena, made)
            if fair:
                bouts += _fair_bouts(arena, made)
    except KeyboardInterrupt:
        return Table(tuple(rows), ("planning",))
    bouts = [bout for bout in bouts if matches(request.only, bout.labels)]
    tasks = [
        Task(
            f"{b.labels.experiment} {b.labels.case}",
            len(b.plan.cluster.nodes) * (b.traffic.warmup_s + b.traffic.window_s),
            partial(run_plan, helix, b.plan, b.traffic, MODEL, request.granularity),
        )
        for b in bouts
    ]
    outcomes = run_tasks(tasks, request.processes, progress)
    unfinished = []
    for bout, task, outcome in zip(bouts, tasks, outcomes.results, strict=True):
        if outcome is None:
            unfinished.append(task.label)
        else:
            rows += bout_rows(bout, outcome)
    order = {
        experiment: i for i, experiment in enumerate(dict.fromkeys(r.experiment for r in rows))
    }
    rows.sort(key=lambda row: order[row.experiment])
    return Table(tuple(rows), tuple(unfinished))


def _arenas(cases: Sequence[Case]) -> list[Arena]:
    found = []
    for cluster, section in (("single24", "6.3"), ("distributed24", "6.4"), ("het42", "6.5")):
        here = {
            (case.mode, case.method): case
            for case in cases
            if (case.section, case.kind, case.model) == (section, "simulation", PRESET)
        }
        found.append(
            Arena(
                cluster,
                here["offline", "helix"],
                here["online", "helix"],
                here["online", "swarm"],
            )
        )
    return found


def _wanted(arena: Arena, only: str) -> bool:
    """Whether the words leave anything to do on this fleet: a word may name another one."""
    others = [name for name in GOALS if name != arena.cluster]
    return not any(word in others for word in only.lower().split())


def _make_plans(
    helix: Path,
    arena: Arena,
    request: Request,
    progress: ProgressCallback,
    *,
    ours: bool,
    fair: bool,
) -> dict[tuple[str, str], Made]:
    """Plans by (stored | planned, method). Ours is made with all processes, the rest in turn."""
    named = [name for name in PLANNERS if name in request.only.lower().split()]
    names = [name for name in PLANNERS if ours or name in ("separate", "separate+", OURS)]
    made = {}
    for name in names:
        if named and name not in named:
            continue
        progress(Progress(f"{arena.cluster}: planning with {name}"))
        made["planned", name] = _planned(helix, arena.cluster, name, request.processes)
    edges = read_edge_flows(helix)
    for name in ("helix", "swarm", "petals") if fair else ("helix",):
        stored = arena.stored(name)
        made["stored", name] = Made(name, simulated_plan(helix, stored, edges.get(stored.key)))
    return made


def _planned(helix: Path, cluster: str, planner: str, processes: int) -> Made:
    started = time.perf_counter()
    try:
        plan = api.plan(
            cluster,
            PRESET,
            planner=planner,
            # The published planners know no other objective than max flow.
            objective="throughput" if planner == OURS else "maxflow",
            profiles=helix / "profiles",
            prune=PUBLISHED_PRUNING.get(cluster) if planner == "helix-milp" else None,
            partial_inference=planner != "helix-milp",
            time_limit_s=MILP_LIMIT_S if planner == "helix-milp" else None,
            processes=processes,
        )
    except PenstockError as error:
        return Made(planner, None, time.perf_counter() - started, str(error))
    return Made(planner, plan, time.perf_counter() - started)


def _ours_bouts(arena: Arena, made: Mapping[tuple[str, str], Made]) -> list[Bout]:
    """Ours as published; everybody with fair retry; ours at Helix's online load.

    ``helix`` is the published placement, found by a commercial solver; ``helix-milp`` is the same
    formulation on the solver that ships with us.
    """
    offline, online = arena.offline.parts[TOTAL], arena.online.parts[TOTAL]
    bouts = []
    for (origin, name), entry in made.items():
        if entry.plan is None or (origin == "stored" and name != "helix"):
            continue
        fair = _with_settings(entry.plan, offline, "queue")
        labels = Labels(f"ours {arena.cluster}", f"{name} offline fair retry")
        bouts.append(Bout(arena, "shown", labels, offline.traffic, fair))
        if name == OURS:
            dropping = replace(fair, admission="drop")
            labels = Labels(f"ours {arena.cluster}", f"{name} offline as published")
            bouts.insert(0, Bout(arena, "goal", labels, offline.traffic, dropping))
            labels = Labels(f"ours {arena.cluster}", f"{name} {_load(online.traffic)}")
            busy = _with_settings(entry.plan, online, "queue")
            bouts.append(Bout(arena, "beside", labels, online.traffic, busy))
    return bouts


def _load(traffic: Traffic) -> str:
    if traffic.token_rate is None:
        return "offline fair retry"
    return f"online {traffic.token_rate:g} tokens/s"


def _fair_bouts(arena: Arena, made: Mapping[tuple[str, str], Made]) -> list[Bout]:
    """Every method offline, and online at the loads published for Swarm and for Helix."""
    offline, online = arena.offline.parts[TOTAL], arena.online.parts[TOTAL]
    # At equal load some methods fall behind for good: the window ends the run, not the backlog.
    light = replace(arena.swarm_online.parts[TOTAL].traffic, drains=False)
    heavy = replace(online.traffic, drains=False)
    bouts = []
    for method in FAIR:
        entry = made.get(("stored", method)) or made.get(("planned", method))
        if entry is None or entry.plan is None:
            continue
        for run, traffic in ((offline, offline.traffic), (online, light), (online, heavy)):
            plan = _with_settings(entry.plan, run, "queue")
            if method.startswith("separate"):
                plan = replace(plan, routing=replace(plan.routing, router="maxflow"))
            labels = Labels(f"fair {arena.cluster}", f"{method} {_load(traffic)}")
            bouts.append(Bout(arena, "shown", labels, traffic, plan))
    return bouts


def _with_settings(plan: Plan, run: Simulation, admission: AdmissionName) -> Plan:
    """``plan`` with the published admission settings of ``run``; its own router stays."""
    assert run.kv_high_water_mark is not None
    assert run.output_ratio is not None
    routing = replace(
        plan.routing,
        kv_high_water_mark=run.kv_high_water_mark,
        expected_output_tokens=AVERAGE_OUTPUT_TOKENS * run.output_ratio,
    )
    return replace(plan, routing=routing, admission=admission)
