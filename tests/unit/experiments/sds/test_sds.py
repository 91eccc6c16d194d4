"""SDS: the full trace loses nothing and stays at the best split; bad files are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sim.disaggregated.test_roles import COST, engine

from penstock.errors import SpecError
from penstock.experiments.sds.reproduce import (
    EXP_FILE,
    policy_rows,
    pool_rows,
    reproduce_sds,
)
from penstock.experiments.system import Request
from penstock.policy.roles import Gpu, best_split, pool_throughput, rebalance
from penstock.sim.disaggregated.elastic import Pool, PoolChange, simulate_elastic
from penstock.sim.engines.options import EngineOptions
from penstock.spec.availability import PoolRole, read_availability, read_operations
from penstock.spec.workload import Request as Asked
from penstock.spec.workload import Workload

START: dict[int, PoolRole] = {0: "prefill", 1: "prefill", 2: "decode", 3: "decode"}


@pytest.mark.reference
def test_the_policy_stays_at_the_optimum(reference: Path) -> None:
    """Over the full trace the throughput is always the best; splits are the published ones."""
    rows = policy_rows(reference / "distserve")
    assert all(row.verdict in {"within", "better", "information"} for row in rows)


@pytest.mark.reference
def test_pools_agree(reference: Path) -> None:
    """The five published pools agree within 1 %."""
    assert {row.verdict for row in pool_rows(reference / "distserve")} == {"within"}


@pytest.mark.reference
def test_the_operations_lose_nothing_and_write_the_file(reference: Path, tmp_path: Path) -> None:
    """The published replay finishes every request and leaves ``distserve-2000-10.exp``."""
    request = Request(("operations",), output=tmp_path / "out")
    table = reproduce_sds(reference / "distserve", request)
    lost = [row for row in table.rows if row.metric == "requests lost"]
    assert [row.ours for row in lost] == [0, 0]
    assert "sds replays deepest SLO dip" in {plot.name for plot in table.plots}
    document = json.loads((tmp_path / "out" / EXP_FILE).read_text(encoding="utf-8"))
    assert len(document) == 2000
    assert all(len(one["token_timestamps"]) == one["output_len"] for one in document)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["prefill", "decode", None]), st.floats(0, 9e4))))
def test_rebalancing_reaches_the_best_split(gpus: list[tuple[PoolRole | None, float]]) -> None:
    """Whatever the pool looks like, everybody gets a role and the throughput is the best."""
    pool = [Gpu(i, role, age) for i, (role, age) in enumerate(gpus)]
    roles = rebalance(pool, 1.7)
    assert set(roles) == set(range(len(pool)))
    decode = sum(role == "decode" for role in roles.values())
    prefill = len(pool) - decode
    best = max((min(d, (len(pool) - d) / 1.7) for d in range(len(pool) + 1)), default=0.0)
    assert pool_throughput(prefill, decode, 1.7) == pytest.approx(best)


def test_newcomers_decode_and_old_ones_prefill() -> None:
    """When decodes are too many, the oldest become prefill engines."""
    pool = [Gpu(0, "prefill", 5.0), *(Gpu(i, "decode", 10.0 * i) for i in range(1, 5))]
    roles = rebalance(pool, 1.0)
    assert [gpu for gpu, role in roles.items() if role == "prefill"] == [0, 4, 3]
    assert best_split(1, 1.7) == (1, 0)


CHANGES = st.lists(
    st.tuples(
        st.floats(0.2, 6),
        st.sampled_from(["lose", "leave", "prefill", "decode"]),
        st.integers(0, 3),
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(CHANGES, st.booleans(), st.sampled_from([0.0, 0.7]))
def test_no_request_is_lost(
    changes: list[tuple[float, str, int]], rescue: bool, notice_s: float
) -> None:
    """Losses, departures and role changes in any order: every request gets all its tokens."""
    found = [
        PoolChange(
            at,
            (gpu,) if what == "lose" else (),
            (gpu,) if what == "leave" else (),
            {gpu: what} if what in {"prefill", "decode"} else {},  # type: ignore[dict-item]
        )
        for at, what, gpu in sorted(changes)
    ]
    # In the end there is somebody for both phases again.
    found.append(PoolChange(9.0, (0, 1), (), {}))
    found.append(PoolChange(10.0, (), (), {0: "prefill", 1: "decode"}))
    requests = [Asked(i, 0.1 * i, 50 + 90 * (i % 7), 1 + 13 * (i % 9)) for i in range(60)]
    pool = Pool(
        engine("pattern", "both", 300),
        START,
        tuple(found),
        drain_s=1.0,
        notice_s=notice_s,
        kv_rescue=rescue,
    )
    workload = Workload("test", 0.0, trace=tuple(requests))
    run = simulate_elastic(pool, workload, COST, EngineOptions()).run
    assert run.counters["finished"] == len(requests)
    np.testing.assert_array_equal(np.diff(run.tokens.offsets), run.requests.output_tokens)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"timestamp": 1, "operation": "drop", "params": [1]}], "unknown operation"),
        ([{"timestamp": 1, "operation": "remove", "params": [9]}], "is not there"),
        ([{"timestamp": 1, "operation": "add", "params": ["context", 0]}], "is there already"),
        ([{"timestamp": 1, "operation": "add", "params": ["cook", 7]}], "unknown role"),
        (
            [{"timestamp": 1, "operation": "change", "params": ["decoding", 0, "context", 0]}],
            "has the role prefill",
        ),
        (
            [{"timestamp": 1, "operation": "change", "params": ["context", 0, "decoding", 1]}],
            "not its number",
        ),
        ([{"timestamp": -1, "operation": "remove", "params": [0]}], "seconds from 0 on"),
        ({"timestamp": 1}, "JSON list"),
    ],
)
def test_impossible_operations_are_named(tmp_path: Path, entries: object, message: str) -> None:
    """Each impossible operation is one line that names the file."""
    path = tmp_path / "ops.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(SpecError, match=message) as error:
        read_operations(path, START)
    assert "ops.json" in str(error.value)


def test_mangled_traces_are_named(tmp_path: Path) -> None:
    """Times that go back, rows of another shape and GPUs lost twice are refused."""
    path = tmp_path / "trace.csv"
    for text, message in (
        ("2000,add,a\n1000,add,b\n", "goes back in time"),
        ("2000,add\n", "milliseconds"),
        ("0,add,a\n5,remove,a\n9,remove,a\n", "was not there"),
        ("", "no event"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match=message):
            read_availability(path)
