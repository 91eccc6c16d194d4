"""Engines on one machine slow each other down as much as the others are busy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.profile.profiling import CONFIG

from penstock import api
from penstock.measure.metrics import summarise
from penstock.plan.plan import Plan
from penstock.serve.local import LocalShape, local_plan
from penstock.spec.workload import Request, Workload

PROFILE = (
    "model: {name}\naccelerator: CPU\nsource: by hand\nbeside: 0.5\n"
    "host: {{fixed: 0 s}}\n"
    "decode:\n  - {{seqs: 1, context_tokens: 0, seconds: 10 ms}}\n"
    "prefill:\n  - {{tokens: 100, seconds: 10 ms}}\n"
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return local_plan(tmp_path, LocalShape(engines=2), kv_memory_bytes=64 << 20)


def tpot_s(plan: Plan, folder: Path, requests: int) -> float:
    """Seconds a token with ``requests`` that arrive at once and decode for 10 s alone."""
    profile = folder / "profile.yaml"
    profile.write_text(PROFILE.format(name=plan.model.name))
    trace = tuple(Request(i, 0.0, 100, 1000) for i in range(requests))
    run = api.simulate(plan, Workload("w", 0.0, trace=trace), router="round-robin", profile=profile)
    return summarise(run).overall.tpot.mean


def test_an_engine_alone_is_not_slowed_down(plan: Plan, tmp_path: Path) -> None:
    """An idle neighbour takes nothing."""
    assert tpot_s(plan, tmp_path, 1) == pytest.approx(0.010)


def test_two_busy_engines_slow_each_other_down(plan: Plan, tmp_path: Path) -> None:
    """Both are busy all the time, so each step takes half as long again."""
    assert tpot_s(plan, tmp_path, 2) == pytest.approx(0.015, rel=1e-3)
