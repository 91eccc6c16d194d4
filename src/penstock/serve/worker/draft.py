"""A draft model beside the target: grows candidate trees, and keeps its KV entries in step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.policy.speculation.trees import BeamBuilder, CandidateTrees, Ints, no_trees
from penstock.serve.model import (
    LayerSlice,
    OutOfPages,
    SequencePages,
    StepInput,
    StepItem,
    TokenTree,
)
from penstock.serve.worker.executor import WorkerFault

CHILDREN = 8
"""Children of a node that a draft pass offers to the beam."""


@dataclass(slots=True)
class _Drafted:
    """``valid`` entries of the sequence are in the draft's KV memory."""

    pages: SequencePages
    valid: int = 0


class DraftModel:
    """``model`` holds all layers of the draft. Token lists belong to the caller.

    Each pass feeds the nodes of one more layer. A tree wider than a chain is fed whole in every
    pass, as its rows must see each other; rows are few, and a pass costs what its weights cost.
    """

    def __init__(self, model: LayerSlice, vocab_size: int) -> None:
        self.model = model
        self._vocab_size = min(vocab_size, model.config.shape.vocab_size)
        self._drafted: dict[int, _Drafted] = {}
        self._fed_layers = 0
        self._width = 1

    def free(self, seq: int) -> None:
        drafted = self._drafted.pop(seq, None)
        if drafted is not None:
            drafted.pages.release()

    def room(self, tokens: Mapping[int, Sequence[int]], seqs: Iterable[int]) -> int:
        """Positions of the model that the longest of ``seqs`` leaves."""
        longest = max((len(tokens[seq]) for seq in seqs), default=0)
        return self.model.config.shape.max_position_embeddings - longest

    def grow(
        self,
        tokens: Mapping[int, Sequence[int]],
        seqs: Sequence[int],
        prompts: Sequence[int],
        *,
        depth: int,
        width: int,
    ) -> CandidateTrees:
        """Candidate trees of ``seqs``, whose last token is the root; ``prompts`` are read too.

        ``tokens`` are those of each sequence so far.
        """
        self._fed_layers, self._width = max(0, depth - 1), width
        hidden = self._read(tokens, [*seqs, *prompts] if depth else prompts)
        if not depth or not seqs or hidden is None:
            return no_trees(len(seqs))
        builder = BeamBuilder(len(seqs), width)
        nodes, parents = self._offer(builder, hidden[: len(seqs), None])
        fed, above = nodes, parents
        for layer in range(1, depth):
            hidden = self._feed(seqs, fed, above, layer)
            nodes, parents = self._offer(builder, hidden)
            fed = np.concatenate([fed, nodes], axis=1)
            above = np.concatenate([above, parents], axis=1)
        return builder.trees()

    def settle(self, seqs: Sequence[int], accepted: Ints, path: Ints) -> None:
        """Keep the entries of accepted nodes: ``accepted`` ``[n]``, ``path`` ``[n, depth]``."""
        for seq, count, columns in zip(seqs, accepted, path, strict=True):
            kept = min(int(count), self._fed_layers)
            drafted = self._drafted.get(seq)
            if drafted is None or not kept:
                continue
            if self._width > 1:
                rows = [int(column) for column in columns[:kept]]
                self.model.cache.keep(drafted.pages.table, drafted.valid, rows)
            drafted.valid += kept

    def _read(
        self, tokens: Mapping[int, Sequence[int]], seqs: Sequence[int]
    ) -> torch.Tensor | None:
        """Feed what the draft has not seen; hidden states ``[n, h]`` of the last tokens."""
        items: list[StepItem] = []
        fed: list[int] = []
        for seq in seqs:
            drafted = self._of(seq)
            # The root is fed again where the draft has seen it: its prediction is wanted.
            start = min(drafted.valid, len(tokens[seq]) - 1)
            new = tokens[seq][start:]
            items.append(self._item(drafted, start, len(new)))
            fed.extend(new)
            drafted.valid = len(tokens[seq])
        if not items:
            return None
        hidden = self._forward(items, fed)
        ends = np.cumsum([item.rows for item in items]) - 1
        return hidden[torch.from_numpy(ends)]

    def _feed(self, seqs: Sequence[int], nodes: Ints, above: Ints, layer: int) -> torch.Tensor:
        """Hidden states ``[n, width, h]`` of the last layer of ``nodes`` ``[n, layer * width]``."""
        items = []
        for i, seq in enumerate(seqs):
            drafted = self._drafted[seq]
            if self._width == 1:
                items.append(self._item(drafted, drafted.valid + layer - 1, 1))
            else:
                tree = TokenTree.of(above[i].tolist())
                items.append(self._item(drafted, drafted.valid, nodes.shape[1], tree))
        fed = nodes[:, -1:] if self._width == 1 else nodes
        hidden = self._forward(items, fed.reshape(-1).tolist())
        hidden = hidden.view(len(seqs), fed.shape[1], -1)
        return hidden[:, -self._width :]

    def _offer(self, builder: BeamBuilder, hidden: torch.Tensor) -> tuple[Ints, Ints]:
        """Add a layer below nodes with ``hidden`` ``[n, nodes, h]``: its tokens and parents."""
        logits = self.model.head(hidden.reshape(-1, hidden.shape[-1]))[:, : self._vocab_size]
        best, ids = logits.float().log_softmax(dim=-1).topk(min(CHILDREN, self._vocab_size))
        shape = (hidden.shape[0], hidden.shape[1], -1)
        children = ids.cpu().numpy().reshape(shape)
        depth = builder.depth
        slot, rank = builder.add_layer(best.double().cpu().numpy().reshape(shape), children)
        nodes: Ints = children[np.arange(len(slot))[:, None], slot, rank]
        parents = slot + (depth - 1) * self._width if depth else np.full_like(slot, -1)
        return nodes, parents

    def _of(self, seq: int) -> _Drafted:
        drafted = self._drafted.get(seq)
        if drafted is None:
            model = self.model
            pages = SequencePages(model.pool, model.cache.layout.page_size, model.start, model.end)
            drafted = self._drafted[seq] = _Drafted(pages)
        return drafted

    def _item(
        self, drafted: _Drafted, context: int, rows: int, tree: TokenTree | None = None
    ) -> StepItem:
        try:
            drafted.pages.reserve(context + rows)
        except OutOfPages as error:
            raise WorkerFault(f"the draft model: {error}") from error
        return StepItem(rows, context, drafted.pages.table, self.model.start, self.model.end, tree)

    def _forward(self, items: Sequence[StepItem], tokens: Sequence[int]) -> torch.Tensor:
        # Unused ids of a padded vocabulary may be missing here.
        fed = torch.tensor(tokens).clamp_(max=self.model.config.shape.vocab_size - 1)
        return self.model.forward(StepInput(items, tokens=fed))
