"""Latency samples of a run as flat arrays, with the masks that say which count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.measure.run import STATUS, Run
from penstock.spec.workload import SLO, SLOClass

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Per request ``[r]``, per iteration ``[i]`` and per gap between iterations ``[i - 1]``.

    Seconds are NaN where they are undefined. ``good`` requests finished within all their limits.
    """

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    queue_s: Floats
    prompt_latency_s: Floats
    arrived_in_window: Mask
    admitted_in_window: Mask
    prompt_in_window: Mask
    first_token_in_window: Mask
    finished_in_window: Mask
    good: Mask
    ttft_met: Mask
    tpot_met: Mask
    owner: Indices
    is_prompt: Mask
    is_token: Mask
    iteration_in_window: Mask
    gap_s: Floats
    gap_owner: Indices
    gap_is_itl: Mask
    gap_in_window: Mask


def collect(run: Run, classes: Sequence[SLOClass]) -> Samples:
    """Compute the samples of ``run`` and hold each request against the limits of its class."""
    table, times, offsets = run.requests, run.tokens.times_s, run.tokens.offsets
    requests, iterations = len(table.id), len(times)
    start, end = run.window_s

    def inside(seconds: Floats) -> Mask:
        with np.errstate(invalid="ignore"):
            return (seconds >= start) & (seconds <= end)

    owner = np.repeat(np.arange(requests), np.diff(offsets))
    step = np.arange(iterations) - offsets[owner] if iterations else np.zeros(0, dtype=np.int64)
    is_prompt = step == 0
    # Without the published semantics the prompt iteration is itself the first token.
    first_token_step = 0 if run.first_iteration_is_token else 1
    first_s = _times_at(run, first_token_step, table.first_token_s)
    prompt_s = _times_at(run, 0, table.first_token_s)
    finished = table.status == STATUS.index("finished")
    last_s = np.where(finished, table.last_token_s, np.nan)
    ttft, e2e = first_s - table.arrival_s, last_s - table.arrival_s
    tokens = table.generated_tokens
    tpot = np.where(finished & (tokens > 1), (last_s - first_s) / np.maximum(tokens - 1, 1), np.nan)
    gap_owner = owner[1:]
    same = ~is_prompt[1:]
    gap = np.diff(times) if iterations else np.zeros(0)
    gap_is_itl = same & (step[1:] > first_token_step)
    slowest = np.zeros(requests)
    np.maximum.at(slowest, gap_owner[gap_is_itl], gap[gap_is_itl])
    limits = _limits(run, classes)
    ttft_met = finished & _within(ttft, limits[:, 0])
    tpot_met = finished & _within(tpot, limits[:, 1])
    return Samples(
        ttft_s=ttft,
        tpot_s=tpot,
        e2e_s=e2e,
        queue_s=table.admitted_s - table.arrival_s,
        prompt_latency_s=prompt_s - table.arrival_s,
        arrived_in_window=inside(table.arrival_s),
        admitted_in_window=inside(table.admitted_s),
        prompt_in_window=inside(prompt_s),
        first_token_in_window=inside(first_s),
        finished_in_window=inside(last_s),
        good=ttft_met & tpot_met & _within(slowest, limits[:, 2]) & _within(e2e, limits[:, 3]),
        ttft_met=ttft_met,
        tpot_met=tpot_met,
        owner=owner,
        is_prompt=is_prompt,
        is_token=step >= first_token_step,
        iteration_in_window=inside(times),
        gap_s=gap,
        gap_owner=gap_owner,
        gap_is_itl=gap_is_itl,
        gap_in_window=same & inside(times[1:]),
    )


def _times_at(run: Run, step: int, otherwise: Floats) -> Floats:
    """Completion time of iteration ``step`` of each request; NaN where it never completed.

    A run that kept no iteration times falls back to the column of the request table.
    """
    offsets, times = run.tokens.offsets, run.tokens.times_s
    if len(times) == 0:
        return otherwise
    has = np.diff(offsets) > step
    result = np.full(len(has), np.nan)
    result[has] = times[offsets[:-1][has] + step]
    return result


def _within(seconds: Floats, limit: Floats) -> Mask:
    """Whether each value meets its limit; an undefined value (one token has no TPOT) does."""
    with np.errstate(invalid="ignore"):
        return ~(seconds > limit)


def _limits(run: Run, classes: Sequence[SLOClass]) -> Floats:
    """``[r, 4]`` limits (ttft, tpot, itl, e2e) of each request; inf = none."""
    limits = np.full((len(run.requests.id), 4), np.inf)
    if len(classes) == 1 and not any(name == classes[0].name for name in run.class_names):
        limits[:] = _row(classes[0].slo)
        return limits
    by_name = {entry.name: _row(entry.slo) for entry in classes}
    for i, name in enumerate(run.class_names):
        if name in by_name:
            limits[run.requests.class_index == i] = by_name[name]
    return limits


def _row(slo: SLO) -> list[float]:
    values = (slo.ttft_s, slo.tpot_s, slo.itl_s, slo.e2e_s)
    return [np.inf if value is None else value for value in values]
