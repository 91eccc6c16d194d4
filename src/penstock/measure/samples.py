"""Latency samples of a run: flat arrays per request, pooled gaps between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.measure.pooled import PooledSeconds
from penstock.measure.run import STATUS, Run
from penstock.spec.workload import SLO, SLOClass

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Per request ``[r]``: seconds, NaN where they are undefined, and what they count for.

    ``good`` requests finished within all their limits.
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


@dataclass(frozen=True)
class Gaps:
    """Gaps between iterations that ended in the window: all of them, and those between tokens.

    Both are the same object where the prompt's iteration yields a token.
    """

    iterations: PooledSeconds
    tokens: PooledSeconds


def collect(run: Run, classes: Sequence[SLOClass]) -> Samples:
    """Compute the samples of ``run`` and hold each request against the limits of its class."""
    table = run.requests
    # Without the published semantics the prompt iteration is itself the first token.
    first_token_step = 0 if run.first_iteration_is_token else 1
    first_s = _times_at(run, first_token_step)
    prompt_s = _times_at(run, 0)
    finished = table.status == STATUS.index("finished")
    last_s = np.where(finished, table.last_token_s, np.nan)
    ttft, e2e = first_s - table.arrival_s, last_s - table.arrival_s
    tokens = table.generated_tokens
    tpot = np.where(finished & (tokens > 1), (last_s - first_s) / np.maximum(tokens - 1, 1), np.nan)
    limits = _limits(run, classes)
    ttft_met = finished & _within(ttft, limits[:, 0])
    tpot_met = finished & _within(tpot, limits[:, 1])
    good = ttft_met & tpot_met & _within(e2e, limits[:, 3])
    if np.isfinite(limits[:, 2]).any():
        good &= _within(run.tokens.slowest_gaps_s(first_token_step), limits[:, 2])
    return Samples(
        ttft_s=ttft,
        tpot_s=tpot,
        e2e_s=e2e,
        queue_s=table.admitted_s - table.arrival_s,
        prompt_latency_s=prompt_s - table.arrival_s,
        arrived_in_window=_inside(run, table.arrival_s),
        admitted_in_window=_inside(run, table.admitted_s),
        prompt_in_window=_inside(run, prompt_s),
        first_token_in_window=_inside(run, first_s),
        finished_in_window=_inside(run, last_s),
        good=good,
        ttft_met=ttft_met,
        tpot_met=tpot_met,
    )


def pooled_gaps(run: Run) -> tuple[Gaps, ...]:
    """Gaps in the window of each class of ``run.class_names`` (of all requests without)."""
    return grouped_gaps(run, run.requests.class_index, max(1, len(run.class_names)))


def gaps_by_model(run: Run) -> tuple[tuple[Gaps, ...], tuple[Gaps, ...]]:
    """Gaps of each class, and of each model, of a run of several models."""
    assert run.requests.model_index is not None
    models = len(run.model_names)
    codes = run.requests.class_index.astype(np.int64) * models + run.requests.model_index
    pairs, group = np.unique(codes, return_inverse=True)
    each = grouped_gaps(run, group.astype(np.int16), max(1, len(pairs)))

    def together(of_pair: NDArray[np.int64], number: int) -> tuple[Gaps, ...]:
        return tuple(
            all_gaps([gaps for gaps, own in zip(each, of_pair, strict=False) if own == i])
            for i in range(number)
        )

    return together(pairs // models, max(1, len(run.class_names))), together(pairs % models, models)


def grouped_gaps(run: Run, group: NDArray[np.int16], groups: int) -> tuple[Gaps, ...]:
    """Gaps in the window of each group; ``group`` ``[r]`` holds the number of each request's."""
    found = []
    for _ in range(groups):
        iterations = PooledSeconds()
        same = run.first_iteration_is_token
        found.append(Gaps(iterations, iterations if same else PooledSeconds()))
    for block in run.tokens.gap_blocks(group):
        inside = _inside(run, block.end_s)
        for index, gaps in enumerate(found):
            own = inside & (block.class_index == index) if len(found) > 1 else inside
            gaps.iterations.add(block.seconds[own], block.count[own])
            if gaps.tokens is not gaps.iterations:
                own &= ~block.after_prompt
                gaps.tokens.add(block.seconds[own], block.count[own])
    return tuple(found)


def all_gaps(classes: Sequence[Gaps]) -> Gaps:
    """The gaps of all classes together."""
    if len(classes) == 1:
        return classes[0]
    iterations = PooledSeconds()
    same = all(gaps.tokens is gaps.iterations for gaps in classes)
    tokens = iterations if same else PooledSeconds()
    for gaps in classes:
        iterations.merge(gaps.iterations)
        if not same:
            tokens.merge(gaps.tokens)
    return Gaps(iterations, tokens)


def windowed_gaps_s(run: Run) -> Floats:
    """Every gap between iterations that ended in the window, as one array in no set order."""
    parts = [np.zeros(0)]
    for block in run.tokens.gap_blocks(run.requests.class_index):
        inside = _inside(run, block.end_s)
        parts.append(np.repeat(block.seconds[inside], block.count[inside]))
    return np.concatenate(parts)


def _inside(run: Run, seconds: Floats) -> Mask:
    start, end = run.window_s
    with np.errstate(invalid="ignore"):
        return (seconds >= start) & (seconds <= end)


def _times_at(run: Run, step: int) -> Floats:
    """Completion time of iteration ``step`` of each request; NaN where it never completed.

    A run that kept no iteration times falls back to the column of the request table.
    """
    return run.tokens.times_at(step) if run.tokens.kept else run.requests.first_token_s


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
    if slo.tpot_multiple is not None:
        raise SpecError(
            "a multiple of the baseline is not a time yet",
            key="tpot",
            value=f"{slo.tpot_multiple:g}x",
            fix='give a time such as "50 ms"',
        )
    values = (slo.ttft_s, slo.tpot_s, slo.itl_s, slo.e2e_s)
    return [np.inf if value is None else value for value in values]
