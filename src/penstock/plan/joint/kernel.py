"""Replay of a pool's requests with continuous batching, request by request (the compiled leaf).

A group of p pipeline stages is p lanes: batches in flight that each take a step through all stages.
A request joins the model's engine with fewest requests, and there the lane with fewest. A lane
serves one engine at a time, the one the rule of turns puts first; engines that the rule puts
level share the lane step by step. A prompt holds up the decodes of the other lanes.

Between events the decodes of a lane move together: k steps of n sequences take
``k * (fixed[n] + slope[n] * context) + slope[n] * n * k^2 / 2`` seconds, so that a request costs a
few steps of arithmetic whatever its length. Prompts run first, in batches up to a budget; a request
enters when its whole KV memory is free, so that nothing is preempted.

Everything here runs unchanged as plain Python; ``compiled_replay`` gives the Numba form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf, sqrt
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import register_jitable

from penstock.plan.joint.state import (
    CHUNK_TOKENS,
    EARLIEST_DEADLINE,
    FIRST_COME,
    HAIR,
    LATE_S,
    MAX_SEQS,
    NO_LIMIT,
    TICK_S,
    Engines,
    Floats,
    Requests,
    State,
    Steps,
)

F = TypeVar("F", bound=Callable[..., object])


def leaf(function: F) -> F:
    """Let compiled code call ``function``; calls from Python stay plain Python."""
    jitable: Callable[[F], F] = register_jitable(forceinline=True)
    return jitable(function)


@leaf
def _empty(requests: int, e: Engines) -> State:
    groups = len(e.lanes)
    of_group = np.zeros(groups + 1, np.int64)
    for g in range(groups):
        of_group[g + 1] = of_group[g] + e.lanes[g]
    lanes = of_group[groups]
    lane_group = np.zeros(lanes, np.int64)
    bucket = np.zeros(lanes, np.int64)
    buckets = 0
    for g in range(groups):
        for lane in range(of_group[g], of_group[g + 1]):
            lane_group[lane] = g
            bucket[lane] = buckets
            buckets += e.begin[g + 1] - e.begin[g]
    return State(
        np.zeros(lanes),
        lane_group,
        bucket,
        np.zeros(lanes, np.int64),
        np.zeros(buckets, np.int64),
        np.zeros(buckets, np.int64),
        np.zeros(buckets),
        np.zeros(buckets),
        np.full(buckets, inf),
        np.full(buckets, inf),
        np.full(buckets, NO_LIMIT),
        np.full(buckets, -1, np.int64),
        np.full(buckets, -1, np.int64),
        np.zeros((buckets, MAX_SEQS), np.int64),
        np.zeros(len(e.group), np.int64),
        np.zeros(len(e.group), np.int64),
        np.full(requests, -1, np.int64),
        np.zeros(requests),
        of_group,
        np.zeros(groups),
    )


@leaf
def _prefill_s(steps: Steps, row: int, tokens: float) -> float:
    """Seconds of a prompt of ``tokens``, between the points of the grid; a line beyond the last."""
    grid = steps.grid
    i = 1
    while i < len(grid) - 1 and grid[i] < tokens:
        i += 1
    low, high = steps.prefill[row, i - 1], steps.prefill[row, i]
    return float(low + (high - low) * (tokens - grid[i - 1]) / (grid[i] - grid[i - 1]))


@leaf
def _enters(r: Requests, e: Engines, s: State, engine: int, b: int) -> bool:
    """Whether the head of the queue of ``b`` has room now."""
    if s.head[b] < 0 or s.running[b] >= MAX_SEQS:
        return False
    i = s.head[b]
    return bool(s.used[engine] + r.prompt[i] + r.output[i] <= e.kv[engine])


@leaf
def _end_some(
    now: float, engine: int, lane: int, b: int, r: Requests, s: State, finish: Floats
) -> None:
    """Finish what has reached its last token; find the next end and the most urgent deadline."""
    at = 0
    next_end = inf
    s.pace[b] = NO_LIMIT
    while at < s.running[b]:
        i = s.seqs[b, at]
        if s.end[i] <= s.tick[b] + HAIR:
            finish[i] = now
            s.running[b] -= 1
            s.seqs[b, at] = s.seqs[b, s.running[b]]
            s.context[b] -= r.prompt[i] + r.output[i]
            s.used[engine] -= r.prompt[i] + r.output[i]
            s.outstanding[engine] -= 1
            s.held[lane] -= 1
        else:
            next_end = min(next_end, s.end[i])
            s.pace[b] = min(s.pace[b], r.tpot[i])
            at += 1
    if s.running[b] == 0:
        s.context[b] = 0.0
    s.next_end[b] = next_end
    s.urgent[b] = _urgent(now, b, r, s)


@leaf
def _urgent(now: float, b: int, r: Requests, s: State) -> float:
    """The next deadline that can still be met; those that cannot come after all others."""
    live = late = inf
    i = s.head[b]
    for _ in range(min(s.waiting[b], MAX_SEQS)):
        live, late = _nearer(now, r.deadline[i], live, late)
        if live < inf:
            break
        i = s.following[i]
    for at in range(s.running[b]):
        live, late = _nearer(now, r.later[s.seqs[b, at]], live, late)
    return live if live < inf or late == inf else LATE_S + late


@leaf
def _nearer(now: float, deadline: float, live: float, late: float) -> tuple[float, float]:
    if deadline < now:
        return live, min(late, deadline)
    return min(live, deadline), late


@leaf
def _prompts(
    engine: int,
    lane: int,
    b: int,
    r: Requests,
    steps: Steps,
    e: Engines,
    s: State,
    first: Floats,
    finish: Floats,
) -> None:
    """One step with the prompts that wait, up to the budget; decodes of the engine join it."""
    row, before = e.row[engine], s.running[b]
    tokens = 0
    while _enters(r, e, s, engine, b):
        i = s.head[b]
        if tokens and tokens + r.prompt[i] + before > CHUNK_TOKENS:
            break
        tokens += r.prompt[i]
        s.head[b] = s.following[i]
        if s.head[b] < 0:
            s.tail[b] = -1
        s.waiting[b] -= 1
        s.used[engine] += r.prompt[i] + r.output[i]
        s.seqs[b, s.running[b]] = i
        s.running[b] += 1
    seconds = _prefill_s(steps, row, float(tokens + before))
    seconds += steps.slope[row, before] * s.context[b]
    rounds = max(1, -(-tokens // CHUNK_TOKENS))
    now = s.clock[lane] + seconds
    s.clock[lane] = now
    g = s.lane_group[lane]
    s.busy[g] += seconds
    for other in range(s.of_group[g], s.of_group[g + 1]):
        # Decodes queue behind a prompt at every stage: one round for all of its way.
        if other != lane and _decodes(other, e, s):
            s.clock[other] += seconds
    s.tick[b] += rounds
    s.context[b] += rounds * before
    for at in range(before, s.running[b]):
        i = s.seqs[b, at]
        first[i] = now
        s.end[i] = s.tick[b] + r.output[i] - 1
        s.context[b] += r.prompt[i] + 1
    _end_some(now, engine, lane, b, r, s, finish)


@leaf
def _decodes(lane: int, e: Engines, s: State) -> bool:
    g, base = s.lane_group[lane], s.bucket[lane]
    for j in range(e.begin[g + 1] - e.begin[g]):
        if s.running[base + j]:
            return True
    return False


@leaf
def _segment(
    lane: int,
    until: float,
    r: Requests,
    steps: Steps,
    e: Engines,
    s: State,
    rule: int,
    first: Floats,
    finish: Floats,
) -> bool:
    """Serve ``lane`` up to its next event or ``until``; False where it has nothing to do."""
    now, g, base = s.clock[lane], s.lane_group[lane], s.bucket[lane]
    begin, end = e.begin[g], e.begin[g + 1]
    wake = best = inf
    priority = 0
    found = paced = False
    for j in range(end - begin):
        b, one = base + j, e.members[begin + j]
        if s.running[b] == 0 and s.head[b] < 0:
            continue
        if e.ready[one] > now:
            wake = min(wake, e.ready[one])
            continue
        if s.running[b] == 0 and not _enters(r, e, s, one, b):
            continue
        key = _key(rule, now, b, r, s)
        level = e.priority[one]
        if not found or level > priority or (level == priority and key < best):
            found, best, priority = True, key, level
            paced = rule == EARLIEST_DEADLINE and s.pace[b] < NO_LIMIT and key >= now + s.pace[b]
    if not found:
        s.clock[lane] = max(now, min(wake, until)) if min(wake, until) < inf else now
        return wake < until
    chosen, oldest = -1, inf
    rate = growth = 0.0
    most = inf
    if rule == EARLIEST_DEADLINE and not paced and now < best < until:
        until = best
    for j in range(end - begin):
        b, one = base + j, e.members[begin + j]
        runs = e.ready[one] <= now and e.priority[one] == priority
        if not runs or (s.running[b] == 0 and not _enters(r, e, s, one, b)):
            continue
        if not _level(rule, now, b, best, paced, r, s):
            # Its turn comes when its deadline is nearer than the next token of the others.
            if paced and now < s.urgent[b] - (best - now) + TICK_S < until:
                until = s.urgent[b] - (best - now) + TICK_S
            continue
        if _enters(r, e, s, one, b):
            if r.arrival[s.head[b]] < oldest:
                oldest, chosen = r.arrival[s.head[b]], j
        elif s.running[b]:
            row, n = e.row[one], s.running[b]
            rate += steps.fixed[row, n] + steps.slope[row, n] * s.context[b]
            growth += steps.slope[row, n] * n
            most = min(most, s.next_end[b] - s.tick[b])
    if chosen >= 0:
        _prompts(e.members[begin + chosen], lane, base + chosen, r, steps, e, s, first, finish)
        return True
    count, seconds = most, rate * most + growth * most * most / 2
    if now + seconds > until:
        seconds = until - now
        if growth * seconds > 1e-9 * rate:
            count = (sqrt(rate * rate + 2 * growth * seconds) - rate) / growth
        else:
            count = seconds / rate
    s.clock[lane] = now + seconds
    s.busy[g] += seconds
    for j in range(end - begin):
        b, one = base + j, e.members[begin + j]
        if s.running[b] == 0 or e.ready[one] > now or e.priority[one] != priority:
            continue
        if not _level(rule, now, b, best, paced, r, s):
            continue
        s.tick[b] += count
        s.context[b] += count * s.running[b]
        if s.next_end[b] <= s.tick[b] + HAIR:
            _end_some(s.clock[lane], one, lane, b, r, s, finish)
    return True


@leaf
def _key(rule: int, now: float, b: int, r: Requests, s: State) -> float:
    """What the rule of turns puts in order: least first."""
    if rule == EARLIEST_DEADLINE:
        if s.urgent[b] < now:
            s.urgent[b] = _urgent(now, b, r, s)
        pace = now + s.pace[b] if s.running[b] else inf
        return float(min(s.urgent[b], pace))
    if rule == FIRST_COME:
        oldest = r.arrival[s.head[b]] if s.head[b] >= 0 else inf
        for at in range(s.running[b]):
            oldest = min(oldest, r.arrival[s.seqs[b, at]])
        return float(oldest)
    return 0.0


@leaf
def _level(rule: int, now: float, b: int, best: float, paced: bool, r: Requests, s: State) -> bool:
    """Whether ``b`` shares turns with the first: paced engines take them step by step."""
    if paced:
        return bool(s.running[b] and s.pace[b] < NO_LIMIT)
    return _key(rule, now, b, r, s) <= best


@leaf
def _estimate(
    i: int,
    engine: int,
    lane: int,
    b: int,
    r: Requests,
    steps: Steps,
    e: Engines,
    s: State,
    rule: int,
) -> float:
    """When request ``i`` would end: prompts ahead, engines that go first, then its own tokens."""
    row, n = e.row[engine], min(s.running[b] + s.waiting[b] + 1, MAX_SEQS)
    context = s.context[b] + r.prompt[i] + r.output[i] / 2
    time = max(r.arrival[i], s.clock[lane])
    time += (s.waiting[b] + 1) * _prefill_s(steps, row, float(r.prompt[i]))
    time += (r.output[i] - 1) * (steps.fixed[row, n] + steps.slope[row, n] * context)
    g, base = s.lane_group[lane], s.bucket[lane]
    for j in range(e.begin[g + 1] - e.begin[g]):
        other = base + j
        if other == b or (rule == EARLIEST_DEADLINE and s.urgent[other] > r.deadline[i]):
            continue
        row, n = e.row[e.members[e.begin[g] + j]], s.running[other]
        if s.head[other] >= 0:
            time += s.waiting[other] * _prefill_s(steps, row, float(r.prompt[s.head[other]]))
        if n:
            step_s = steps.fixed[row, n] + steps.slope[row, n] * s.context[other]
            time += (s.next_end[other] - s.tick[other]) * step_s
    return float(time)


@leaf
def _engine_for(i: int, r: Requests, e: Engines, s: State) -> int:
    """The loaded engine with fewest requests, or the next to be loaded; -1 where none has room."""
    m, now = r.model[i], r.arrival[i]
    chosen = -1
    for one in range(e.first[m], e.first[m + 1]):
        if r.prompt[i] + r.output[i] > e.kv[one]:
            continue
        if chosen < 0:
            chosen = one
            continue
        wait, least = max(0.0, e.ready[one] - now), max(0.0, e.ready[chosen] - now)
        fewer = s.outstanding[one] < s.outstanding[chosen]
        if wait < least or (wait == least and fewer):
            chosen = one
    return chosen


@leaf
def _add(i: int, engine: int, lane: int, b: int, r: Requests, s: State) -> None:
    if s.head[b] < 0:
        s.head[b] = i
    else:
        s.following[s.tail[b]] = i
    s.tail[b] = i
    s.waiting[b] += 1
    s.urgent[b] = min(s.urgent[b], r.deadline[i])
    s.held[lane] += 1
    s.outstanding[engine] += 1


def replay(
    r: Requests,
    steps: Steps,
    e: Engines,
    rule: int,
    refuse: bool,
    first: Floats,
    finish: Floats,
    busy: Floats,
) -> None:
    """Fill first and finish [n] s (infinite where never) and busy [g] lane seconds.

    ``refuse``: a request that by estimate ends after its limit is not taken.
    """
    s = _empty(len(r.arrival), e)
    first[:] = inf
    finish[:] = inf
    for i in range(len(r.arrival)):
        now, m = r.arrival[i], r.model[i]
        for one in range(e.first[m], e.first[m + 1]):
            g = e.group[one]
            for lane in range(s.of_group[g], s.of_group[g + 1]):
                if s.held[lane] == 0:
                    s.clock[lane] = max(s.clock[lane], now)
                while s.clock[lane] < now:
                    if not _segment(lane, now, r, steps, e, s, rule, first, finish):
                        break
        engine = _engine_for(i, r, e, s)
        if engine < 0:
            continue
        g = e.group[engine]
        lane = s.of_group[g]
        for other in range(lane + 1, s.of_group[g + 1]):
            fewer = s.held[other] < s.held[lane]
            if fewer or (s.held[other] == s.held[lane] and s.clock[other] < s.clock[lane]):
                lane = other
        b = s.bucket[lane] + e.place[engine]
        if refuse:
            limit = now + min(r.e2e[i], r.ttft[i] + r.tpot[i] * (r.output[i] - 1))
            if _estimate(i, engine, lane, b, r, steps, e, s, rule) > limit:
                continue
        _add(i, engine, lane, b, r, s)
    _drain(r, steps, e, s, rule, first, finish)
    busy[:] = s.busy


@leaf
def _drain(
    r: Requests, steps: Steps, e: Engines, s: State, rule: int, first: Floats, finish: Floats
) -> None:
    """Serve what is left, the lane that is furthest behind first: they share KV memory."""
    for g in range(len(e.lanes)):
        begin, end = s.of_group[g], s.of_group[g + 1]
        while True:
            lane = -1
            for other in range(begin, end):
                if s.held[other] and (lane < 0 or s.clock[other] < s.clock[lane]):
                    lane = other
            if lane < 0:
                break
            if _segment(lane, inf, r, steps, e, s, rule, first, finish):
                continue
            # It waits for KV memory: not before the next lane moves.
            later = inf
            for other in range(begin, end):
                if other != lane and s.held[other]:
                    later = min(later, s.clock[other])
            if later == inf:
                break
            s.clock[lane] = later + TICK_S


Replay = Callable[[Requests, Steps, Engines, int, bool, Floats, Floats, Floats], None]


@cache
def compiled_replay() -> Replay:
    return cast(Replay, njit(cache=True)(replay))
