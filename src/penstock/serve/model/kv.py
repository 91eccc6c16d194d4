"""Paged KV memory: a page holds ``page_size`` tokens of one layer.

Pages belong to no layer: a sequence that runs three layers of a slice takes pages for three, so
memory is spent in (token, layer) entries, as the policies count it (``policy/kv.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.errors import InputError
from penstock.serve.model.step import Pages


class OutOfPages(Exception):  # noqa: N818 - an outcome the scheduler prevents
    """More pages were asked for than are free."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What two workers must agree on to exchange pages."""

    page_size: int
    kv_heads: int
    head_dim: int
    dtype: str
    tensor_parallel_size: int = 1
    tensor_parallel_rank: int = 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: keys and values of ``page_size`` tokens in one layer of one rank."""
        width: int = getattr(torch, self.dtype).itemsize
        return self.page_size * 2 * self.kv_heads * self.head_dim * width

    def check(self, other: KVLayout) -> None:
        """Raises ``InputError`` that names the first field in which ``other`` differs."""
        for field in self.__dataclass_fields__:
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise InputError(
                    f"KV pages cannot be exchanged: {field} is {theirs} at the sender and {ours} "
                    "at the receiver; use engines with equal settings"
                )


class KVCache:
    """The pages of one worker: ``data`` ``[num_pages, page_size, 2 * kv_heads, head_dim]``.

    Keys are the first ``kv_heads`` heads of an entry, values the rest: one write and one gather
    serve both.
    """

    def __init__(self, num_pages: int, layout: KVLayout, device: torch.device | str) -> None:
        if num_pages < 1:
            raise InputError(f"a KV cache needs at least one page (got {num_pages})")
        self.layout = layout
        self.num_pages = num_pages
        shape = (num_pages, layout.page_size, 2 * layout.kv_heads, layout.head_dim)
        try:
            self.data = torch.zeros(shape, dtype=getattr(torch, layout.dtype), device=device)
        except RuntimeError:
            size = num_pages * layout.page_bytes
            raise InputError(
                f"{num_pages} KV pages ({size:,} bytes) do not fit on {device}; ask for fewer"
            ) from None
        self.slots = self.data.view(-1, 2 * layout.kv_heads, layout.head_dim)
        self.flat_pages = self.data.view(num_pages, -1)

    def export(self, pages: Pages) -> memoryview:
        """Return the content of ``pages``, in order, as one run of bytes on the CPU.

        One row of ``SequencePages.table`` is one layer, so that the receiver may cut the model
        into other stages.
        """
        index = torch.as_tensor(pages.reshape(-1).astype(np.int64), device=self.data.device)
        copied = self.flat_pages.index_select(0, index).cpu()
        return copied.view(torch.uint8).reshape(-1).numpy().data

    def load(self, pages: Pages, content: bytes | memoryview, layout: KVLayout) -> None:
        """Write what ``export`` of a cache with ``layout`` gave into ``pages`` of this one.

        Raises ``InputError`` where the layouts differ (unequal tensor parallel sizes or ranks
        too) or the content is not that many pages long.
        """
        self.layout.check(layout)
        expected = pages.size * layout.page_bytes
        if len(content) != expected:
            raise InputError(
                f"KV content for {pages.size} pages must be {expected} bytes (got {len(content)})"
            )
        if not pages.size:
            return
        raw = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        rows = raw.view(self.data.dtype).view(pages.size, -1).to(self.data.device)
        index = torch.as_tensor(pages.reshape(-1).astype(np.int64), device=self.data.device)
        self.flat_pages.index_copy_(0, index, rows)

    def keep(self, pages: Pages, context: int, kept: Sequence[int]) -> None:
        """Keep the accepted rows of a token tree: entry ``context + kept[i]`` moves to
        ``context + i``, in every layer of ``pages`` ``[layers, n]``.

        ``kept`` rises (a path from the root down). Entries after it are free to be overwritten.
        """
        rows = np.asarray(kept, np.int64)
        if (np.diff(rows, prepend=-1) <= 0).any():
            raise InputError(f"rows of a tree to keep must rise from 0 or above (got {list(kept)})")
        moved = rows != np.arange(len(rows))
        if not moved.any():
            return
        source = self._slots(pages, context + rows[moved])
        target = self._slots(pages, context + np.flatnonzero(moved))
        self.slots.index_copy_(0, target, self.slots.index_select(0, source))

    def _slots(self, pages: Pages, entries: np.ndarray) -> torch.Tensor:
        size = self.layout.page_size
        slots = pages[:, entries // size].astype(np.int64) * size + entries % size
        return torch.as_tensor(slots.reshape(-1), device=self.data.device)


class PagePool:
    """Hands out page ids; a page may be shared by several sequences (prefix reuse)."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._uses = np.zeros(num_pages, np.int32)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> Pages:
        """Raises ``OutOfPages`` and takes nothing where fewer are free."""
        if count > len(self._free):
            raise OutOfPages(f"{count} KV pages asked for, {len(self._free)} free")
        cut = len(self._free) - count
        ids = np.array(self._free[cut:][::-1], np.int32)
        del self._free[cut:]
        self._uses[ids] = 1
        return ids

    def share(self, pages: Pages) -> None:
        """Count one more user of each page."""
        self._uses[pages.reshape(-1)] += 1

    def give(self, pages: Pages) -> None:
        """Count one user less; pages without users become free."""
        ids = pages.reshape(-1)
        if (self._uses[ids] < 1).any():
            raise AssertionError("a free KV page was given back")
        self._uses[ids] -= 1
        self._free.extend(int(page) for page in ids[self._uses[ids] == 0][::-1])


class SequencePages:
    """The pages of one sequence on one worker, for layers ``[start, end)`` only.

    ``table`` ``[end - start, pages]`` int32 is what ``StepItem.pages`` wants.
    """

    __slots__ = ("end", "page_size", "pool", "start", "table")

    def __init__(self, pool: PagePool, page_size: int, start: int, end: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self.start = start
        self.end = end
        self.table: Pages = np.zeros((end - start, 0), np.int32)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit without another page."""
        return int(self.table.shape[1]) * self.page_size

    def reserve(self, tokens: int) -> None:
        """Grow until ``tokens`` fit. Raises ``OutOfPages`` and changes nothing if they cannot."""
        layers, held = self.table.shape
        more = -(-tokens // self.page_size) - held
        if more > 0:
            ids = self.pool.take(more * layers).reshape(layers, more)
            self.table = np.concatenate((self.table, ids), axis=1)

    def truncate(self, tokens: int) -> None:
        """Give back the pages beyond ``tokens``."""
        kept = -(-tokens // self.page_size)
        self.pool.give(self.table[:, kept:])
        self.table = self.table[:, :kept].copy()

    def share(self, pages: Pages) -> None:
        """Begin with cached full pages ``[layers, n]`` of another sequence (before ``reserve``)."""
        if self.table.size:
            raise AssertionError("pages are shared before any are reserved")
        self.pool.share(pages)
        self.table = pages.copy()

    def release(self) -> None:
        """Give all pages back."""
        self.truncate(0)
