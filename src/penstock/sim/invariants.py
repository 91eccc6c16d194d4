"""Laws that every run obeys, checked cheaply at its end. A violation is a fault of Penstock.

1. Every request ends at most once, and what ended has its tokens: a finished request has one
   recorded time per token (and one for its prompt where that yields no token).
2. Times never go back: arrival <= admission <= every iteration, in ascending order.
3. KV memory is never exceeded, and all of it is free again when nobody is on the way.
4. No link sends for longer than the run lasts.
"""

from __future__ import annotations

import numpy as np

from penstock.measure.run import STATUS, Run
from penstock.policy.kv import KVPool

_SLACK_S = 1e-6


def check_run(run: Run, pools: list[KVPool], on_the_way: int, end_s: float) -> None:
    """Raise ``RuntimeError`` naming the law that ``run`` breaks."""
    table, tokens = run.requests, run.tokens
    finished = table.status == STATUS.index("finished")
    extra = 0 if run.first_iteration_is_token else 1
    counts = np.diff(tokens.offsets)
    if not np.array_equal(counts[finished], table.output_tokens[finished] + extra):
        raise RuntimeError("invariant 1: a finished request lacks tokens or has too many")
    if np.any(table.generated_tokens > table.output_tokens):
        raise RuntimeError("invariant 1: a request has more tokens than it asked for")
    gaps = np.diff(tokens.times_s)
    inside = np.ones(len(gaps), dtype=bool)
    starts = tokens.offsets[1:-1]
    inside[starts[(starts > 0) & (starts <= len(gaps))] - 1] = False
    began = np.where(np.isnan(table.admitted_s), table.arrival_s, table.admitted_s)
    some = counts > 0
    first = tokens.times_s[tokens.offsets[:-1][some]]
    if np.any(gaps[inside] < 0) or np.any(first < began[some]) or np.any(began < table.arrival_s):
        raise RuntimeError("invariant 2: an iteration ends before its cause")
    if any(pool.peak > pool.capacity or pool.used < 0 for pool in pools):
        raise RuntimeError("invariant 3: KV memory was exceeded")
    if on_the_way == 0 and any(pool.used for pool in pools):
        raise RuntimeError("invariant 3: KV memory is held although nobody is on the way")
    if run.links is not None and len(run.links.busy_s):
        # A message that is still being sent at the end was booked in full.
        latest = max(end_s, run.window_s[1])
        if not on_the_way and np.any(run.links.busy_s > latest + _SLACK_S):
            raise RuntimeError("invariant 4: a link sent for longer than the run lasted")
