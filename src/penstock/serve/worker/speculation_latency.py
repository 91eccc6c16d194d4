"""How long two models take on this machine: what speculators price their choices by."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, thread_time

import torch

from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.serve.model import LayerSlice, OutOfPages, SequencePages, StepInput, StepItem
from penstock.serve.worker.draft import DraftModel

_TARGET = ((1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (8, 4), (16, 4), (32, 4))
"""Steps of the target that are measured: (sequences, rows of each)."""
_DRAFT = (1, 4, 16, 48)
"""Passes of the draft that are measured: rows."""
_DEPTH = 4
_CONTEXT = 48
_ROUNDS = 3
_BUDGET_S = 1.5


def measure(target: LayerSlice, draft: DraftModel) -> StepLatency:
    """Seconds of draft passes by rows and of target steps by tokens, heads included.

    Rounds over all shapes go on for ``_BUDGET_S``, three at least; of each shape the fastest
    counts, and more tokens never take less.
    """
    shapes: dict[tuple[str, int], Callable[[], None]] = {}
    held: list[SequencePages] = []
    try:
        for sequences, rows in _TARGET:
            step = _step(target, sequences, rows, held)
            if step is not None:
                shapes["target", sequences * rows] = step
        for rows in _DRAFT:
            if rows * (_CONTEXT + _DEPTH + 16) <= draft.capacity_tokens:
                shapes["draft", rows] = _growth(draft, rows)
        best = _fastest(shapes, single=target.device.type == "cpu")
    finally:
        for pages in held:
            pages.release()
        for row in range(max(_DRAFT)):
            draft.free(-1 - row)
    passes = {rows: s / _DEPTH for (kind, rows), s in best.items() if kind == "draft"}
    steps = {tokens: s for (kind, tokens), s in best.items() if kind == "target"}
    return StepLatency(passes[1], _table(steps), draft=_table(passes))


def _step(
    model: LayerSlice, sequences: int, rows: int, held: list[SequencePages]
) -> Callable[[], None] | None:
    """A step of ``rows`` tokens each; None where the KV memory does not hold it."""
    for _ in range(len(held), sequences):
        pages = SequencePages(model.pool, model.cache.layout.page_size, model.start, model.end)
        try:
            pages.reserve(_CONTEXT + rows)
        except OutOfPages:
            return None
        held.append(pages)
    for pages in held:
        pages.reserve(_CONTEXT + rows)
    items = [
        StepItem(rows, _CONTEXT, pages.table, model.start, model.end) for pages in held[:sequences]
    ]
    step = StepInput(items, tokens=torch.zeros(sequences * rows, dtype=torch.int64))

    def run() -> None:
        model.head(model.forward(step)).argmax(dim=-1).tolist()

    return run


def _growth(draft: DraftModel, rows: int) -> Callable[[], None]:
    tokens = {-1 - row: [0] * _CONTEXT for row in range(rows)}

    def run() -> None:
        draft.grow(tokens, list(tokens), (), depth=_DEPTH, width=1)

    return run


def _fastest(
    shapes: dict[tuple[str, int], Callable[[], None]], *, single: bool
) -> dict[tuple[str, int], float]:
    # What other processes take from a thread is no property of the models.
    clock = thread_time if single and torch.get_num_threads() == 1 else perf_counter
    best = dict.fromkeys(shapes, float("inf"))
    end_s = perf_counter() + _BUDGET_S
    rounds = 0
    while rounds < _ROUNDS or perf_counter() < end_s:
        for name, run in shapes.items():
            started_s = clock()
            run()
            best[name] = min(best[name], clock() - started_s)
        rounds += 1
    return best


def _table(seconds: dict[int, float]) -> LatencyTable:
    """Rising seconds by count; one point alone stands for twice its count at twice its time."""
    counts = sorted(seconds)
    rising: list[float] = []
    for count in counts:
        rising.append(max(seconds[count], rising[-1] if rising else 0.0))
    if len(counts) == 1:
        return LatencyTable((counts[0], 2 * counts[0]), (rising[0], 2 * rising[0]))
    return LatencyTable(tuple(float(count) for count in counts), tuple(rising))
