"""What the client saw of each request, and the run that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, nan

import numpy as np

from penstock import __version__
from penstock.errors import SpecError
from penstock.measure.fleet import measured_entries
from penstock.measure.loadgen.events import Stream
from penstock.measure.loadgen.sources import loop_of
from penstock.measure.run import STATUS, RequestTable, Run, Status, TokenTimes
from penstock.spec.workload import Request, Workload


def sent_workload(run: Run, workload: Workload, max_concurrency: int | None) -> Workload:
    """The workload as it was sent in ``run``, for a simulation of the same.

    Open-loop requests become a trace as long as the run; closed loops end with its window.
    """
    end_s = run.window_s[1]
    loop = loop_of(workload, max_concurrency)
    if loop is not None and workload.streams:
        raise SpecError(
            "nobody knows which models a closed loop of several would have asked",
            source=workload.source or workload.name,
            key="--max-concurrency",
            fix="leave it out, or predict without it",
        )
    if loop is not None:
        return replace(workload, arrivals=loop, trace=(), duration_s=end_s)
    seed = run.header.get("seed")
    requests = workload.requests(seed if isinstance(seed, int) else None)
    sent = tuple(islice(requests, len(run.requests.id)))
    return replace(workload, trace=sent, streams=(), duration_s=end_s)


@dataclass(slots=True)
class Outcome:
    """One request: when it was due and sent (seconds of the run), its tokens, how it ended."""

    request: Request
    sent_s: float = nan
    stream: Stream = field(default_factory=Stream)
    status: Status = "running"
    problem: str = ""


def measured_run(
    name: str,
    outcomes: Sequence[Outcome],
    workload: Workload,
    *,
    end_s: float,
    whole: bool,
    header: Mapping[str, object],
) -> Run:
    """Outcomes as a run, in order of arrival.

    The window starts after the warm-up and ends with the workload, as in a simulation; with
    ``end_s`` where the load was cut short (``whole`` False) or knows no end.
    """
    rows = sorted(outcomes, key=lambda one: (one.request.arrival_s, one.request.id))
    times = [one.stream.times_s() for one in rows]
    counts = [len(own) for own in times]
    prompts = [one.stream.prompt_tokens or one.request.prompt_tokens for one in rows]
    names = tuple(entry.name for entry in workload.classes)
    models = {stream.model: i for i, stream in enumerate(workload.streams)}
    asked = [models.setdefault(one.request.model, len(models)) for one in rows]
    index = {label: i for i, label in enumerate(names)}
    status = [one.status for one in rows]
    table = RequestTable(
        id=np.array([one.request.id for one in rows], np.int64),
        arrival_s=np.array([one.request.arrival_s for one in rows], np.float64),
        admitted_s=np.full(len(rows), nan),
        first_token_s=np.array([own[0] if own else nan for own in times], np.float64),
        last_token_s=np.array([own[-1] if own else nan for own in times], np.float64),
        prompt_tokens=np.array(prompts, np.int64),
        output_tokens=np.array([one.request.output_tokens for one in rows], np.int64),
        generated_tokens=np.array(counts, np.int64),
        status=np.array([STATUS.index(one) for one in status], np.int8),
        preemptions=np.zeros(len(rows), np.int32),
        class_index=np.array([index.get(one.request.class_name, 0) for one in rows], np.int16),
        route_index=np.full(len(rows), -1, np.int32),
        model_index=np.array(asked, np.int16) if len(models) > 1 else None,
    )
    until_s = workload.duration_s if whole and 0 < workload.duration_s < inf else end_s
    delays = [one.sent_s - one.request.arrival_s for one in rows if one.sent_s == one.sent_s]
    client = {
        "mean_send_delay_s": float(np.mean(delays)) if delays else 0.0,
        "max_send_delay_s": float(np.max(delays)) if delays else 0.0,
    }
    problems = sorted({one.problem for one in rows if one.problem})
    return Run(
        name=name,
        header={
            "kind": "measured",
            "version": __version__,
            "classes": measured_entries(workload.classes),
            **header,
            "client": client,
            "problems": problems[:10],
        },
        window_s=(workload.warmup_s, max(until_s, workload.warmup_s)),
        requests=table,
        tokens=TokenTimes(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array([at for own in times for at in own], np.float64),
        ),
        class_names=names,
        model_names=tuple(models) if len(models) > 1 else (),
        counters={one: status.count(one) for one in STATUS if one in status},
    )
