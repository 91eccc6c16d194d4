"""Pool plans from files, through the verb ``simulate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.plan.pools import shared_pool

from penstock import api
from penstock.errors import SpecError
from penstock.measure.metrics import summarise
from penstock.plan.pool_document import write_pool
from penstock.spec.workload import SLO, Request, SLOClass, Workload

REQUESTS = tuple(Request(i, 0.1 * i, 50, 5, "all", "chat" if i % 2 else "code") for i in range(20))
WORKLOAD = Workload("two", 2.0, trace=REQUESTS, classes=(SLOClass("all", SLO(e2e_s=9.0)),))


def test_a_pool_runs_from_its_file_as_from_its_value(tmp_path: Path) -> None:
    """All requests of both models are served, and the run knows its limits and its pool."""
    path = tmp_path / "pool.yaml"
    write_pool(path, shared_pool())
    runs = [api.simulate(path, WORKLOAD), api.simulate(shared_pool(), WORKLOAD)]
    for run in runs:
        assert run.model_names == ("chat", "code")
        assert run.counters["finished"] == 20
        assert summarise(run).overall.slo_attainment == 1.0
    assert runs[0].header["pool"] == runs[1].header["pool"]
    assert (runs[0].tokens.times_s == runs[1].tokens.times_s).all()


def test_what_only_one_model_knows_is_refused() -> None:
    """A flag of plans of one model, and traffic for none of the pool's models, in one line."""
    with pytest.raises(SpecError, match="--router"):
        api.simulate(shared_pool(), WORKLOAD, router="round-robin")
    with pytest.raises(SpecError, match="none of the models of the pool"):
        api.simulate(shared_pool(), Workload("other", 2.0, trace=(Request(0, 0.0, 5, 5),)))
    relative = (SLOClass("all", SLO(tpot_multiple=1.5)),)
    with pytest.raises(SpecError, match="multiple of the baseline"):
        api.simulate(shared_pool(), Workload("two", 2.0, trace=REQUESTS, classes=relative))


def test_limits_of_the_pool_hold_where_the_workload_states_none(tmp_path: Path) -> None:
    """Of two models with limits in the plan one has limits in the workload too: these hold."""
    pool = shared_pool()
    never, always = SLO(e2e_s=1e-6), SLO(e2e_s=900.0)
    entries = tuple(replace(entry, slo=never) for entry in pool.deployments)
    write_pool(tmp_path / "pool.yaml", replace(pool, deployments=entries))
    requests = tuple(replace(request, class_name=request.model) for request in REQUESTS)
    classes = (SLOClass("chat", SLO()), SLOClass("code", always))
    workload = Workload("two", 2.0, trace=requests, classes=classes)
    run = api.simulate(tmp_path / "pool.yaml", workload)
    shares = {group.name: group.slo_attainment for group in summarise(run).models}
    assert shares == {"chat": 0.0, "code": 1.0}
