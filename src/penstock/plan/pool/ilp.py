"""SR-ILP and MP-ILP: replicas by capacity over rate, without simulating the traffic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.errors import Infeasible, InputError
from penstock.plan.pool.greedy import ONE_GPU
from penstock.plan.pool.model import Floats, Group, PoolModel, PoolPlacement, PoolProblem, Shape
from penstock.plan.solver import HighsSolver, ProgramBuilder, Solver, SolverOptions

TIME_LIMIT_S = 30.0
SUM_WEIGHT = 1e-4
PIPELINES = (Shape(1, 1), Shape(1, 2), Shape(1, 4), Shape(1, 8))
PER_STAGE = 0.99


@dataclass(frozen=True)
class _Model:
    """Columns of the program. ``held[m][g]`` replica; ``kind[g][k]`` shape of slot g."""

    held: list[list[int]]
    kind: list[list[int]]


def capability(model: PoolModel, shape: Shape) -> float:
    """Requests that can be under way at once and still meet the deadline, less 1 % a stage."""
    timing = model.profile.timings.get(shape)
    if timing is None:
        return 0.0
    seconds = timing.latency_s
    room = (model.slo_s - sum(seconds)) // max(seconds) + 1
    return float(max(0.0, room) * PER_STAGE**shape.pp)


def _checked(problem: PoolProblem) -> Floats:
    """Memory shares of one replica. Raises ``InputError`` for what the programs cannot use."""
    for model in problem.models:
        if not (model.rate_rps > 0 and np.isfinite(model.slo_s)):
            raise InputError(f"{model.profile.name}: an ILP policy needs its rate and its SLO")
        if ONE_GPU not in model.profile.timings:
            raise InputError(f"{model.profile.name}: an ILP policy needs its profile on one GPU")
    memory = problem.cluster.memory_bytes
    return np.array([problem.weight_bytes(m, ONE_GPU) / memory for m in range(len(problem.models))])


def sr_ilp(
    problem: PoolProblem, solver: Solver | None = None, limit_s: float = TIME_LIMIT_S
) -> PoolPlacement:
    """One GPU a group: raise the least (replicas x throughput / rate), then their sum."""
    share = _checked(problem)
    gpus, count = problem.cluster.gpus, len(problem.models)
    build = ProgramBuilder()
    least = build.column(objective=1.0)
    gain = [
        1 / model.profile.timings[ONE_GPU].latency_s[0] / model.rate_rps for model in problem.models
    ]
    held = [
        [build.column(1.0, integer=True, objective=SUM_WEIGHT * gain[m]) for _ in range(gpus)]
        for m in range(count)
    ]
    for g in range(gpus):
        build.row([(held[m][g], float(share[m])) for m in range(count)], upper=1.0)
    for m in range(count):
        build.row([(least, 1.0), *((column, -gain[m]) for column in held[m])], upper=0.0)
    x = _solved(build, solver, limit_s)
    return PoolPlacement(
        tuple(Group(ONE_GPU, tuple(m for m in range(count) if x[held[m][g]] > 0.5))
              for g in range(gpus))
    )  # fmt: skip


def mp_ilp(
    problem: PoolProblem, solver: Solver | None = None, limit_s: float = TIME_LIMIT_S
) -> PoolPlacement:
    """Pipelines of 1, 2, 4 or 8 GPUs: raise the least (capability / rate), then their sum.

    Memory is counted as in AlpaServe: weights on one GPU against the sum of a group's GPUs.
    """
    share = _checked(problem)
    slots, count = problem.cluster.gpus, len(problem.models)
    build = ProgramBuilder()
    least = build.column(objective=1.0)
    held = [[build.column(1.0, integer=True) for _ in range(slots)] for _ in range(count)]
    kind = [[build.column(1.0, integer=True) for _ in PIPELINES] for _ in range(slots)]
    for g in range(slots):
        build.row([(column, 1.0) for column in kind[g]], upper=1.0)
        room = [(kind[g][k], -float(shape.gpus)) for k, shape in enumerate(PIPELINES)]
        build.row([*((held[m][g], float(share[m])) for m in range(count)), *room], upper=0.0)
    sizes = [
        (kind[g][k], float(shape.gpus)) for g in range(slots) for k, shape in enumerate(PIPELINES)
    ]
    build.row(sizes, lower=float(slots), upper=float(slots))
    for m, model in enumerate(problem.models):
        row = [(least, 1.0)]
        for k, shape in enumerate(PIPELINES):
            gain = capability(model, shape) / model.rate_rps
            if gain <= 0:
                continue
            for g in range(slots):
                both = build.column(1.0, objective=SUM_WEIGHT * gain)
                build.row([(both, 1.0), (held[m][g], -1.0)], upper=0.0)
                build.row([(both, 1.0), (kind[g][k], -1.0)], upper=0.0)
                row.append((both, -gain))
        build.row(row, upper=0.0)
    x = _solved(build, solver, limit_s)
    return _pipelines(x, _Model(held, kind))


def _pipelines(x: Floats, columns: _Model) -> PoolPlacement:
    groups = []
    for g, kinds in enumerate(columns.kind):
        for shape, column in zip(PIPELINES, kinds, strict=True):
            if x[column] > 0.5:
                models = tuple(m for m, row in enumerate(columns.held) if x[row[g]] > 0.5)
                groups.append(Group(shape, models))
    return PoolPlacement(tuple(groups))


def _solved(build: ProgramBuilder, solver: Solver | None, limit_s: float) -> Floats:
    solution = (solver or HighsSolver()).solve(build.build(), SolverOptions(limit_s))
    if solution.x is None:
        raise Infeasible(
            "the placement program has no solution", fix="more GPUs, memory or time for the solver"
        )
    return solution.x
