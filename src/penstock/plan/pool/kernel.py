"""Replay of a pool's requests, in full and after one more replica (the compiled leaf).

The rules are those of AlpaServe's fast simulator (OSDI'23). Requests come in order of arrival. Of
the groups that hold the model, the one whose last stage is free first takes the request; the first
in order wins ties. Its finish follows from the clocks of the stages; where that misses the
deadline the request is rejected at once and occupies nothing.

One more replica changes few requests. ``grow`` therefore keeps what every request did, and decides
again only where it can differ: for requests of the model that was added, for those whose group
was chosen among equals, and for those whose model is on a group whose clocks now differ from the
record. A group is back in step as soon as its clocks equal the recorded ones.

Everything here runs unchanged as plain Python; ``compiled_*`` give the Numba forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., object])


def leaf(function: F) -> F:
    """Let compiled code call ``function``; calls from Python stay plain Python."""
    jitable: Callable[[F], F] = register_jitable
    return jitable(function)


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ids = NDArray[np.int32]
Flags = NDArray[np.uint8]

OVERHEAD_S = 0.011
ALMOST_NOTHING = 1e-6
BITS = 32
SMALL = 16


class Requests(NamedTuple):
    """n requests: arrival [n] s, model [n] (-1 = none), limit [n] s."""

    arrival: Floats
    model: Ids
    limit: Floats


class Tables(NamedTuple):
    """m models, k shapes, s most stages, g groups.

    latency [m, k, s] s (infinite where the shape cannot hold the model), pace [m, k] the slowest
    stage in s, weight [m, k] bytes, stages [k], shape [g] the shape of every group.
    """

    latency: Floats
    pace: Floats
    weight: Floats
    stages: Ints
    shape: Ints


class Record(NamedTuple):
    """What every request did.

    choice [n] group asked (-1 none), taken [n] group that accepted (-1 none), tie [n] chosen among
    equals, clock [n, s] stage clocks after it was accepted, end [n] the last of them.
    """

    choice: Ids
    taken: Ids
    tie: Flags
    clock: Floats
    end: Floats


class State(NamedTuple):
    """Who holds what, and what it serves.

    groups [m, g] the groups of a model in order, holds [m] how many; members [g, m] the models of
    a group in ascending order, size [g]; order [g] groups as the rules sort them, rank its
    inverse; mask [m] groups of a model as bits; good [m] requests served; handled [g] requests
    asked; busy [g] seconds of service.
    """

    groups: Ids
    holds: Ints
    members: Ids
    size: Ints
    order: Ints
    rank: Ints
    mask: Ints
    good: Ints
    handled: Ints
    busy: Floats


def empty_record(n: int, stages: int) -> Record:
    """The record of n requests that nobody serves."""
    return Record(
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int32),
        np.zeros(n, np.uint8),
        np.empty((n, stages)),
        np.zeros(n),
    )


def empty_state(models: int, groups: int) -> State:
    """No replica anywhere."""
    return State(
        np.zeros((models, groups), np.int32),
        np.zeros(models, np.int64),
        np.zeros((groups, models), np.int32),
        np.zeros(groups, np.int64),
        np.arange(groups),
        np.arange(groups),
        np.zeros(models, np.int64),
        np.zeros(models, np.int64),
        np.zeros(groups, np.int64),
        np.zeros(groups),
    )


@leaf
def replay(requests: Requests, tables: Tables, state: State, record: Record) -> None:
    """Replay all requests against the replicas in ``state``; fill its counts and ``record``."""
    arrival, model, limit = requests
    latency, pace, _, stages, shape = tables
    choice, taken, tie, clock, end = record
    clocks = np.zeros((len(shape), clock.shape[1]))
    last = np.zeros(len(shape))
    state.good[:] = 0
    state.handled[:] = 0
    state.busy[:] = 0.0
    for i in range(len(arrival)):
        m = model[i]
        choice[i] = taken[i] = -1
        if m < 0 or state.holds[m] == 0:
            continue
        g = int(state.groups[m, 0])
        equal = 0
        for j in range(1, state.holds[m]):
            other = int(state.groups[m, j])
            if last[other] < last[g]:
                g, equal = other, 0
            elif last[other] == last[g]:
                equal = 1
        tie[i] = equal
        choice[i] = g
        state.handled[g] += 1
        k = shape[g]
        time = arrival[i]
        if last[g] + latency[m, k, stages[k] - 1] + OVERHEAD_S - time > limit[i]:
            continue
        for s in range(stages[k]):
            time = max(time, clocks[g, s]) + latency[m, k, s]
            clock[i, s] = time
        end[i] = time
        if time + OVERHEAD_S - arrival[i] <= limit[i]:
            taken[i] = g
            last[g] = time
            state.good[m] += 1
            state.busy[g] += pace[m, k]
            for s in range(stages[k]):
                clocks[g, s] = clock[i, s]


@leaf
def sorted_order(values: Floats, order: Ints, stack: Ints) -> None:
    """Fill ``order`` with the indices that sort ``values`` upwards.

    Median-of-three quicksort with insertion below 17 entries: the order in which equal values
    come out is part of AlpaServe's rules, and NumPy's differs between processors.
    """
    for i in range(len(values)):
        order[i] = i
    low, high, depth = 0, len(values) - 1, 0
    while True:
        while high - low > SMALL:
            cut = _partition(values, order, low, high)
            if cut - low < high - cut:
                stack[depth], stack[depth + 1] = cut + 1, high
                high = cut - 1
            else:
                stack[depth], stack[depth + 1] = low, cut - 1
                low = cut + 1
            depth += 2
        for i in range(low + 1, high + 1):
            moving = order[i]
            j = i
            while j > low and values[moving] < values[order[j - 1]]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = moving
        if depth == 0:
            return
        depth -= 2
        low, high = stack[depth], stack[depth + 1]


@leaf
def _partition(values: Floats, order: Ints, low: int, high: int) -> int:
    """Split ``order[low:high + 1]`` at the median of three; return the place of the pivot."""
    middle = low + ((high - low) >> 1)
    if values[order[middle]] < values[order[low]]:
        order[middle], order[low] = order[low], order[middle]
    if values[order[high]] < values[order[middle]]:
        order[high], order[middle] = order[middle], order[high]
    if values[order[middle]] < values[order[low]]:
        order[middle], order[low] = order[low], order[middle]
    pivot = values[order[middle]]
    order[middle], order[high - 1] = order[high - 1], order[middle]
    i, j = low, high - 1
    while True:
        i += 1
        while values[order[i]] < pivot:
            i += 1
        j -= 1
        while pivot < values[order[j]]:
            j -= 1
        if i >= j:
            break
        order[i], order[j] = order[j], order[i]
    order[i], order[high - 1] = order[high - 1], order[i]
    return i


@leaf
def _before(state: State, a: int, b: int) -> bool:
    """Whether group ``a`` sorts before ``b``: by their models, as tuples."""
    for i in range(min(state.size[a], state.size[b])):
        if state.members[a, i] != state.members[b, i]:
            return bool(state.members[a, i] < state.members[b, i])
    return bool(state.size[a] < state.size[b])


@leaf
def place(state: State, g: int, m: int) -> None:
    """Put a replica of ``m`` on ``g`` and bring groups and lists back into order."""
    at = state.size[g]
    while at > 0 and state.members[g, at - 1] > m:
        state.members[g, at] = state.members[g, at - 1]
        at -= 1
    state.members[g, at] = m
    state.size[g] += 1
    order, rank = state.order, state.rank
    p = rank[g]
    while p > 0 and _before(state, g, order[p - 1]):
        order[p], order[p - 1] = order[p - 1], order[p]
        p -= 1
    while p < len(order) - 1 and _before(state, order[p + 1], g):
        order[p], order[p + 1] = order[p + 1], order[p]
        p += 1
    for i in range(len(order)):
        rank[order[i]] = i
    state.groups[m, state.holds[m]] = g
    state.holds[m] += 1
    state.mask[m] |= 1 << (g & (BITS - 1))
    for i in range(state.size[g]):
        one = state.members[g, i]
        for j in range(1, state.holds[one]):
            moving = state.groups[one, j]
            to = j
            while to > 0 and rank[moving] < rank[state.groups[one, to - 1]]:
                state.groups[one, to] = state.groups[one, to - 1]
                to -= 1
            state.groups[one, to] = moving


@leaf
def _leave(
    g: int, last: int, stages: int, clock: Floats, astray: Flags, strays: Ints, scratch: Floats
) -> int:
    """Group ``g`` goes out of step: keep its recorded clocks; return its bit."""
    astray[g] = 1
    strays[g & (BITS - 1)] += 1
    for s in range(stages):
        scratch[g, s] = clock[last, s] if last >= 0 else 0.0
    return 1 << (g & (BITS - 1))


@leaf
def _return(g: int, astray: Flags, strays: Ints) -> int:
    """Group ``g`` is in step again; return the bits that stay set."""
    astray[g] = 0
    strays[g & (BITS - 1)] -= 1
    return -1 if strays[g & (BITS - 1)] else ~(1 << (g & (BITS - 1)))


@leaf
def _in_step(g: int, last: int, stages: int, clock: Floats, scratch: Floats) -> bool:
    """Whether the clocks of ``g`` equal the recorded ones."""
    for s in range(stages):
        if (clock[last, s] if last >= 0 else 0.0) != scratch[g, s]:
            return False
    return True


@leaf
def update(
    requests: Requests, tables: Tables, state: State, record: Record, added: int, scratch: Floats
) -> int:
    """Bring ``record`` and the counts up to date after a replica of ``added`` was placed.

    ``scratch`` [g + 1, s]: recorded clocks of groups out of step, and the clocks of one request.
    Returns how many requests were decided again.
    """
    arrival, model, limit = requests
    latency, pace, _, stages, shape = tables
    choice, taken, tie, clock, end = record
    num_groups = len(shape)
    last = np.full(num_groups, -1, np.int64)
    astray = np.zeros(num_groups, np.uint8)
    strays = np.zeros(BITS, np.int64)
    fresh = scratch[num_groups]
    away = 0
    again = 0
    for i in range(len(arrival)):
        m = model[i]
        if m < 0:
            continue
        was = int(taken[i])
        if m != added and (state.mask[m] & away) == 0 and tie[i] == 0:
            if was >= 0:
                last[was] = i
            continue
        if state.holds[m] == 0:
            continue
        again += 1
        g = int(state.groups[m, 0])
        least = end[last[g]] if last[g] >= 0 else 0.0
        equal = 0
        for j in range(1, state.holds[m]):
            other = int(state.groups[m, j])
            ready = end[last[other]] if last[other] >= 0 else 0.0
            if ready < least:
                least, g, equal = ready, other, 0
            elif ready == least:
                equal = 1
        tie[i] = equal
        k = shape[g]
        time = arrival[i]
        same = was == g
        before = last[g]
        # The last stage alone may already be too late: most rejections end here.
        accepted = least + latency[m, k, stages[k] - 1] + OVERHEAD_S - time <= limit[i]
        if accepted:
            for s in range(stages[k]):
                if before >= 0:
                    time = max(time, clock[before, s])
                time += latency[m, k, s]
                same = same and time == clock[i, s]
                fresh[s] = time
            accepted = time + OVERHEAD_S - arrival[i] <= limit[i]
        if choice[i] != g:
            if choice[i] >= 0:
                state.handled[choice[i]] -= 1
            state.handled[g] += 1
            choice[i] = g
        if accepted and same:
            last[g] = i
            if astray[g]:
                away &= _return(g, astray, strays)
            continue
        if not accepted and was < 0:
            continue
        if was >= 0 and not astray[was]:
            away |= _leave(was, last[was], stages[shape[was]], clock, astray, strays, scratch)
        if accepted and not astray[g]:
            away |= _leave(g, before, stages[k], clock, astray, strays, scratch)
        if was >= 0:
            old = shape[was]
            state.good[m] -= 1
            state.busy[was] -= pace[m, old]
            for s in range(stages[old]):
                scratch[was, s] = clock[i, s]
        taken[i] = -1
        if accepted:
            state.good[m] += 1
            state.busy[g] += pace[m, k]
            taken[i] = g
            end[i] = time
            last[g] = i
            for s in range(stages[k]):
                clock[i, s] = fresh[s]
        if was >= 0 and _in_step(was, last[was], stages[shape[was]], clock, scratch):
            away &= _return(was, astray, strays)
        if accepted and g != was and _in_step(g, i, stages[k], clock, scratch):
            away &= _return(g, astray, strays)
    return again


@leaf
def next_pair(
    tables: Tables, state: State, memory: float, asked: Ints, by_seconds: bool, work: Ints
) -> tuple[int, int]:
    """The replica greedy adds next: (group, model), or (-1, -1) where none fits.

    Groups by fewest handled requests (or least busy seconds), models by most unserved requests.
    """
    num_models, num_groups = len(asked), len(state.order)
    unserved = np.empty(num_models)
    for m in range(num_models):
        share = state.good[m] / (asked[m] + ALMOST_NOTHING)
        unserved[m] = asked[m] * (1 - share)
    load = np.empty(num_groups)
    for i in range(num_groups):
        g = state.order[i]
        load[i] = state.busy[g] if by_seconds else float(state.handled[g])
    most = np.empty(num_models, np.int64)
    least = np.empty(num_groups, np.int64)
    sorted_order(unserved, most, work)
    sorted_order(load, least, work)
    for i in range(num_groups):
        g = state.order[least[i]]
        used = 0.0
        for j in range(state.size[g]):
            used += tables.weight[state.members[g, j], tables.shape[g]]
        for j in range(num_models - 1, -1, -1):
            m = most[j]
            if tables.weight[m, tables.shape[g]] + used <= memory and not _holds(state, g, m):
                return g, m
    return -1, -1


@leaf
def _holds(state: State, g: int, m: int) -> bool:
    for j in range(state.holds[m]):
        if state.groups[m, j] == g:
            return True
    return False


def grow(
    requests: Requests,
    tables: Tables,
    state: State,
    record: Record,
    memory: float,
    asked: Ints,
    by_seconds: bool,
    given: Ids,
) -> int:
    """Place the ``given`` [r, 2] replicas (group, model), then add greedily until none fits.

    Returns how many requests were decided in all.
    """
    work = np.empty(256, np.int64)
    scratch = np.zeros((len(state.order) + 1, record.clock.shape[1]))
    decided = 0
    for i in range(len(given)):
        place(state, int(given[i, 0]), int(given[i, 1]))
    if len(given):
        replay(requests, tables, state, record)
        decided += len(requests.arrival)
    while True:
        g, m = next_pair(tables, state, memory, asked, by_seconds, work)
        if g < 0:
            return decided
        place(state, g, m)
        decided += update(requests, tables, state, record, m, scratch)


Replay = Callable[[Requests, Tables, State, Record], None]
Grow = Callable[[Requests, Tables, State, Record, float, Ints, bool, Ids], int]


@cache
def compiled_replay() -> Replay:
    return cast(Replay, njit(cache=True)(replay))


@cache
def compiled_grow() -> Grow:
    return cast(Grow, njit(cache=True)(grow))
