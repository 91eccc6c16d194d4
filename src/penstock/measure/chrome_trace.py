"""A run as a Chrome trace: open it at ui.perfetto.dev or chrome://tracing.

Trace Event Format (JSON object form): complete events (``ph`` X) with ``ts`` and ``dur`` in
microseconds, counters (C) and names (M). Requests share as few lanes as keep them apart.
"""

from __future__ import annotations

import heapq
import json
import math
from pathlib import Path

from penstock.measure.run import STATUS, Run
from penstock.storage import write_text

_REQUESTS, _NODES, _SYSTEM = 1, 2, 3


def chrome_trace(run: Run) -> dict[str, object]:
    """Return the trace document: queued, prefill and decode of each request, node counters."""
    events: list[dict[str, object]] = [
        _name(_REQUESTS, "Requests"),
        _name(_NODES, "Nodes"),
        _name(_SYSTEM, "System"),
    ]
    events += _request_events(run)
    events += _node_counters(run)
    events += [
        {
            "name": f"{event.kind}: {event.detail}",
            "ph": "i",
            "s": "g",
            "pid": _SYSTEM,
            "tid": 0,
            "ts": _us(event.time_s),
        }
        for event in run.events
    ]
    return {
        "displayTimeUnit": "ms",
        "otherData": {"run": run.name, "window_s": list(run.window_s)},
        "traceEvents": events,
    }


def write_chrome_trace(run: Run, path: Path) -> None:
    """Write ``chrome_trace(run)`` to ``path``, whole or not at all."""
    write_text(path, json.dumps(chrome_trace(run), separators=(",", ":"), allow_nan=False) + "\n")


def _request_events(run: Run) -> list[dict[str, object]]:
    table, offsets, times = run.requests, run.tokens.offsets, run.tokens.times_s
    events: list[dict[str, object]] = []
    free: list[tuple[float, int]] = []
    lanes = 0
    for i in sorted(range(len(table.id)), key=lambda i: (float(table.arrival_s[i]), i)):
        own = times[offsets[i] : offsets[i + 1]]
        arrival = float(table.arrival_s[i])
        first, last = (float(own[0]), float(own[-1])) if len(own) else (math.nan, math.nan)
        admitted = float(table.admitted_s[i])
        if not math.isfinite(admitted):
            admitted = arrival
        end = last if math.isfinite(last) else admitted
        if free and free[0][0] <= arrival:
            lane = heapq.heappop(free)[1]
        else:
            lane, lanes = lanes, lanes + 1
        heapq.heappush(free, (end, lane))
        about: dict[str, object] = {
            "request": int(table.id[i]),
            "prompt_tokens": int(table.prompt_tokens[i]),
            "output_tokens": int(table.generated_tokens[i]),
            "status": STATUS[int(table.status[i])],
            "preemptions": int(table.preemptions[i]),
        }
        route = int(table.route_index[i])
        if 0 <= route < len(run.routes):
            about["route"] = " > ".join(run.routes[route])
        phases = [("queued", arrival, admitted), ("prefill", admitted, first)]
        phases.append(("decode", first, last))
        events += [
            {
                "name": name,
                "cat": "request",
                "ph": "X",
                "pid": _REQUESTS,
                "tid": lane,
                "ts": _us(begin),
                "dur": _us(finish - begin),
                "args": about,
            }
            for name, begin, finish in phases
            if finish > begin
        ]
    return events


def _node_counters(run: Run) -> list[dict[str, object]]:
    series = run.node_series
    if series is None:
        return []
    return [
        {
            "name": name,
            "ph": "C",
            "pid": _NODES,
            "ts": _us(series.start_s + b * series.bucket_s),
            "args": {
                "busy": _finite(series.busy[b, n]),
                "kv_use": _finite(series.kv_use[b, n]),
                "queued": _finite(series.queued[b, n]),
            },
        }
        for n, name in enumerate(series.names)
        for b in range(len(series.busy))
    ]


def _name(process: int, name: str) -> dict[str, object]:
    return {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _finite(value: float) -> float:
    return round(float(value), 4) if math.isfinite(value) else 0.0
