"""AlpaServe beside ours: its simulators, its placements, its searches, and MaverIQ's use of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.errors import InputError
from penstock.experiments.alpaserve.cases import (
    BertPool,
    Maveriq,
    drawn_again,
    faulty,
    mended,
    one_group,
    same_placement,
)
from penstock.experiments.alpaserve.data import read_placements, read_profiles, read_scenarios
from penstock.experiments.alpaserve.figures import alpaserve_plots
from penstock.experiments.alpaserve.policies import POLICIES, Placed, timed
from penstock.experiments.alpaserve.published import CORRECTED, SEARCH_CPU_GOAL, SPEED, Corrected
from penstock.experiments.alpaserve.sweeps import sweep_rows
from penstock.experiments.reference import number, optional, read_table
from penstock.experiments.rows import (
    Labels,
    Row,
    Tolerance,
    at_least,
    at_most,
    information,
    judged,
)
from penstock.experiments.runner import Task
from penstock.experiments.system import Request, System, Table, table_of
from penstock.plan.planner import ProgressCallback, silent
from penstock.plan.pool.events import simulate_events, without_ends
from penstock.plan.pool.improve import pool_search
from penstock.plan.pool.model import Group, PoolPlacement, PoolProblem
from penstock.plan.pool.search import AS_MAVERIQ, AS_PUBLISHED, mp_search
from penstock.plan.pool.simulate import (
    PoolOutcome,
    TimedPlacement,
    simulate_changing,
    simulate_pool,
)

SECTIONS = ("simulator", "policies", "configs", "corrected", "sweeps", "fidelity", "speed")
STORED = Tolerance(absolute=0.0006)
PRINTED = Tolerance(absolute=0.0011)
LATENCY = Tolerance(absolute=0.0006, unit="s")
SAME = Tolerance()
FREE_SOLVER = ("sr-ilp", "mp-ilp")


def reproduce_alpaserve(
    alpaserve: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen sections with the inputs under ``alpaserve``."""
    calls: dict[str, Callable[[], list[Row]]] = {
        "simulator": partial(simulator_rows, alpaserve),
        "policies": partial(policy_rows, alpaserve),
        "configs": partial(config_rows, alpaserve),
        "corrected": partial(corrected_rows, alpaserve),
        "sweeps": partial(sweep_rows, alpaserve / "runs"),
        "fidelity": partial(fidelity_rows, alpaserve),
        "speed": partial(speed_rows, alpaserve / "runs"),
    }
    tasks = [Task(f"alpaserve {name}", 1.0, calls[name]) for name in request.sections]
    table = table_of(tasks, request, progress)
    return replace(table, plots=tuple(alpaserve_plots(table.rows)))


def simulate(problem: PoolProblem, placed: Placed) -> PoolOutcome:
    if isinstance(placed, TimedPlacement):
        return simulate_changing(problem, placed)
    return simulate_pool(problem, placed)


# -- stored placements, played again ----------------------------------------------------------


def simulator_rows(alpaserve: Path) -> list[Row]:
    """Every stored attainment and mean latency, from the stored placement."""
    runs = alpaserve / "runs"
    scenarios, placements = read_scenarios(runs), read_placements(runs)
    rows = []
    path = runs / "outcomes_maveriq.csv"
    for entry in read_table(path, "scenario", "variant", "policy", "attainment"):
        name, variant, policy = entry["scenario"], entry["variant"], entry["policy"]
        placed = placements[f"{name}|{variant}|{policy}"]
        labels = Labels("simulator", f"{name} {variant} {policy}")
        found = simulate(scenarios[name].variant(variant), placed)
        rows += _outcome_rows(labels, found, number(entry, "attainment", path),
                              number(entry, "mean_latency_s_drops_as_0", path))  # fmt: skip
        true = simulate(scenarios[name].variant("ids_and_latency_fixed"), placed)
        subject = labels.of("attainment on the right input", "")
        published = number(entry, "attainment_true_latency_right_ids", path)
        rows.append(judged(subject, published, true.attainment, STORED))
    path = runs / "outcomes_synthetic.csv"
    for entry in read_table(path, "scenario", "policy", "attainment"):
        name, policy = entry["scenario"], entry["policy"]
        placed = placements[f"{name}|{policy}"]
        problem = drawn_again(scenarios[name])
        labels = Labels("simulator", f"{name} {policy}")
        rows += _outcome_rows(labels, simulate(problem, placed), number(entry, "attainment", path),
                              number(entry, "mean_latency_s_drops_as_0", path))  # fmt: skip
        event = optional(entry, "event_attainment", path)
        if event is not None and isinstance(placed, PoolPlacement):
            random = np.random.RandomState(0)
            played = simulate_events(problem, placed, random)
            subject = labels.of("attainment, event by event", "")
            rows.append(judged(subject, event, without_ends(problem, played), STORED))
    return rows


def _outcome_rows(
    labels: Labels, found: PoolOutcome, attainment: float, latency_s: float
) -> list[Row]:
    return [
        judged(labels.of("attainment", ""), attainment, found.attainment, STORED),
        judged(labels.of("mean latency", "s"), latency_s, found.mean_latency_s, LATENCY),
    ]


# -- the searches -----------------------------------------------------------------------------


def policy_rows(alpaserve: Path) -> list[Row]:
    """Every policy on the synthetic scenarios: its placement, its attainment, its CPU seconds."""
    runs = alpaserve / "runs"
    scenarios, placements = read_scenarios(runs), read_placements(runs)
    path = runs / "outcomes_synthetic.csv"
    rows = []
    for entry in read_table(path, "scenario", "policy", "attainment", "search_cpu_s"):
        name, policy = entry["scenario"], entry["policy"]
        problem = drawn_again(scenarios[name])
        labels = Labels("policies", f"{name} {policy}")
        placed, cpu_s = timed(partial(POLICIES[policy], problem))
        published = number(entry, "attainment", path)
        attainment = labels.of("attainment", "")
        ours = simulate(problem, placed).attainment
        if policy in FREE_SOLVER:
            note = "the program has many best solutions; another solver finds another one"
            rows.append(information(attainment, published, ours, note=note))
        else:
            same = _sorted(placed) == _sorted(placements[f"{name}|{policy}"])
            rows.append(judged(labels.of("same placement", ""), 1.0, float(same), SAME))
            rows.append(judged(attainment, published, ours, STORED))
        theirs_s = number(entry, "search_cpu_s", path)
        subject = labels.of("CPU time of the search", "s")
        rows.append(
            at_most(subject, theirs_s, cpu_s, theirs_s * SEARCH_CPU_GOAL)
            if policy == "mp-search"
            else information(subject, theirs_s, cpu_s)
        )
    for name, scenario in scenarios.items():
        if not scenario.maveriq:
            rows += _ours(Labels("policies", f"{name} ours"), drawn_again(scenario))
    return rows


def _sorted(placed: Placed) -> list[PoolPlacement]:
    every = placed.placements if isinstance(placed, TimedPlacement) else (placed,)
    return [placement.normalised() for placement in every]


def _ours(labels: Labels, problem: PoolProblem) -> list[Row]:
    """Our own search against AlpaServe's on the same input."""
    theirs = mp_search(problem).outcome.attainment
    found, cpu_s = timed(partial(pool_search, problem))
    return [
        at_least(labels.of("attainment", ""), theirs, found.outcome.attainment, theirs),
        information(labels.of("CPU time of the search", "s"), None, cpu_s),
    ]


# -- MaverIQ's use of it ----------------------------------------------------------------------


def config_rows(alpaserve: Path) -> list[Row]:
    """The 49 configurations of MaverIQ: 25 planned from the faulty input, 24 of one group."""
    maveriq = Maveriq.read(alpaserve)
    path = alpaserve / "maveriq_alpaserve_configs.csv"
    rows = []
    for entry in read_table(path, "system", "model_set", "groups_0based_model_index"):
        scale, slo = number(entry, "rate_scale", path), number(entry, "slo_factor", path)
        problem = maveriq.problem(entry["model_set"], entry["trace"], scale, slo)
        listed = entry["groups_0based_model_index"]
        if entry["system"] == "AlpaServe":
            same = same_placement(mp_search(faulty(problem), AS_MAVERIQ).placement, listed)
        else:
            same = _star(problem) == listed
        case = f"{entry['system']} {entry['model_set']} {entry['trace']} {scale:g}, SLO {slo:g}x"
        subject = Labels("configs", case).of("same placement", "")
        rows.append(judged(subject, 1.0, float(same), SAME))
    return rows


def _star(problem: PoolProblem) -> str:
    shape = one_group(problem)
    if shape is None:
        return "not feasible"
    return str(PoolPlacement((Group(shape, tuple(range(len(problem.models)))),)))


def corrected_rows(alpaserve: Path) -> list[Row]:
    """The comparison with and without the two faults of the input, and our own search."""
    maveriq = Maveriq.read(alpaserve)
    return [row for entry in CORRECTED for row in _corrected(maveriq, entry)]


def _corrected(maveriq: Maveriq, entry: Corrected) -> list[Row]:
    labels = Labels("corrected", f"{entry.models} {entry.trace} {entry.scale:g}")
    problem = maveriq.problem(entry.models, entry.trace, entry.scale)
    true = mended(problem)
    seen = mp_search(faulty(problem), AS_MAVERIQ)
    replanned, cpu_s = timed(partial(mp_search, true, AS_MAVERIQ))
    ours = pool_search(true, AS_MAVERIQ)
    truth = simulate_pool(true, seen.placement).attainment
    requests = problem.traffic.num_requests
    best = max(entry.replanned, entry.true_input)
    goal_s = entry.search_cpu_s * SEARCH_CPU_GOAL
    return [
        judged(labels.of("requests", ""), entry.requests, requests, SAME),
        judged(
            labels.of("published plan, own view", ""),
            entry.own_view,
            seen.outcome.attainment,
            PRINTED,
        ),
        judged(labels.of("published plan, right input", ""), entry.true_input, truth, PRINTED),
        judged(
            labels.of("planned from the right input", ""),
            entry.replanned,
            replanned.outcome.attainment,
            PRINTED,
        ),
        at_least(
            labels.of("our search, right input", ""), best, ours.outcome.attainment, best - 0.0005
        ),
        at_most(labels.of("CPU time of the search", "s"), entry.search_cpu_s, cpu_s, goal_s),
    ]


# -- their simulator against their cluster ----------------------------------------------------


def fidelity_rows(alpaserve: Path) -> list[Row]:
    """How far AlpaServe's simulator was from 16 real GPUs, recomputed from its published pairs."""
    path = alpaserve / "published_goodput_results.csv"
    runs: dict[str, dict[tuple[str, str], float]] = {"simulate": {}, "run": {}}
    for entry in read_table(path, "source", "policy", "slo_scale", "attainment"):
        if "align_simulator" in entry["source"]:
            kind = "simulate" if entry["source"].endswith("sim") else "run"
            case = entry["policy"], entry["slo_scale"]
            runs[kind][case] = number(entry, "attainment", path)
    both = sorted(runs["simulate"].keys() & runs["run"].keys())
    points = [100 * abs(runs["simulate"][case] - runs["run"][case]) for case in both]
    if not points:
        raise InputError(f"{path}: holds no pair of a real and a simulated run")
    labels = Labels("fidelity", "16 GPUs, 24 BERT-2.6B")
    tolerance = Tolerance(absolute=0.051, unit="points")
    note = "real runs are published figures; Penstock did not run them"
    return [
        judged(labels.of("cases", ""), 20, len(points), SAME, note=note),
        judged(labels.of("mean difference", "points"), 0.5, float(np.mean(points)), tolerance),
        judged(labels.of("largest difference", "points"), 1.6, max(points), tolerance),
    ]


# -- speed ------------------------------------------------------------------------------------


def speed_rows(runs: Path) -> list[Row]:
    """MP-search and one pass of the simulator on larger pools, in CPU seconds."""
    profile = read_profiles(runs)["alpa/bert-1.3b"]
    rows = []
    mp_search(BertPool(models=4, gpus=2, rate_rps=1.0).problem(profile))
    for entry in SPEED:
        labels = Labels("speed", f"{entry.models} models, {entry.gpus} GPUs")
        pool = BertPool(entry.models, entry.gpus, entry.rate_rps)
        problem = pool.problem(profile)
        found, cpu_s = timed(partial(mp_search, problem, AS_PUBLISHED))
        _, pass_s = timed(partial(simulate_pool, problem, found.placement))
        requests = problem.traffic.num_requests
        goal_s = entry.search_cpu_s * SEARCH_CPU_GOAL
        note = "theirs: two shared cores of another machine, in CPU seconds without compilation"
        rows += [
            judged(labels.of("requests", ""), entry.requests, requests, SAME),
            at_most(
                labels.of("CPU time of the search", "s"),
                entry.search_cpu_s,
                cpu_s,
                goal_s,
                note=note,
            ),
            information(labels.of("CPU time of one pass", "s"), entry.pass_cpu_s, pass_s),
        ]
    return rows


ALPASERVE_SYSTEM = System("alpaserve", SECTIONS, reproduce_alpaserve)
