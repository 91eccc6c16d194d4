"""Attention of a flat batch over paged KV: new entries are written, then read with the old ones.

A plan is made once per step (``grouping.py`` says who shares a call); every layer follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from penstock.serve.model.grouping import (
    View,
    group_views,
    padded_pages,
    padded_rows,
    view_item,
    visible,
)
from penstock.serve.model.kv import KVCache
from penstock.serve.model.step import Ints, StepItem


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One call of attention: ``n`` sequences of ``queries`` rows and ``keys`` keys, both padded.

    ``rows`` ``[n * queries]`` picks the rows of the batch, None for the run from ``first`` on.
    ``taken`` picks the outputs that are no padding, None for all. ``pages``, ``[n * p]`` by layer,
    hold the keys; None where the keys are the rows themselves, each seeing those before it.
    ``mask`` ``[n, 1, queries, keys]`` is added to the scores.
    """

    n: int
    queries: int
    keys: int
    first: int
    rows: torch.Tensor | None
    taken: torch.Tensor | None
    pages: Sequence[torch.Tensor] | None
    mask: torch.Tensor | None


class AttentionPlan:
    """How the rows of ``items`` attend in layers ``[start, end)``, which share one ``window``."""

    def __init__(
        self,
        items: Sequence[StepItem],
        start: int,
        end: int,
        *,
        window: int | None,
        cache: KVCache,
        query_heads: int,
    ) -> None:
        self._cache = cache
        self._start = start
        self._query_heads = query_heads
        page_size = cache.layout.page_size
        self._slots = self._tensor(_slots(items, start, end, page_size)).unbind()
        views, row = [], 0
        for item in items:
            views.append(view_item(item, row, (start, end), window, page_size))
            row += item.rows
        groups = group_views(views, cache.layout.page_bytes // page_size)
        self._calls = [self._call(group, window) for group in groups]
        order = np.concatenate(
            [np.arange(view.row, view.row + view.rows) for group in groups for view in group]
        )
        in_order = bool((order[1:] > order[:-1]).all())
        self._order = None if in_order else self._tensor(np.argsort(order))

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Outputs ``[t, query_heads * head_dim]`` of ``layer`` for ``qkv``
        ``[t, query_heads + 2 * kv_heads, head_dim]``, whose keys and values are written first.
        """
        at = layer - self._start
        self._cache.slots.index_copy_(0, self._slots[at], qkv[:, self._query_heads :])
        if len(self._calls) == 1 and self._order is None:
            return self._run(self._calls[0], at, qkv)
        out = torch.cat([self._run(call, at, qkv) for call in self._calls])
        return out if self._order is None else out.index_select(0, self._order)

    def _run(self, call: _Call, at: int, qkv: torch.Tensor) -> torch.Tensor:
        """Outputs ``[rows, query_heads * head_dim]`` of one call, without its padding."""
        n, queries, heads = call.n, call.queries, self._query_heads
        layout = self._cache.layout
        kv_heads, dim = layout.kv_heads, layout.head_dim
        own = qkv[call.first : call.first + n * queries]
        if call.rows is not None:
            own = qkv.index_select(0, call.rows)
        if call.pages is None:
            packed = own.view(n, queries, heads + 2 * kv_heads, dim).transpose(1, 2)
            q, k, v = packed[:, :heads], packed[:, heads:-kv_heads], packed[:, -kv_heads:]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out = out.transpose(1, 2)
        else:
            entries = self._cache.flat_pages.index_select(0, call.pages[at])
            entries = entries.view(n, -1, 2 * kv_heads, dim)[:, : call.keys].transpose(1, 2)
            k, v = entries[:, :kv_heads], entries[:, kv_heads:]
            if queries == 1:
                # Queries of one group stand in for successive ones: no key is repeated.
                q = own[:, :heads].view(n, kv_heads, heads // kv_heads, dim)
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=call.mask)
            else:
                q = own[:, :heads].view(n, queries, heads, dim).transpose(1, 2)
                out = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=call.mask, enable_gqa=heads != kv_heads
                )
                out = out.transpose(1, 2)
        flat = out.reshape(n * queries, heads * dim)
        return flat if call.taken is None else flat.index_select(0, call.taken)

    def _call(self, group: Sequence[View], window: int | None) -> _Call:
        rows, real = padded_rows(group)
        flat = rows.reshape(-1)
        contiguous = bool((np.diff(flat) == 1).all())
        fresh = all(view.fresh for view in group)
        pages = None
        mask = None
        if not fresh:
            table = padded_pages(group)
            pages = self._tensor(table.reshape(len(table), -1)).unbind()
            seen = visible(group, window)
            if seen is not None:
                hidden = self._tensor(~seen)[:, None]
                mask = torch.zeros(hidden.shape, dtype=self._cache.data.dtype, device=hidden.device)
                mask.masked_fill_(hidden, -torch.inf)
        return _Call(
            n=len(group),
            queries=rows.shape[1],
            keys=max(view.keys for view in group),
            first=int(flat[0]),
            rows=None if contiguous else self._tensor(flat),
            taken=None if real.all() else self._tensor(np.flatnonzero(real)),
            pages=pages,
            mask=mask,
        )

    def _tensor(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._cache.data.device)


def _slots(items: Sequence[StepItem], start: int, end: int, page_size: int) -> Ints:
    """Where the new entries go: slots ``[layers, t]``."""
    parts = []
    for item in items:
        entries = np.arange(item.context, item.context + item.rows)
        table = item.pages[start - item.start : end - item.start, entries // page_size]
        parts.append(table.astype(np.int64) * page_size + entries % page_size)
    return np.concatenate(parts, axis=1)
