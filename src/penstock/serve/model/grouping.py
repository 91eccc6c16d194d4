"""Which sequences of a step share a padded call of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.serve.model.segments import item_positions
from penstock.serve.model.step import Ints, Mask, Pages, StepItem

_WASTE = 0.1
"""Padding a shared call may add, as a share of the scores it must compute ..."""
_CALL_BYTES = 256 * 1024
"""... plus the keys and values of so many bytes: to read them takes as long as another call."""
_SMALL_ROWS = 64
"""Chunks and trees of at most so many rows may share a call."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One item as attention sees it in a run of layers.

    Its queries are ``rows`` of the batch from ``row`` on; its keys are the entries
    ``[low, high)`` of its sequence, where ``low`` is the first of a page. ``table``
    ``[layers, pages]`` holds the pages of these keys. ``fresh``: no key is older than the rows,
    and each row sees all rows before it.
    """

    item: StepItem
    row: int
    low: int
    high: int
    table: Pages
    fresh: bool

    @property
    def rows(self) -> int:
        return self.item.rows

    @property
    def keys(self) -> int:
        return self.high - self.low


def view_item(
    item: StepItem, row: int, layers: tuple[int, int], window: int | None, page_size: int
) -> View:
    """The view of ``item``, whose rows begin at ``row``, in ``layers`` ``[start, end)``."""
    high = item.context + item.rows
    first_page = 0 if window is None else max(0, item.context - window + 1) // page_size
    pages = slice(first_page, -(-high // page_size))
    return View(
        item=item,
        row=row,
        low=first_page * page_size,
        high=high,
        table=item.pages[layers[0] - item.start : layers[1] - item.start, pages],
        fresh=item.context == 0
        and item.tree is None
        and item.rows > 1
        and (window is None or item.rows <= window),
    )


def group_views(views: Sequence[View], entry_bytes: int) -> list[list[View]]:
    """Cut ``views`` into groups that each become one call, padded to their largest member.

    ``entry_bytes`` is the size of one token's keys and values in one layer.
    """
    free = _CALL_BYTES // entry_bytes
    decodes = [view for view in views if view.rows == 1]
    if len(decodes) == len(views):
        return list(_pack(decodes, free))
    fresh = [view for view in views if view.fresh]
    rest = [view for view in views if view.rows > 1 and not view.fresh]
    small = [view for view in rest if view.rows <= _SMALL_ROWS]
    large = [[view] for view in rest if view.rows > _SMALL_ROWS]
    return [*_pack(decodes, free), *_pack(fresh, free), *_pack(small, free), *large]


def _pack(views: Sequence[View], free: int) -> Iterable[list[View]]:
    """Greedily join views of similar size, the longest first; ``free`` scores may be padding."""
    group: list[View] = []
    needed = widest = 0
    for view in sorted(views, key=lambda view: -view.keys):
        if group:
            padded = (len(group) + 1) * max(widest, view.rows) * group[0].keys
            if padded > (1 + _WASTE) * (needed + view.rows * view.keys) + free:
                yield sorted(group, key=lambda view: view.row)
                group, needed, widest = [], 0, 0
        group.append(view)
        needed += view.rows * view.keys
        widest = max(widest, view.rows)
    if group:
        yield sorted(group, key=lambda view: view.row)


def padded_rows(group: Sequence[View]) -> tuple[Ints, Mask]:
    """Rows of the batch ``[n, queries]`` of a group, and which of them are no padding.

    Padding repeats the first row of its sequence.
    """
    counts = np.array([view.rows for view in group])
    first = np.array([view.row for view in group])
    offsets = np.arange(counts.max())
    real = offsets < counts[:, None]
    return first[:, None] + np.where(real, offsets, 0), real


def padded_pages(group: Sequence[View]) -> Ints:
    """Page ids ``[layers, n, pages]`` of a group; padding repeats a page that is masked."""
    widest = max(view.table.shape[1] for view in group)
    layers = group[0].table.shape[0]
    pages = np.zeros((layers, len(group), widest), np.int64)
    for i, view in enumerate(group):
        pages[:, i, : view.table.shape[1]] = view.table
    return pages


def visible(group: Sequence[View], window: int | None) -> Mask | None:
    """Which keys ``[n, queries, keys]`` each query sees; None where all see all."""
    keys = max(view.keys for view in group)
    if all(view.rows == 1 and view.keys == keys for view in group) and (
        window is None or all(view.keys <= window for view in group)
    ):
        return None
    queries = max(view.rows for view in group)
    at = np.array([view.item.context for view in group])[:, None] + np.zeros(queries, np.int64)
    for i, view in enumerate(group):
        if view.rows > 1:
            at[i, : view.rows] = item_positions(view.item)
    entries = np.array([view.low for view in group])[:, None] + np.arange(keys)
    seen: Mask = entries[:, None, :] <= at[:, :, None]
    if window is not None:
        seen &= entries[:, None, :] > at[:, :, None] - window
    for i, view in enumerate(group):
        if view.item.tree is not None:
            _mark_tree(seen[i], view, at[i], window)
    return seen


def _mark_tree(seen: Mask, view: View, at: Ints, window: int | None) -> None:
    """Let the rows of a tree see each other as its mask says, wherever their entries lie."""
    tree, rows = view.item.tree, view.rows
    assert tree is not None
    new = view.item.context - view.low
    among = tree.mask.copy()
    if window is not None:
        among &= tree.depths[None, :] > tree.depths[:, None] - window
    seen[:, new:] = False
    seen[:rows, new : new + rows] = among
    # Padded rows must see something: a softmax over nothing is not a number.
    seen[rows:, new] = True
