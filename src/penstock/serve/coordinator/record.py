"""What happened, in the one run schema: measured runs look like simulated ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock import __version__
from penstock.measure.run import STATUS, NodeTotals, RequestTable, Run, RunEvent, Status, TokenTimes
from penstock.serve.coordinator.live import Live
from penstock.serve.protocol import EngineStatus

_STATUS: Mapping[str, Status] = {
    "stop": "finished",
    "length": "finished",
    "abort": "dropped",
    "error": "failed",
}


class Ledger:
    """Collects requests that are over. ``start_s`` is the clock at the start of the run."""

    def __init__(self, start_s: float, class_names: Sequence[str], *, keep: bool) -> None:
        self.start_s = start_s
        self.class_names = tuple(class_names)
        self.rows: list[Live] = []
        self._keep = keep
        self.events: list[RunEvent] = []
        self.counts: dict[str, int] = dict.fromkeys(("finished", "dropped", "failed"), 0)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.preemptions = 0

    def ended(self, live: Live) -> None:
        """Book a request whose ``finish_reason`` is set."""
        self.counts[_STATUS[live.finish_reason or "error"]] += 1
        self.prompt_tokens += live.prompt_tokens
        self.generated_tokens += live.output_tokens
        self.preemptions += live.preemptions
        if self._keep:
            self.rows.append(live)

    def note(self, now: float, kind: str, detail: str) -> None:
        self.events.append(RunEvent(now - self.start_s, kind, detail))

    def run(
        self,
        name: str,
        header: Mapping[str, object],
        engines: Sequence[EngineStatus],
        now: float,
    ) -> Run:
        """Everything recorded so far."""
        return recorded(name, header, (Part("", self, tuple(engines)),), now)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one of several models did; ``model`` is "" where there is one only."""

    model: str
    ledger: Ledger
    engines: tuple[EngineStatus, ...]


def recorded(
    name: str,
    header: Mapping[str, object],
    parts: Sequence[Part],
    now: float,
    start_s: float | None = None,
) -> Run:
    """One run of all ``parts``, at least one; their classes are in the same places.

    It begins with the first ledger or at ``start_s``. Requests of several models are numbered
    anew, in order of arrival.
    """
    start = parts[0].ledger.start_s if start_s is None else start_s
    models = list(dict.fromkeys(part.model for part in parts))
    owned = [
        (live.arrival_s, models.index(part.model), live.row, live)
        for part in parts
        for live in part.ledger.rows
    ]
    # One model's requests are in order of their rows already.
    owned.sort(key=lambda one: one[:3] if len(models) > 1 else one[2:3])
    rows = [live for *_, live in owned]
    asked = [model for _, model, _, _ in owned]
    engines = [engine for part in parts for engine in part.engines]
    counts = [len(live.token_s) for live in rows]
    places = [engine.name for engine in engines]
    places += sorted({live.place for live in rows} - set(places))
    several = len(models) > 1
    table = RequestTable(
        id=_ints(list(range(len(rows))) if several else [live.row for live in rows]),
        arrival_s=_times([live.arrival_s for live in rows], start),
        admitted_s=_times([live.admitted_s for live in rows], start),
        first_token_s=_times([live.first_token_s for live in rows], start),
        last_token_s=_times([live.last_token_s for live in rows], start),
        prompt_tokens=_ints([live.prompt_tokens for live in rows]),
        output_tokens=_ints([live.request.params.max_tokens for live in rows]),
        generated_tokens=_ints(counts),
        status=np.array(
            [STATUS.index(_STATUS[live.finish_reason or "error"]) for live in rows], np.int8
        ),
        preemptions=np.array([live.preemptions + live.attempts for live in rows], np.int32),
        class_index=np.array([live.class_index for live in rows], np.int16),
        route_index=np.array([places.index(live.place) for live in rows], np.int32),
        model_index=np.array(asked, np.int16) if several else None,
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = [time for live in rows for time in live.token_s]
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update({**part.ledger.counts, "preemptions": part.ledger.preemptions})
    return Run(
        name=name,
        header={"kind": "measured", "version": __version__, **header},
        window_s=(0.0, now - start),
        requests=table,
        tokens=TokenTimes(offsets, _times(times, start)),
        nodes=_nodes(engines, now - start),
        events=_events(parts, start),
        routes=tuple((place,) for place in places),
        # Models that came later may have brought classes, after those that were there.
        class_names=max((part.ledger.class_names for part in parts), key=len),
        model_names=tuple(models) if several else (),
        counters=dict(totals),
    )


def _nodes(engines: Sequence[EngineStatus], seconds: float) -> NodeTotals:
    zeros = np.zeros(len(engines))
    return NodeTotals(
        names=tuple(engine.name for engine in engines),
        busy_s=np.array([engine.busy_share * seconds for engine in engines]),
        batches=zeros.astype(np.int64),
        prefill_tokens=_ints([engine.prompt_tokens for engine in engines]),
        decode_tokens=_ints([engine.generation_tokens for engine in engines]),
        peak_kv_fraction=zeros,
        prompt_residence_s=zeros,
        prompt_visits=zeros.astype(np.int64),
    )


def _events(parts: Sequence[Part], start_s: float) -> tuple[RunEvent, ...]:
    """Of all parts, in order of time."""
    found = [
        RunEvent(event.time_s + part.ledger.start_s - start_s, event.kind, event.detail)
        for part in parts
        for event in part.ledger.events
    ]
    return tuple(sorted(found, key=lambda event: event.time_s))


def _ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _times(values: Sequence[float], start_s: float) -> NDArray[np.float64]:
    return np.array(values, np.float64) - start_s
