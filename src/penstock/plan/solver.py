"""One protocol for mixed-integer solvers, with HiGHS behind it (and Gurobi where installed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError

Floats = NDArray[np.float64]
INFINITE = float("inf")


@dataclass(frozen=True)
class Program:
    """Maximise ``objective @ x`` with ``row_lower <= A x <= row_upper``; c columns, r rows.

    A is given by rows: row i owns ``columns[starts[i]:starts[i + 1]]`` and the same of ``values``.
    """

    objective: Floats
    column_lower: Floats
    column_upper: Floats
    integer: NDArray[np.bool_]
    row_lower: Floats
    row_upper: Floats
    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: Floats

    @property
    def num_columns(self) -> int:
        return len(self.objective)

    @property
    def num_rows(self) -> int:
        return len(self.row_lower)


@dataclass
class ProgramBuilder:
    """Collects columns and rows in order."""

    _columns: list[tuple[float, float, float, bool]] = field(default_factory=list)
    _bounds: list[tuple[float, float]] = field(default_factory=list)
    _starts: list[int] = field(default_factory=lambda: [0])
    _entries: list[tuple[int, float]] = field(default_factory=list)

    def column(
        self,
        upper: float = INFINITE,
        *,
        lower: float = 0.0,
        integer: bool = False,
        objective: float = 0.0,
    ) -> int:
        """Add a variable; return its number."""
        self._columns.append((objective, lower, upper, integer))
        return len(self._columns) - 1

    def row(
        self,
        terms: Sequence[tuple[int, float]],
        *,
        lower: float = -INFINITE,
        upper: float = INFINITE,
    ) -> None:
        """Add ``lower <= sum(coefficient * x[column]) <= upper``."""
        self._entries += terms
        self._starts.append(len(self._entries))
        self._bounds.append((lower, upper))

    def build(self) -> Program:
        columns = np.array(self._columns, dtype=np.float64).reshape(-1, 4)
        bounds = np.array(self._bounds, dtype=np.float64).reshape(-1, 2)
        return Program(
            objective=columns[:, 0].copy(),
            column_lower=columns[:, 1].copy(),
            column_upper=columns[:, 2].copy(),
            integer=columns[:, 3] != 0,
            row_lower=bounds[:, 0].copy(),
            row_upper=bounds[:, 1].copy(),
            starts=np.array(self._starts, dtype=np.int32),
            columns=np.array([c for c, _ in self._entries], dtype=np.int32),
            values=np.array([v for _, v in self._entries], dtype=np.float64),
        )


@dataclass(frozen=True)
class SearchState:
    """Where a running solver stands. ``value`` is -inf without an incumbent."""

    value: float
    bound: float
    seconds: float


IncumbentCallback = Callable[[Floats, SearchState], None]
StopCallback = Callable[[SearchState], bool]


@dataclass(frozen=True)
class SolverOptions:
    """``on_incumbent`` gets every improving solution; ``stop`` is asked often and may end it."""

    time_limit_s: float
    seed: int = 0
    threads: int = 1
    start: Floats | None = None
    on_incumbent: IncumbentCallback | None = None
    stop: StopCallback | None = None


@dataclass(frozen=True)
class Solution:
    """``x`` is None without an incumbent. ``bound`` is proved; ``interrupted`` by Ctrl-C."""

    status: Literal["optimal", "infeasible", "stopped"]
    x: Floats | None
    value: float
    bound: float
    interrupted: bool = False


class Solver(Protocol):
    name: str

    def solve(self, program: Program, options: SolverOptions) -> Solution: ...


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, instead of raising inside a solver's callback."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


def _highspy() -> Any:
    import highspy  # noqa: PLC0415 - heavy, and only the MILP needs it

    return highspy


class HighsSolver:
    """HiGHS through highspy."""

    name = "HiGHS"

    def solve(self, program: Program, options: SolverOptions) -> Solution:
        highspy = _highspy()

        highs = self._load(program, options)
        with interrupt_flag() as interrupted:

            def state(event: Any) -> SearchState:
                data = event.data_out
                return SearchState(
                    _finite_or(data.mip_primal_bound, -INFINITE, highspy.kHighsInf),
                    _finite_or(data.mip_dual_bound, INFINITE, highspy.kHighsInf),
                    float(data.running_time),
                )

            def improving(event: Any) -> None:
                if options.on_incumbent is not None:
                    options.on_incumbent(np.array(event.data_out.mip_solution), state(event))

            def check(event: Any) -> None:
                asked = options.stop is not None and options.stop(state(event))
                if asked or interrupted.is_set():
                    event.data_in.user_interrupt = True

            highs.cbMipImprovingSolution += improving
            highs.cbMipInterrupt += check
            highs.run()
            return self._answer(highs, interrupted.is_set())

    def _load(self, program: Program, options: SolverOptions) -> Any:
        highspy = _highspy()

        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("time_limit", float(options.time_limit_s))
        highs.setOptionValue("random_seed", int(options.seed))
        highs.setOptionValue("threads", int(options.threads))
        highs.setOptionValue("mip_rel_gap", 0.0)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = program.num_columns, program.num_rows
        lp.sense_ = highspy.ObjSense.kMaximize
        lp.col_cost_ = program.objective
        lp.col_lower_, lp.col_upper_ = program.column_lower, program.column_upper
        lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = program.num_columns, program.num_rows
        lp.a_matrix_.start_ = program.starts
        lp.a_matrix_.index_ = program.columns
        lp.a_matrix_.value_ = program.values
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(whole)] for whole in program.integer]
        highs.passModel(lp)
        if options.start is not None:
            start = highspy.HighsSolution()
            start.col_value = options.start.tolist()
            highs.setSolution(start)
        return highs

    def _answer(self, highs: Any, interrupted: bool) -> Solution:
        highspy = _highspy()

        status = highs.getModelStatus()
        info = highs.getInfo()
        bound = _finite_or(info.mip_dual_bound, INFINITE, highspy.kHighsInf)
        if status == highspy.HighsModelStatus.kInfeasible:
            return Solution("infeasible", None, -INFINITE, bound, interrupted)
        feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        x = np.array(highs.getSolution().col_value) if feasible else None
        value = float(info.objective_function_value) if feasible else -INFINITE
        done = status == highspy.HighsModelStatus.kOptimal
        return Solution("optimal" if done else "stopped", x, value, bound, interrupted)


def _finite_or(value: float, otherwise: float, infinite: float) -> float:
    return float(value) if abs(value) < infinite else otherwise


class GurobiSolver:
    """Gurobi through gurobipy, where that is installed and licensed."""

    name = "Gurobi"

    def solve(self, program: Program, options: SolverOptions) -> Solution:
        """Raises ``InputError`` without gurobipy, or where its licence refuses the program."""
        gurobi = _gurobipy()
        try:
            return self._solve(gurobi, program, options)
        except gurobi.GurobiError as error:
            raise InputError(f"Gurobi refuses: {error}; use HiGHS (--planner helix-milp)") from None

    def _solve(self, gurobi: Any, program: Program, options: SolverOptions) -> Solution:
        model = gurobi.Model()
        model.Params.OutputFlag = 0
        model.Params.TimeLimit = options.time_limit_s
        model.Params.Seed = options.seed
        variables = self._variables(gurobi, model, program)
        self._rows(gurobi, model, program, variables)
        if options.start is not None:
            for variable, value in zip(variables, options.start.tolist(), strict=True):
                variable.Start = value
        with interrupt_flag() as interrupted:
            model.optimize(_gurobi_callback(gurobi, variables, options, interrupted))
        found = model.SolCount > 0
        status: Literal["optimal", "infeasible", "stopped"] = "stopped"
        if model.Status == gurobi.GRB.OPTIMAL:
            status = "optimal"
        elif model.Status == gurobi.GRB.INFEASIBLE:
            status = "infeasible"
        return Solution(
            status,
            np.array([v.X for v in variables]) if found else None,
            float(model.ObjVal) if found else -INFINITE,
            float(model.ObjBound),
            interrupted.is_set(),
        )

    def _variables(self, gurobi: Any, model: Any, program: Program) -> list[Any]:
        model.ModelSense = gurobi.GRB.MAXIMIZE
        kinds = (gurobi.GRB.CONTINUOUS, gurobi.GRB.INTEGER)
        return [
            model.addVar(lb=low, ub=high, obj=price, vtype=kinds[whole])
            for low, high, price, whole in zip(
                program.column_lower.tolist(),
                program.column_upper.tolist(),
                program.objective.tolist(),
                program.integer.astype(int).tolist(),
                strict=True,
            )
        ]

    def _rows(self, gurobi: Any, model: Any, program: Program, variables: list[Any]) -> None:
        values, columns = program.values.tolist(), program.columns.tolist()
        for i, (a, b) in enumerate(pairwise(program.starts.tolist())):
            row = gurobi.LinExpr(values[a:b], [variables[c] for c in columns[a:b]])
            if program.row_lower[i] > -INFINITE:
                model.addLConstr(row, gurobi.GRB.GREATER_EQUAL, float(program.row_lower[i]))
            if program.row_upper[i] < INFINITE:
                model.addLConstr(row, gurobi.GRB.LESS_EQUAL, float(program.row_upper[i]))


def _gurobi_callback(
    gurobi: Any, variables: list[Any], options: SolverOptions, interrupted: threading.Event
) -> Callable[[Any, int], None]:
    codes = gurobi.GRB.Callback

    def callback(model: Any, where: int) -> None:
        if where == codes.MIPSOL and options.on_incumbent is not None:
            state = SearchState(
                model.cbGet(codes.MIPSOL_OBJ),
                model.cbGet(codes.MIPSOL_OBJBND),
                model.cbGet(codes.RUNTIME),
            )
            options.on_incumbent(np.array(model.cbGetSolution(variables)), state)
        if where == codes.MIP:
            state = SearchState(
                model.cbGet(codes.MIP_OBJBST),
                model.cbGet(codes.MIP_OBJBND),
                model.cbGet(codes.RUNTIME),
            )
            if interrupted.is_set() or (options.stop is not None and options.stop(state)):
                model.terminate()

    return callback


def _gurobipy() -> Any:
    try:
        import gurobipy  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415
    except ImportError:
        raise InputError(
            "gurobipy is not installed; pip install gurobipy and a licence, or use HiGHS"
        ) from None
    return gurobipy
