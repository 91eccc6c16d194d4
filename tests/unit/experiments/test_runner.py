"""Tasks on processes: order, failures, progress and interruption."""

from __future__ import annotations

import os
from functools import partial

import pytest

from penstock.errors import InputError, PenstockError
from penstock.experiments.runner import Task, run_tasks
from penstock.plan.planner import Progress


def double(value: int) -> int:
    return 2 * value


def refuse(value: int) -> int:
    raise InputError(f"no {value}")


def stop() -> int:
    raise KeyboardInterrupt


def die() -> int:
    os._exit(3)


def test_results_keep_the_order_of_the_tasks() -> None:
    """Two processes give what one gives, in the order asked for."""
    tasks = [Task(str(i), float(10 - i), partial(double, i)) for i in range(6)]
    one = run_tasks(tasks, 1)
    two = run_tasks(tasks, 2)
    for outcomes in (one, two):
        assert [o.value for o in outcomes.results if o is not None] == [0, 2, 4, 6, 8, 10]
        assert not outcomes.interrupted


def test_a_failing_task_says_why_and_the_others_go_on() -> None:
    """A user-level error is an outcome, not the end of the table."""
    outcomes = run_tasks([Task("a", 1, partial(refuse, 1)), Task("b", 1, partial(double, 1))])
    first, second = outcomes.results
    assert first is not None
    assert second is not None
    assert (first.value, first.error) == (None, "no 1")
    assert second.value == 2


def test_interruption_keeps_what_is_done() -> None:
    """After Ctrl-C the finished outcomes are there and the rest is marked as not run."""
    tasks = [Task("a", 1, partial(double, 1)), Task("b", 1, stop), Task("c", 1, partial(double, 3))]
    outcomes = run_tasks(tasks)
    assert outcomes.interrupted
    assert [o.value if o else None for o in outcomes.results] == [2, None, None]


def test_progress_ends_at_the_whole() -> None:
    """Progress grows with the weight of what is done and ends at one."""
    news: list[Progress] = []
    run_tasks([Task("a", 3, partial(double, 1)), Task("b", 1, partial(double, 2))], 1, news.append)
    assert [item.fraction for item in news] == [0.75, 1.0]
    assert [item.message for item in news] == ["a", "b"]


def test_faults_are_not_swallowed() -> None:
    """An error that is no user's mistake reaches the caller."""
    with pytest.raises(ZeroDivisionError):
        run_tasks([Task("a", 1, partial(divmod, 1, 0))])


def test_a_dead_worker_is_one_line() -> None:
    """A worker killed from outside ends the table with a line that says what to do."""
    with pytest.raises(PenstockError, match="--processes 1"):
        run_tasks([Task("a", 1, die), Task("b", 1, die)], 2)
