"""Many tasks on a few processes: progress, order, and Ctrl-C that keeps what is done."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.errors import PenstockError
from penstock.plan.planner import Progress, ProgressCallback, silent

R = TypeVar("R")


@dataclass(frozen=True)
class Task(Generic[R]):
    """Work for one process. ``call`` must be picklable; ``weight`` is its expected CPU seconds."""

    label: str
    weight: float
    call: Callable[[], R]


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of a task: a value, or the line that says why there is none."""

    value: R | None
    error: str
    cpu_s: float


@dataclass(frozen=True)
class Outcomes(Generic[R]):
    """In the order of the tasks; None = not finished, because the user stopped the work."""

    results: tuple[Outcome[R] | None, ...]
    interrupted: bool = False


def run_tasks(
    tasks: Sequence[Task[R]], processes: int = 1, progress: ProgressCallback = silent
) -> Outcomes[R]:
    """Run every task; the answer is in the order of ``tasks`` whatever the processes do.

    A task that raises a ``PenstockError`` becomes an ``Outcome`` with its message; other errors
    are faults and propagate. Ctrl-C ends the work and keeps the finished outcomes.
    """
    board = _Board(tasks, progress)
    try:
        if processes <= 1 or len(tasks) <= 1:
            for index, task in enumerate(tasks):
                board.finish(index, _attempt(task))
        else:
            _in_processes(tasks, min(processes, len(tasks)), board)
    except KeyboardInterrupt:
        return Outcomes(tuple(board.results), interrupted=True)
    return Outcomes(tuple(board.results))


class _Board(Generic[R]):
    """Finished outcomes and the share of the work they stand for."""

    def __init__(self, tasks: Sequence[Task[R]], progress: ProgressCallback) -> None:
        self.tasks = tasks
        self.progress = progress
        self.results: list[Outcome[R] | None] = [None] * len(tasks)
        self.done = 0.0
        self.total = sum(task.weight for task in tasks) or 1.0

    def finish(self, index: int, outcome: Outcome[R]) -> None:
        self.results[index] = outcome
        self.done += self.tasks[index].weight
        text = self.tasks[index].label + (f": {outcome.error}" if outcome.error else "")
        self.progress(Progress(text, min(1.0, self.done / self.total)))


def _attempt(task: Task[R]) -> Outcome[R]:
    started = time.process_time()
    try:
        value = task.call()
    except PenstockError as error:
        return Outcome(None, str(error), time.process_time() - started)
    return Outcome(value, "", time.process_time() - started)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_processes(tasks: Sequence[Task[R]], processes: int, board: _Board[R]) -> None:
    # The longest tasks start first, so that no process is left alone with one at the end.
    order = sorted(range(len(tasks)), key=lambda index: -tasks[index].weight)
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_leave_interrupts_to_the_parent,
    )
    try:
        waiting: dict[Future[Outcome[R]], int] = {
            pool.submit(_attempt, tasks[index]): index for index in order
        }
        for future in as_completed(waiting):
            board.finish(waiting[future], future.result())
    except BrokenProcessPool as error:
        raise PenstockError(
            "a worker process died (out of memory?); run with --processes 1"
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
