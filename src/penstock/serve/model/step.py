"""What one step of a slice computes: rows of several sequences, each over its own layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import InputError

Ints = npt.NDArray[np.int64]
Pages = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """New tokens of one sequence that form a tree: row i continues row ``parents[i]`` (-1: none).

    Row 0 is the root: the last token that was generated and is not yet in the KV cache. A parent
    comes before its children. ``mask`` ``[n, n]``: row i sees row j, itself and its ancestors.
    ``depths`` ``[n]`` count from 0 at the root and give the positions.
    """

    mask: Mask
    depths: Ints

    @staticmethod
    def of(parents: Sequence[int]) -> TokenTree:
        """Raises ``InputError`` where a parent does not come before its child."""
        n = len(parents)
        mask = np.eye(n, dtype=np.bool_)
        depths = np.zeros(n, np.int64)
        for row, parent in enumerate(parents):
            if not -1 <= parent < row:
                raise InputError(
                    f"row {row} of a token tree has parent {parent}, not an earlier row"
                )
            if parent >= 0:
                mask[row] |= mask[parent]
                depths[row] = depths[parent] + 1
        return TokenTree(mask, depths)


@dataclass(frozen=True, slots=True, eq=False)
class StepItem:
    """One sequence in a step: ``rows`` new tokens after ``context`` tokens whose KV is cached.

    The item runs layers ``[start, end)`` of the slice and no others. ``pages``
    ``[end - start, >= ceil((context + rows) / page_size)]`` are page ids by layer
    (``SequencePages.table``). Positions are ``context, context + 1, ...``; with a ``tree`` they
    are ``context + depth``, and new tokens see each other as its mask says. The KV entries of
    the new tokens are written at ``context .. context + rows - 1`` in row order either way.
    """

    rows: int
    context: int
    pages: Pages
    start: int
    end: int
    tree: TokenTree | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepInput:
    """A flat batch: the rows of ``items`` one after another, in order.

    ``tokens`` ``[t]`` int64 are read for items that start at layer 0, ``hidden`` ``[t, h]`` for
    all others; a batch of one kind leaves the other None.
    """

    items: Sequence[StepItem]
    tokens: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return sum(item.rows for item in self.items)
