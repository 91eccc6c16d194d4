"""Memory that is too short to spread models by load."""

from __future__ import annotations

import pytest
from published.pool_toys import cluster, machine, question, served, toy_model

from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.fill import fill
from penstock.plan.joint.layout import Group, empty
from penstock.plan.joint.limits import Limits
from penstock.plan.joint.problem import joint_problem
from penstock.spec.served import ServedModel


def filled(models: list[ServedModel], requests: dict[str, int], gpus: int = 2) -> list[list[str]]:
    """What each of ``gpus`` single GPUs gets."""
    sent = [(0.01 * i, name) for name, count in requests.items() for i in range(count)]
    asked = question(cluster(machine("a", gpus)), models, sorted(sent))
    problem = joint_problem(asked)
    node = asked.cluster.nodes[0]
    problem.book.accelerators[node.accelerator.name] = node.accelerator
    evaluator = Evaluator(problem)
    limits = Limits(evaluator, [float("inf")] * len(models))
    groups = [Group(((0, gpu),), 1) for gpu in range(gpus)]
    found = fill(evaluator, limits, empty(groups, (0,) * len(models)))
    for group, held in zip(found.groups, found.held, strict=True):
        assert evaluator.fits(group, held, found.forms) or not held
    return [sorted(problem.models[m].name for m in held) for held in found.held]


def test_a_load_that_is_even_may_leave_no_room() -> None:
    """By load, one light model stands against three, and the second heavy one fits nowhere."""
    heavy = [served(toy_model(f"heavy{i}", layers=6)) for i in range(2)]
    light = [served(toy_model(f"light{i}", layers=2)) for i in range(4)]
    requests = {"light0": 30, "light1": 10, "light2": 10, "light3": 10, "heavy0": 1, "heavy1": 1}
    found = filled([*light, *heavy], requests)
    assert sorted(name for held in found for name in held) == sorted(requests)


@pytest.mark.parametrize("asked", ["first", "second"])
def test_what_is_asked_most_goes_first_where_not_all_fit(asked: str) -> None:
    """Two models of which one GPU holds one: that with more requests a byte."""
    models = [served(toy_model(name, layers=11)) for name in ("first", "second")]
    requests = {"first": 3, "second": 3, asked: 9}
    assert filled(models, requests, gpus=1) == [[asked]]
