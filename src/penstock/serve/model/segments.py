"""A step cut into runs of layers over which the same rows are active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from penstock.errors import InputError
from penstock.serve.model.step import Ints, StepInput, StepItem


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Layers ``[start, end)`` with the ``items`` that run all of them.

    ``rows`` are the active rows of the batch, None for all of them.
    """

    start: int
    end: int
    items: Sequence[StepItem]
    rows: Ints | None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A checked step. ``positions`` ``[t]``; ``token_rows`` are the rows that come as tokens."""

    positions: Ints
    last_position: int
    token_rows: Ints
    segments: tuple[Segment, ...]


def arrange(step: StepInput, start: int, end: int, page_size: int) -> Batch:
    """Check ``step`` against a slice of layers ``[start, end)`` and cut it into segments.

    Raises ``InputError`` that names what is wrong.
    """
    items = step.items
    for item in items:
        _check(item, start, end, page_size)
    total = sum(item.rows for item in items)
    embedded = sum(item.rows for item in items if item.start == 0)
    _check_tensors(step, total, embedded)
    positions = _positions(items)
    bounds = np.concatenate(([0], np.cumsum([item.rows for item in items])))
    ranges = [np.arange(bounds[i], bounds[i + 1]) for i in range(len(items))]
    if embedded == total:
        token_rows = np.arange(total)
    else:
        token_rows = _join([ranges[i] for i, item in enumerate(items) if item.start == 0])
    parts = []
    edges = sorted({item.start for item in items} | {item.end for item in items})
    for low, high in pairwise(edges):
        active = [i for i, item in enumerate(items) if item.start <= low and item.end >= high]
        if len(active) == len(items):
            parts.append(Segment(low, high, items, None))
        elif active:
            rows = _join([ranges[i] for i in active])
            parts.append(Segment(low, high, [items[i] for i in active], rows))
    return Batch(positions, int(positions.max()), token_rows, tuple(parts))


def item_positions(item: StepItem) -> Ints:
    if item.tree is not None:
        return item.context + item.tree.depths
    return np.arange(item.context, item.context + item.rows)


def _positions(items: Sequence[StepItem]) -> Ints:
    if all(item.rows == 1 and item.tree is None for item in items):
        return np.array([item.context for item in items], np.int64)
    return np.concatenate([item_positions(item) for item in items])


def _join(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _check(item: StepItem, start: int, end: int, page_size: int) -> None:
    if not start <= item.start < item.end <= end:
        raise InputError(
            f"a step asks for layers [{item.start}, {item.end}) of a slice that holds "
            f"[{start}, {end})"
        )
    if item.rows < 1 or item.context < 0:
        raise InputError(
            f"an item of a step needs rows and no negative context (got {item.rows} rows after "
            f"{item.context} tokens)"
        )
    layers, pages = item.pages.shape
    if layers != item.end - item.start:
        raise InputError(
            f"an item over layers [{item.start}, {item.end}) brings pages of {layers} layers"
        )
    if pages * page_size < item.context + item.rows:
        raise InputError(
            f"{pages} pages of {page_size} tokens do not hold {item.context} + {item.rows} tokens"
        )
    if item.tree is not None and len(item.tree.depths) != item.rows:
        raise InputError(
            f"a token tree of {len(item.tree.depths)} rows in an item of {item.rows} rows"
        )


def _check_tensors(step: StepInput, total: int, embedded: int) -> None:
    if embedded and (step.tokens is None or len(step.tokens) != total):
        raise InputError(
            f"a step of {total} rows from layer 0 on needs as many tokens "
            f"(got {'none' if step.tokens is None else len(step.tokens)})"
        )
    if embedded < total and (step.hidden is None or len(step.hidden) != total):
        raise InputError(
            f"a step of {total} rows above layer 0 needs as many hidden states "
            f"(got {'none' if step.hidden is None else len(step.hidden)})"
        )
