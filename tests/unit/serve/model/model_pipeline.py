"""A bare pipeline of slices: what a worker does with them, without the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.serve.model import LayerSlice, SequencePages, StepInput, StepItem, TokenTree

VOCAB = 211


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


@dataclass(eq=False)
class Live:
    """A sequence and its pages on every slice of its route."""

    pages: list[SequencePages | None]
    context: int = 0
    tokens: list[int] = field(default_factory=list)


class Pipeline:
    """Slices that pass hidden states on; each sequence may use other layers of each slice."""

    def __init__(self, slices: Sequence[LayerSlice]) -> None:
        self.slices = slices
        self.routes = [(model.start, model.end) for model in slices]

    def begin(self, routes: Sequence[tuple[int, int] | None] | None = None) -> Live:
        pages = [
            None
            if route is None
            else SequencePages(model.pool, model.cache.layout.page_size, *route)
            for model, route in zip(self.slices, routes or self.routes, strict=True)
        ]
        return Live(pages)

    def run(
        self,
        work: Sequence[tuple[Live, Sequence[int]]],
        trees: Sequence[TokenTree | None] | None = None,
    ) -> list[torch.Tensor]:
        """Logits ``[rows, vocab]`` per sequence for its new tokens; contexts grow by them."""
        trees = trees or [None] * len(work)
        counts = [len(new) for _, new in work]
        tokens = torch.tensor([token for _, new in work for token in new])
        hidden: torch.Tensor | None = None
        for place, model in enumerate(self.slices):
            items, rows, first = [], [], 0
            for (sequence, new), tree in zip(work, trees, strict=True):
                pages = sequence.pages[place]
                if pages is not None:
                    pages.reserve(sequence.context + len(new))
                    items.append(
                        StepItem(
                            len(new), sequence.context, pages.table, pages.start, pages.end, tree
                        )
                    )
                    rows.append(torch.arange(first, first + len(new)))
                first += len(new)
            if not items:
                continue
            index = torch.cat(rows)
            if hidden is None:
                hidden = torch.zeros(len(tokens), model.config.shape.hidden_size)
            fed = hidden[index] if any(item.start > 0 for item in items) else None
            hidden[index] = model.forward(StepInput(items, tokens[index], fed)).float()
        for sequence, new in work:
            if trees == [None] * len(work):
                sequence.context += len(new)
        assert hidden is not None
        return list(self.slices[-1].head(hidden.to(self.slices[-1].dtype)).split(counts))

    def generate(
        self, prompt: Sequence[int], count: int, chunk: int = 10**9, **kw: Any
    ) -> list[int]:
        """Greedy tokens of one sequence, its prompt in chunks of ``chunk``."""
        sequence = self.begin(**kw)
        new = list(prompt)
        while new:
            (logits,) = self.run([(sequence, new[:chunk])])
            new = new[chunk:]
        while True:
            sequence.tokens.append(int(logits[-1].argmax()))
            if len(sequence.tokens) == count:
                break
            (logits,) = self.run([(sequence, sequence.tokens[-1:])])
        for pages in sequence.pages:
            if pages is not None:
                pages.release()
        return sequence.tokens
