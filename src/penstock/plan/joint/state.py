"""The arrays of a replay: requests, step times, engines, and what every lane is doing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_SEQS = 256
CHUNK_TOKENS = 2048
EARLIEST_DEADLINE, ROUND_ROBIN, FIRST_COME = 0, 1, 2
HAIR = 1e-6
"""Of a token: sums of fractions of steps are not exact."""
NO_LIMIT = 1e30
"""Seconds; stands for infinity where it is multiplied by 0."""
TICK_S = 1e-6
LATE_S = 1e15
"""Added to deadlines that have passed, so that they sort after all others."""


class Requests(NamedTuple):
    """n requests by arrival. All [n]: arrival s, deadline s of the first token and of what
    follows, model, prompt and output tokens, limits of TTFT, TPOT and end to end in s
    (``NO_LIMIT`` = none)."""

    arrival: Floats
    deadline: Floats
    later: Floats
    model: Ints
    prompt: Ints
    output: Ints
    ttft: Floats
    tpot: Floats
    e2e: Floats


class Steps(NamedTuple):
    """Seconds of a step through all stages, by row (a stored form of a model on one shape).

    fixed, slope [rows, MAX_SEQS + 1]: a decode step of n sequences takes fixed + slope x context;
    grid [k] prompt tokens, prefill [rows, k] seconds for as many.
    """

    fixed: Floats
    slope: Floats
    grid: Floats
    prefill: Floats


class Engines(NamedTuple):
    """e engines, ordered by model; those of model m are ``first[m]`` to ``first[m + 1] - 1``.

    [e]: group, place in it, row in ``Steps``, KV tokens, when it is loaded in s, priority.
    Of g groups: lanes [g], and members[begin[g]:begin[g + 1]], the engines they hold.
    """

    first: Ints
    group: Ints
    place: Ints
    row: Ints
    kv: Ints
    ready: Floats
    priority: Ints
    lanes: Ints
    begin: Ints
    members: Ints


class State(NamedTuple):
    """Per lane: clock s, group, first bucket, requests held. Per bucket (lane, engine): running,
    waiting, context tokens, steps done (tick), tick of the next end, most urgent deadline, least
    limit of TPOT, queue ends, sequences. Per engine: KV tokens in use, requests held. Per
    request: the next in its queue, the tick of its end. ``of_group`` [g] first lane. ``busy``
    [g] seconds."""

    clock: Floats
    lane_group: Ints
    bucket: Ints
    held: Ints
    running: Ints
    waiting: Ints
    context: Floats
    tick: Floats
    next_end: Floats
    urgent: Floats
    pace: Floats
    head: Ints
    tail: Ints
    seqs: Ints
    used: Ints
    outstanding: Ints
    following: Ints
    end: Floats
    of_group: Ints
    busy: Floats
