"""The run that engines with batch schedulers leave behind, whoever drove them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from penstock import __version__
from penstock.measure.run import (
    LinkTotals,
    NodeTotals,
    RequestTable,
    Run,
    RunEvent,
    Status,
    TokenTimes,
)
from penstock.sim.engines.engine import EngineSim
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import CODE, EngineRecorder
from penstock.sim.engines.tokens import SpanTokenTimes
from penstock.spec.workload import Workload

_ENDS: tuple[Status, ...] = ("finished", "dropped", "rejected", "failed")


@dataclass(frozen=True)
class Ending:
    """How a run came to its end. ``now_s``: the last event; ``end_s``: where the clock stopped."""

    now_s: float
    end_s: float
    seed: int
    events: int
    header: Mapping[str, object] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    links: LinkTotals | None = None
    happened: tuple[RunEvent, ...] = ()


def engine_run(
    name: str,
    workload: Workload,
    recorder: EngineRecorder,
    engines: Sequence[EngineSim],
    ending: Ending,
    *,
    nodes: Sequence[str] | None = None,
) -> Run:
    """Gather what recorder and engines hold; token times are rebuilt when somebody asks.

    ``nodes`` names the node of the run that each engine belongs to, by default its own name:
    engines of the same name (one that was lost and came back) are one node.
    """
    table = recorder.table()
    places = [engine.spec.name for engine in engines] if nodes is None else list(nodes)
    return Run(
        name=name,
        header={
            "kind": "simulated",
            "version": __version__,
            "seed": ending.seed,
            "granularity": "engine",
            "workload": workload.name,
            **ending.header,
            "start_s": 0.0,
            "end_s": ending.now_s,
        },
        window_s=_window(workload, ending),
        requests=table,
        tokens=_token_times(table, engines),
        nodes=_totals(places, engines),
        links=ending.links,
        events=ending.happened,
        routes=tuple((engine.spec.name,) for engine in engines),
        class_names=tuple(entry.name for entry in workload.classes),
        model_names=recorder.model_names,
        counters={
            "events": ending.events,
            "requests": len(recorder),
            **{end: int(np.count_nonzero(table.status == CODE[end])) for end in _ENDS},
            "preemptions": int(table.preemptions.sum()),
            "batches": sum(engine.batches for engine in engines),
            "prefix_queried_tokens": sum(e.scheduler.blocks.queried_tokens for e in engines),
            "prefix_hit_tokens": sum(e.scheduler.blocks.hit_tokens for e in engines),
            **ending.counters,
        },
    )


def fleet_entry(specs: Iterable[EngineSpec]) -> dict[str, object]:
    """``header["fleet"]``: GPUs and dollars per hour; None where an engine has no price."""
    gpus, price = 0, 0.0
    known = True
    for spec in specs:
        gpus += spec.num_accelerators
        each = spec.price_per_hour
        known = known and each is not None
        price += each or 0.0
    return {"num_gpus": gpus, "price_per_hour": price if known else None}


def _window(workload: Workload, ending: Ending) -> tuple[float, float]:
    last_s = ending.end_s if ending.end_s < inf else ending.now_s
    until_s = workload.duration_s if 0 < workload.duration_s < inf else last_s
    if ending.end_s < inf:
        until_s = min(until_s, last_s)
    return workload.warmup_s, max(until_s, workload.warmup_s)


def _token_times(table: RequestTable, engines: Sequence[EngineSim]) -> TokenTimes:
    logged = [(engine.log, engine.timers[0]) for engine in engines if engine.log is not None]
    if not logged:
        return TokenTimes(np.zeros(len(table.id) + 1, np.int64), np.zeros(0))
    logs, timers = zip(*logged, strict=True)
    return SpanTokenTimes(table.first_token_s, logs, timers)


def _totals(places: Sequence[str], engines: Sequence[EngineSim]) -> NodeTotals:
    names = tuple(dict.fromkeys(places))
    number = {name: i for i, name in enumerate(names)}
    at = [number[name] for name in places]

    def seconds(figure: Callable[[EngineSim], float]) -> NDArray[np.float64]:
        found = np.zeros(len(names))
        for place, engine in zip(at, engines, strict=True):
            found[place] += figure(engine)
        return found

    def counts(figure: Callable[[EngineSim], int]) -> NDArray[np.int64]:
        found = np.zeros(len(names), np.int64)
        for place, engine in zip(at, engines, strict=True):
            found[place] += figure(engine)
        return found

    peaks = np.zeros(len(names))
    for place, engine in zip(at, engines, strict=True):
        peaks[place] = max(peaks[place], engine.scheduler.blocks.peak_fraction)
    return NodeTotals(
        names=names,
        busy_s=seconds(lambda engine: engine.busy_s),
        batches=counts(lambda engine: engine.batches),
        prefill_tokens=counts(lambda engine: engine.prefill_tokens),
        decode_tokens=counts(lambda engine: engine.decode_tokens),
        peak_kv_fraction=peaks,
        prompt_residence_s=seconds(lambda engine: engine.prompt_residence_s),
        prompt_visits=counts(lambda engine: engine.prompt_visits),
    )
