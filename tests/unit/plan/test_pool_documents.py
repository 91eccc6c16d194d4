"""Pool plans as documents: what is written reads back, mistakes are one line, rules are checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pools import pools, shared_pool
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.errors import InputError, SpecError
from penstock.plan.document import read_plan, write_plan
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_document import (
    format_pool,
    is_pool_document,
    pool_from_dict,
    pool_to_dict,
    read_pool,
    write_pool,
)
from penstock.plan.pool_plan import PoolPlan
from penstock.spec.files import parse_yaml
from penstock.spec.workload import SLO

SLOW = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(pools())
def test_a_pool_plan_reads_back_equal_and_byte_for_byte(pool: PoolPlan) -> None:
    """Writing what was read gives the same bytes; the plan is equal in every field."""
    text = format_pool(pool)
    again = pool_from_dict(parse_yaml(text, "pool.yaml"))
    assert again == pool
    assert format_pool(again) == text


@SLOW
@given(pools())
def test_valid_pools_have_no_violations(pool: PoolPlan) -> None:
    """The checker accepts whatever keeps the rules."""
    assert check_pool(pool) == []


def test_files_tell_what_they_are(tmp_path: Path) -> None:
    """A pool plan is told from a plan of one model by its own key, both ways."""
    pool = shared_pool()
    path, one = tmp_path / "pool.yaml", tmp_path / "plan.yaml"
    write_pool(path, pool)
    write_plan(pool.deployments[0].plan, one)
    assert is_pool_document(path)
    assert not is_pool_document(one)
    assert read_pool(path) == pool
    with pytest.raises(SpecError, match="plan of many models"):
        read_plan(path)
    with pytest.raises(SpecError, match="no key penstock_pool"):
        read_pool(one)


def test_the_cluster_is_stored_once() -> None:
    """Deployments name nodes; what these are is said at the end."""
    text = format_pool(shared_pool())
    assert text.count("\ncluster:\n") == 1
    assert "  cluster:" not in text


def test_a_plan_for_another_cluster_is_not_written() -> None:
    """It would read back as something else."""
    pool = shared_pool()
    first, *rest = pool.deployments
    other = replace(first.plan, cluster=replace(pool.nodes, name="other"))
    with pytest.raises(SpecError, match="another cluster"):
        pool_to_dict(replace(pool, deployments=(replace(first, plan=other), *rest)))


Change = Callable[[dict[str, Any]], Any]
MISTAKES: list[tuple[Change, str]] = [
    (lambda d: d.update(deploymnts=[]), "deploymnts.*did you mean 'deployments'"),
    (lambda d: d.update(penstock_pool=2), "penstock_pool.*format 1"),
    (lambda d: d["sharing"].update(turns="round-robbin"), "sharing.turns.*round-robin"),
    (lambda d: d["parts"][0].update(machine="c"), "parts.0..machine.*no such machine"),
    (lambda d: d["parts"][0]["sizes"].append(1), "parts.0..sizes.*add up to"),
    (lambda d: d["parts"].append(d["parts"][0]), "is cut twice"),
    (lambda d: d["deployments"][0].update(precision="int3"), r"deployments.0..precision.*int4"),
    (lambda d: d["deployments"][0].update(accuracy=1.2), r"deployments.0..accuracy.*at most 1"),
    (lambda d: d["deployments"][0].update(priority="high"), r"priority.*whole number"),
    (lambda d: d["deployments"][0].pop("model"), r"deployments.0..model.*missing"),
    (lambda d: d["deployments"][0].update(enginse=[]), r"enginse.*did you mean 'engines'"),
    (lambda d: d["deployments"][1].update(name=d["deployments"][0]["name"]), "named twice"),
    (
        lambda d: d["deployments"][0]["engines"][0]["stages"][0].__setitem__(0, "nowhere"),
        r"deployments.0..engines.0..stages.*no such node",
    ),
    (
        lambda d: d["deployments"][0]["engines"][0].pop("scheduler"),
        r"deployments.0..engines.0..scheduler|whole engines only|needs a scheduler",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_that_names_the_key(change: Change, message: str) -> None:
    """Unknown keys, bad values and broken references each say where they are."""
    data = copy.deepcopy(pool_to_dict(shared_pool()))
    change(data)
    with pytest.raises(SpecError, match=message) as raised:
        pool_from_dict(data, source="pool.yaml")
    assert str(raised.value).startswith("pool.yaml")
    assert "\n" not in str(raised.value)


def _with_engine(pool: PoolPlan, **changes: Any) -> PoolPlan:
    first, *rest = pool.deployments
    head, *others = first.plan.engines
    plan = replace(first.plan, engines=(replace(head, **changes), *others))
    return replace(pool, deployments=(replace(first, plan=plan), *rest))


def test_engines_that_overlap_in_part_are_refused() -> None:
    """Half a pipeline cannot take turns with a whole one."""
    pool = shared_pool()
    nodes = ("b.0", "b.1")
    name, engine = pool.groups[nodes][0]
    swapped = [
        [other.node, stage.start_layer, stage.end_layer]
        for stage, other in zip(engine.stages, reversed(engine.stages), strict=True)
    ]
    data: dict[str, Any] = copy.deepcopy(pool_to_dict(pool))
    row = next(row for row in data["deployments"] if row["name"] == name)
    next(one for one in row["engines"] if one["name"] == engine.name)["stages"] = swapped
    with pytest.raises(SpecError, match="in part"):
        pool_from_dict(data)


def test_memory_is_that_of_all_models_on_a_node() -> None:
    """Each model fits alone; together they do not."""
    pool = shared_pool()
    sharers = pool.groups["b.0", "b.1"]

    def fill(share: float) -> PoolPlan:
        """Every sharer takes ``share`` of each node's memory for KV."""
        deployments = []
        for entry in pool.deployments:
            engines = []
            for engine in entry.plan.engines:
                if (entry.name, engine) in sharers:
                    layer_bytes = entry.plan.model.kv_bytes_per_token_per_layer
                    rooms = [
                        node.count * node.accelerator.memory_bytes / stage.num_layers
                        for stage in engine.stages
                        for node in [pool.nodes.node(stage.node)]
                    ]
                    entries = int(share * min(rooms) * engine.num_layers / layer_bytes)
                    engine = replace(engine, kv_capacity_layer_tokens=entries)
                engines.append(engine)
            deployments.append(replace(entry, plan=replace(entry.plan, engines=tuple(engines))))
        return replace(pool, deployments=tuple(deployments))

    assert check_pool(fill(0.1)) == []
    found = check_pool(fill(0.6))
    assert any("weights of" in line and "KV memory of" in line for line in found)


def test_the_checker_names_other_faults() -> None:
    """A value that is no share, and a plan that stands elsewhere."""
    pool = shared_pool()
    assert any("not a share" in line for line in check_pool(replace(pool, value=1.5)))
    first, *rest = pool.deployments
    moved = replace(first.plan, cluster=replace(pool.nodes, name="other"))
    elsewhere = replace(pool, deployments=(replace(first, plan=moved), *rest))
    assert any("another cluster" in line for line in check_pool(elsewhere))
    assert any("less KV memory" in line for line in check_pool(_with_engine(
        pool, kv_capacity_layer_tokens=1
    )))  # fmt: skip


def test_the_command_checks_pools_and_models(tmp_path: Path) -> None:
    """Pools, plans and files of models are told apart; a broken pool ends with 2."""
    pool = shared_pool()
    good, bad, models = (tmp_path / name for name in ("pool.yaml", "bad.yaml", "models.yaml"))
    write_pool(good, pool)
    write_pool(bad, replace(pool, value=2.0))
    models.write_text("models: [{name: chat, model: llama2-7b}]\n")
    runner = CliRunner()
    result = runner.invoke(app, ["validate", str(good), str(models)])
    assert result.exit_code == 0, result.output
    assert result.output.count(": ok") == 2
    result = runner.invoke(app, ["validate", str(bad)])
    assert isinstance(result.exception, InputError)
    assert "not a share" in result.output


LIMIT_MISTAKES = [
    ({}, "slo.*states no limit"),
    ({"ttft": 1.0}, r"slo\.ttft.*ttft_s"),
    ({"ttft_s": 0}, r"slo\.ttft_s.*above 0"),
    ({"e2e_s": "fast"}, r"slo\.e2e_s.*number"),
]


@pytest.mark.parametrize(("slo", "problem"), LIMIT_MISTAKES)
def test_wrong_limits_are_one_clear_line(slo: dict[str, object], problem: str) -> None:
    """The deployment, the key and what is expected."""
    data: Any = pool_to_dict(shared_pool())
    data["deployments"][1]["slo"] = slo
    with pytest.raises(SpecError, match=r"deployments\[1\]\." + problem):
        pool_from_dict(data)


@pytest.mark.parametrize("slo", [SLO(), SLO(ttft_s=-1.0), SLO(tpot_multiple=2.0)])
def test_the_checker_sees_wrong_limits(slo: SLO) -> None:
    """Nothing stated, a negative time, and a multiple of a baseline that a pool has not."""
    pool = shared_pool()
    first, *others = pool.deployments
    [violation] = check_pool(replace(pool, deployments=(replace(first, slo=slo), *others)))
    assert first.name in violation
