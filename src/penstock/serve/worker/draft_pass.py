"""The passes of one growth of candidate trees: what they share is worked out once.

A pass of a small draft takes less time than planning it as a step of its own would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from penstock.policy.speculation.trees import Ints, Mask
from penstock.serve.model import LayerSlice
from penstock.serve.model.step import Pages

ROOT_ROWS = 2
"""Tokens of a sequence in its first pass. Where a draft was accepted whole, two are new; where
not, the one before the root is written again as it was, so that no batch needs padding."""


class DraftPasses:
    """Passes over n sequences of ``lengths`` ``[n]`` tokens, the root included.

    ``tables`` are the page tables of the sequences, with room for ``nodes`` more entries. The first
    pass runs the last ``ROOT_ROWS`` tokens of each. Nodes get entries after the root, in order.
    """

    def __init__(
        self, model: LayerSlice, tables: Sequence[Pages], lengths: Ints, nodes: int
    ) -> None:
        self._model = model
        self._lengths = lengths
        self._shape = model.cache.layout
        size = self._shape.page_size
        widest = -(-(int(lengths.max()) + nodes) // size)
        self._table = np.zeros((len(tables[0]), len(tables), widest), np.int64)
        for i, table in enumerate(tables):
            held = min(widest, table.shape[1])
            self._table[:, i, :held] = table[:, :held]
        flat = self._table.reshape(len(self._table), -1)
        self._pages = self._tensor(flat).unbind()
        self._keys = widest * size
        self._same = len(lengths) == 1 or bool((lengths == lengths[0]).all())
        self._mask: dict[int | None, torch.Tensor | None] = {}
        self._slots: Sequence[torch.Tensor] = ()
        self._rows = self._used = 0

    def root(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[n, h]`` of the roots, from the last tokens ``[n * ROOT_ROWS]``."""
        at = self._lengths[:, None] + np.arange(-ROOT_ROWS, 0)
        seen = np.arange(self._keys) <= at[:, :, None]
        return self._run(tokens, at, at, seen)[:, -1]

    def layer(self, tokens: torch.Tensor, depth: int, ancestry: Mask | None) -> torch.Tensor:
        """Hidden states ``[n, width, h]`` of the nodes ``tokens`` ``[n * width]`` of layer
        ``depth`` (0 = below the root).

        ``ancestry`` ``[n, width, (depth + 1) * width]`` says which nodes each sees, itself
        included; None for chains.
        """
        if ancestry is None:
            at = self._lengths[:, None] + depth
            seen = None if self._same else np.arange(self._keys) <= at[:, :, None]
            return self._run(tokens, at, at, seen)
        n, width, nodes = ancestry.shape
        entries = self._lengths[:, None] + np.arange(nodes - width, nodes)
        seen = np.broadcast_to(
            np.arange(self._keys) < self._lengths[:, None, None], (n, width, self._keys)
        ).copy()
        for i, length in enumerate(self._lengths):
            seen[i, :, length : length + nodes] = ancestry[i]
        at = np.repeat(self._lengths[:, None] + depth, width, axis=1)
        return self._run(tokens, entries, at, seen)

    def _run(
        self, tokens: torch.Tensor, entries: Ints, positions: Ints, seen: Mask | None
    ) -> torch.Tensor:
        """``entries`` and ``positions`` ``[n, rows]``; ``seen`` ``[n, rows, keys]``, None = all."""
        n, self._rows = entries.shape
        size = self._shape.page_size
        pages = self._table[:, np.arange(n)[:, None], entries // size]
        slots = (pages * size + entries % size).reshape(len(self._table), -1)
        self._slots = self._tensor(slots).unbind()
        self._used = int(entries.max()) + 1
        self._mask = {}
        for window in set(self._model.config.windows):
            self._mask[window] = self._hide(seen, positions, window)
        last = int(positions.max())
        hidden = self._model.forward_rows(
            tokens, self._tensor(positions.reshape(-1)), last, attention=self
        )
        return hidden.view(n, self._rows, -1)

    def _hide(self, seen: Mask | None, positions: Ints, window: int | None) -> torch.Tensor | None:
        """What is added to the scores ``[n, 1, rows, keys used]``.

        Entries of nodes count as later than their positions, which windows never cut.
        """
        if window is not None and int(positions.max()) >= window:
            near = np.arange(self._keys) > positions[:, :, None] - window
            seen = near & (np.arange(self._keys) < self._used) if seen is None else near & seen
        if seen is None:
            return None
        hidden = self._tensor(~seen[:, :, : self._used])[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionPlan.attend``."""
        at = layer - self._model.start
        cache, kv_heads, dim = self._model.cache, self._shape.kv_heads, self._shape.head_dim
        heads = qkv.shape[1] - 2 * kv_heads
        n, rows = len(self._lengths), self._rows
        cache.slots.index_copy_(0, self._slots[at], qkv[:, heads:])
        entries = cache.flat_pages.index_select(0, self._pages[at])
        entries = entries.view(n, -1, 2 * kv_heads, dim)[:, : self._used].transpose(1, 2)
        k, v = entries[:, :kv_heads], entries[:, kv_heads:]
        mask = self._mask[self._model.config.windows[layer]]
        if rows == 1:
            # Queries of one group stand in for successive ones: no key is repeated.
            q = qkv[:, :heads].view(n, kv_heads, heads // kv_heads, dim)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(n, heads * dim)
        q = qkv[:, :heads].view(n, rows, heads, dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=heads != kv_heads)
        return out.transpose(1, 2).reshape(n * rows, heads * dim)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)
