"""Pools planned from files and values, scored by the simulator, and planned anew in mid-run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from published.pool_toys import ToyCost, cluster, machine, question, served, toy_model

from penstock import api
from penstock.cli.main import execute
from penstock.errors import SpecError
from penstock.measure.metrics import summarise
from penstock.plan.joint.planner import JointPlanner
from penstock.plan.planner import silent
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_document import read_pool, write_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolQuestion
from penstock.policy.replan import ReplanSettings
from penstock.pool_planning import pool_planner, pool_score, replanner
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.spec.workload import SLO

QUICK = JointPlanner(proposals=30)

CLUSTER = """
name: two
nodes: [{name: box, accelerator: RTX-A6000, accelerators_per_node: 2}]
"""
MODELS = """
models:
  - {name: chat, model: llama2-7b, slo: {ttft: 1 s, tpot: 100 ms}}
  - {name: tiny, model: opt-125m, intent: min_memory}
"""
WORKLOAD = """
name: pair
duration: 20 s
models:
  - {name: chat, arrivals: {poisson: {rate: 0.5}}, lengths: {prompt: 100, output: 20}}
  - {name: tiny, arrivals: {poisson: {rate: 1}}, lengths: {prompt: 50, output: 5}}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    paths = []
    for name, text in (("cluster", CLUSTER), ("models", MODELS), ("workload", WORKLOAD)):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(text)
    return paths[0], paths[1], paths[2]


def attainment(pool: PoolPlan, asked: PoolQuestion, options: PoolOptions) -> float:
    costs = {entry.name: ToyCost(entry.plan.model) for entry in pool.deployments}
    run = simulate_pool(pool, asked.workload, costs, options)
    return summarise(run, classes=asked.workload.classes).overall.slo_attainment or 0.0


def test_files_become_a_plan_that_can_be_written_and_simulated(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Two calm models on two GPUs meet their limits, and the simulator agrees with the plan."""
    pool = api.plan_pool(*files)
    assert check_pool(pool) == []
    assert {entry.name for entry in pool.deployments} == {"chat", "tiny"}
    write_pool(tmp_path / "pool.yaml", pool)
    assert read_pool(tmp_path / "pool.yaml") == pool
    assert pool.value == 1.0


@pytest.mark.parametrize("planner", ["joint", "alpaserve"])
def test_limits_of_models_go_with_the_plan(files: tuple[Path, Path, Path], planner: str) -> None:
    """What the plan was made for is what its simulation holds requests to."""
    pool = api.plan_pool(*files, planner=planner)
    assert pool.deployment("chat").slo == SLO(ttft_s=1.0, tpot_s=0.1)
    assert pool.deployment("tiny").slo is None
    summary = summarise(api.simulate(pool, files[2]))
    shares = {group.name: group.slo_attainment for group in summary.models}
    assert shares["chat"] is not None


def test_a_plan_in_use_is_kept_where_it_serves(files: tuple[Path, Path, Path]) -> None:
    first = api.plan_pool(*files)
    again = api.plan_pool(*files, current=first, move_budget_bytes=0.0)
    assert again.groups == first.groups


def test_an_unknown_planner_is_one_line_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="joint"):
        pool_planner("jiont")


def test_a_plan_of_other_machines_is_no_start(files: tuple[Path, Path, Path]) -> None:
    asked = question(cluster(machine("m", 1)), [served(toy_model("a"))], [(0.0, "a")])
    other = QUICK.plan(asked, pool_score(asked), silent)
    with pytest.raises(SpecError, match="other machines"):
        api.plan_pool(*files, current=other)


def test_the_score_is_the_simulators_share_of_requests_sent() -> None:
    """A model that is not in the plan counts with all its requests."""
    models = [served(toy_model("a")), served(toy_model("b"))]
    sent = [(0.1 * i, "ab"[i % 4 == 0]) for i in range(40)]
    asked = question(cluster(machine("m", 1)), models, sent)
    pool = QUICK.plan(asked, pool_score(asked), silent)
    without = replace(pool, deployments=tuple(one for one in pool.deployments if one.name == "a"))
    assert pool_score(asked)([pool, without]) == [1.0, 0.75]


def test_what_is_loaded_serves_only_once_it_is_there() -> None:
    """From an empty seat the same plan scores less than from a warm start."""
    models = [served(toy_model("a")), served(toy_model("b"))]
    slow = cluster(replace(machine("m", 2), disk_bytes_per_s=1e5))
    sent = [(0.1 * i, "b") for i in range(40)]
    asked = question(slow, models, sent, limit_s=1.0)
    alone = question(slow, models[:1], [(0.0, "a")])
    before = QUICK.plan(alone, pool_score(alone), silent)
    after = QUICK.plan(asked, pool_score(asked), silent)
    warm, cold = pool_score(asked)([after]), pool_score(replace(asked, current=before))([after])
    assert warm[0] == 1.0
    assert cold[0] < 0.5


def test_planning_anew_follows_traffic_that_moves() -> None:
    """b gets busy after a minute: the pool that is planned anew serves more, and loses nothing."""
    models = [served(toy_model("a", layers=8)), served(toy_model("b", layers=8))]
    fleet = cluster(machine("m", 3))
    calm = [(0.2 * i, "ab"[i % 10 == 0]) for i in range(300)]
    busy = [(60.0 + 0.08 * i, "ba"[i % 20 == 0]) for i in range(1500)]
    asked = question(fleet, models, calm + busy, limit_s=0.15)
    planned_for = question(fleet, models, calm, limit_s=0.15)
    pool = QUICK.plan(planned_for, pool_score(planned_for), silent)
    settings = ReplanSettings(window_s=20.0, rest_s=20.0)
    changing = PoolOptions(
        replan=replanner(planned_for, QUICK, settings), replan_every_s=10.0, check=True
    )
    fixed = attainment(pool, asked, PoolOptions())
    moving = attainment(pool, asked, changing)
    assert moving > fixed + 0.1


def test_the_command_prints_and_writes_the_plan(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One JSON document on stdout; the file is that of the function."""
    out = tmp_path / "pool.yaml"
    named = [str(path) for path in files]
    assert execute(["plan", *named, "-o", str(out), "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {model["name"] for model in answer["models"]} == {"chat", "tiny"}
    assert read_pool(out) == api.plan_pool(*files)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "goodput"], "--objective: is for one model"),
        (["--move-budget", "1 GiB"], "--current"),
        (["--planner", "jiont"], "joint"),
        (["-w", "azure-conv-online"], "given twice"),
        (["--current", "{cluster}"], "not a plan of many models"),
        (["--planner", "alpaserve", "--time-limit", "3"], "ends by itself"),
    ],
)
def test_what_a_user_may_mistype_is_one_line(
    arguments: list[str],
    words: str,
    files: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.replace("{cluster}", str(files[0])) for argument in arguments]
    assert execute(["plan", *map(str, files), *filled]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_pool_needs_its_traffic(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["plan", str(files[0]), str(files[1])]) == 2
    assert "give their traffic" in capsys.readouterr().err


def test_flags_of_pools_are_refused_for_one_model(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["plan", str(files[0]), "llama2-7b", "--move-budget", "1 GiB"]) == 2
    assert "is for many models" in capsys.readouterr().err
