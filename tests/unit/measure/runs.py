"""Valid runs for tests: a factory by hand and a Hypothesis strategy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from penstock.measure.run import (
    STATUS,
    LinkTotals,
    NodeSeries,
    NodeTotals,
    RequestTable,
    Run,
    RunEvent,
    TokenTimes,
)


def run_of(
    requests: Sequence[tuple[float, int, Sequence[float], str]],
    *,
    window_s: tuple[float, float] = (0.0, 100.0),
    name: str = "run",
    header: dict[str, object] | None = None,
    class_index: Sequence[int] | None = None,
    class_names: tuple[str, ...] = (),
    first_iteration_is_token: bool = True,
    **more: object,
) -> Run:
    """Build a run from (arrival, prompt tokens, iteration times, status) rows."""
    n = len(requests)
    skip = 0 if first_iteration_is_token else 1
    times = [np.asarray(row[2], dtype=float) for row in requests]
    counts = [len(t) for t in times]
    generated = np.array([max(0, c - skip) for c in counts], dtype=np.int64)
    arrival = np.array([row[0] for row in requests], dtype=float)
    finished = np.array([row[3] == "finished" for row in requests], dtype=bool)
    return Run(
        name=name,
        header={"kind": "simulated", "seed": 0} if header is None else header,
        window_s=window_s,
        requests=RequestTable(
            id=np.arange(n, dtype=np.int64),
            arrival_s=arrival,
            admitted_s=np.array([a if c else np.nan for a, c in zip(arrival, counts, strict=True)]),
            first_token_s=np.array([t[0] if len(t) else np.nan for t in times]),
            last_token_s=np.array(
                [t[-1] if f and len(t) else np.nan for t, f in zip(times, finished, strict=True)]
            ),
            prompt_tokens=np.array([row[1] for row in requests], dtype=np.int64),
            output_tokens=np.where(finished, generated, generated + 1),
            generated_tokens=generated,
            status=np.array([STATUS.index(row[3]) for row in requests], dtype=np.int8),
            preemptions=np.zeros(n, dtype=np.int32),
            class_index=np.array(class_index if class_index is not None else [0] * n, np.int16),
            route_index=np.zeros(n, dtype=np.int32),
        ),
        tokens=TokenTimes(
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            times_s=np.concatenate([*times, np.zeros(0)]),
        ),
        class_names=class_names,
        first_iteration_is_token=first_iteration_is_token,
        **more,  # type: ignore[arg-type]
    )


def busy_run(
    name: str = "penstock",
    *,
    requests: int = 400,
    nodes: Sequence[str] = ("a100-0", "a100-1", "t4-0"),
    seed: int = 0,
    pace_s: float = 0.05,
    mean_tokens: int = 60,
    header: dict[str, object] | None = None,
) -> Run:
    """A plausible run of ``requests`` requests over 100 s, with node and link records."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0, 90, requests))
    rows = []
    for arrival in arrivals:
        tokens = int(rng.integers(2, 2 * mean_tokens))
        first = arrival + rng.gamma(2.0, 4 * pace_s)
        times = first + np.concatenate([[0.0], np.cumsum(rng.gamma(4.0, pace_s / 4, tokens - 1))])
        if rng.random() < 0.03:
            rows.append((float(arrival), 500, [], "rejected"))
        else:
            rows.append((float(arrival), int(rng.integers(10, 2000)), times.tolist(), "finished"))
    n = len(nodes)
    series = NodeSeries(
        names=tuple(nodes),
        bucket_s=1.0,
        start_s=0.0,
        busy=np.clip(rng.normal(0.6, 0.25, (100, n)), 0, 1),
        kv_use=np.clip(np.linspace(0, 0.9, 100)[:, None] * rng.uniform(0.6, 1, n), 0, 1),
        queued=rng.gamma(1.5, 2.0, (100, n)),
    )
    totals = NodeTotals(
        names=tuple(nodes),
        busy_s=series.busy.sum(axis=0),
        batches=rng.integers(100, 1000, n),
        prefill_tokens=rng.integers(1000, 9000, n),
        decode_tokens=rng.integers(1000, 9000, n),
        peak_kv_fraction=series.kv_use.max(axis=0),
        prompt_residence_s=rng.uniform(1, 100, n),
        prompt_visits=rng.integers(0, 100, n),
    )
    links = LinkTotals(("coordinator",), (nodes[0],), np.array([1.25]), np.array([1e9]))
    return run_of(
        rows,
        name=name,
        header=header,
        window_s=(10.0, 100.0),
        nodes=totals,
        node_series=series,
        links=links,
        events=(RunEvent(12.5, "fail", "t4-0"),),
        routes=(("coordinator", *nodes),),
        counters={"events": 1234},
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Small valid runs: ascending arrivals, ascending iteration times, every status."""
    gaps = st.floats(0, 5, allow_nan=False, allow_subnormal=False)
    n = draw(st.integers(0, 8))
    first_is_token = draw(st.booleans())
    rows = []
    clock = 0.0
    for _ in range(n):
        clock += draw(gaps)
        status = draw(st.sampled_from(STATUS))
        least = (1 if first_is_token else 2) if status == "finished" else 0
        most = 6 if status in {"finished", "running"} else 0
        steps = draw(st.lists(gaps, min_size=least, max_size=max(least, most)))
        times = (clock + np.cumsum(steps)).tolist()
        rows.append((clock, draw(st.integers(1, 4096)), times, status))
    names = draw(st.sampled_from([(), ("chat",), ("chat", "code")]))
    index = [draw(st.integers(0, max(0, len(names) - 1))) for _ in range(n)]
    start = draw(st.floats(0, 10))
    return run_of(
        rows,
        window_s=(start, start + draw(st.floats(0.5, 50))),
        class_index=index,
        class_names=names,
        first_iteration_is_token=first_is_token,
    )
