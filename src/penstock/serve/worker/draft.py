"""A draft model beside the target: grows candidate trees, and keeps its KV entries in step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.policy.speculation.trees import (
    BeamBuilder,
    CandidateTrees,
    Ints,
    Mask,
    chain_trees,
    no_trees,
)
from penstock.serve.model import (
    LayerSlice,
    OutOfPages,
    SequencePages,
    StepInput,
    StepItem,
)
from penstock.serve.worker.draft_pass import ROOT_ROWS, DraftPasses
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

    Each pass feeds the nodes of one more layer (``draft_pass.py``).
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

    @property
    def capacity_tokens(self) -> int:
        """KV entries that are free, in tokens of all layers."""
        layers = self.model.end - self.model.start
        return self.model.pool.free // layers * self.model.cache.layout.page_size

    def room(self, tokens: Mapping[int, Sequence[int]], seqs: Iterable[int]) -> int:
        """Positions of the model that the longest of ``seqs`` leaves."""
        longest = max((len(tokens[seq]) for seq in seqs), default=0)
        return self.model.config.shape.max_position_embeddings - longest

    @torch.inference_mode()
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
        if not depth or not seqs:
            self._read(tokens, prompts)
            return no_trees(len(seqs))
        # What the draft missed, but for the tokens that the first pass runs.
        self._read(tokens, prompts, [seq for seq in seqs if self._lags(tokens, seq)])
        passes = self._passes(tokens, seqs, (depth - 1) * width)
        ends = [token for seq in seqs for token in tokens[seq][-ROOT_ROWS:]]
        hidden = passes.root(self._known(ends))
        for seq in seqs:
            self._drafted[seq].valid = len(tokens[seq])
        grow = self._chain if width == 1 else self._tree
        return grow(passes, hidden, depth)

    def _chain(self, passes: DraftPasses, hidden: torch.Tensor, depth: int) -> CandidateTrees:
        """Chains stay on the device: the most likely token is the next one fed."""
        logs: list[torch.Tensor] = []
        found: list[torch.Tensor] = []
        for layer in range(depth):
            if layer:
                hidden = passes.layer(found[-1], layer - 1, None)[:, 0]
            logits = self._logits(hidden)
            best, token = logits.max(dim=-1)
            logs.append(best - logits.logsumexp(dim=-1))
            found.append(token)
        log_prob = torch.stack(logs, dim=1).double().cpu().numpy()
        return chain_trees(log_prob, torch.stack(found, dim=1).cpu().numpy())

    def _tree(self, passes: DraftPasses, hidden: torch.Tensor, depth: int) -> CandidateTrees:
        width = self._width
        builder = BeamBuilder(len(hidden), width)
        slot, nodes = self._offer(builder, hidden[:, None])
        own = np.broadcast_to(np.eye(width, dtype=np.bool_), (len(hidden), width, width))
        ancestry: Mask = own
        for layer in range(depth - 1):
            if layer:
                above = np.take_along_axis(ancestry, slot[:, :, None], axis=1)
                ancestry = np.concatenate((above, own), axis=2)
            fed = torch.from_numpy(nodes.reshape(-1)).to(self.model.device)
            slot, nodes = self._offer(builder, passes.layer(fed, layer, ancestry))
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

    def _lags(self, tokens: Mapping[int, Sequence[int]], seq: int) -> bool:
        return self._of(seq).valid < len(tokens[seq]) - ROOT_ROWS

    def _read(
        self,
        tokens: Mapping[int, Sequence[int]],
        prompts: Sequence[int],
        lagging: Sequence[int] = (),
    ) -> None:
        """Feed what the draft has not seen; of ``lagging`` the last ``ROOT_ROWS`` wait."""
        items: list[StepItem] = []
        fed: list[int] = []
        ends = [(seq, len(tokens[seq])) for seq in prompts]
        ends += [(seq, len(tokens[seq]) - ROOT_ROWS) for seq in lagging]
        for seq, end in ends:
            drafted = self._of(seq)
            if drafted.valid < end:
                items.append(self._item(drafted, drafted.valid, end - drafted.valid))
                fed.extend(tokens[seq][drafted.valid : end])
                drafted.valid = end
        if items:
            self.model.forward(StepInput(items, tokens=self._known(fed)))

    def _passes(
        self, tokens: Mapping[int, Sequence[int]], seqs: Sequence[int], nodes: int
    ) -> DraftPasses:
        tables = []
        for seq in seqs:
            self._reserve(self._drafted[seq], len(tokens[seq]) + nodes)
            tables.append(self._drafted[seq].pages.table)
        lengths = np.array([len(tokens[seq]) for seq in seqs], np.int64)
        return DraftPasses(self.model, tables, lengths, nodes)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.head(hidden)[:, : self._vocab_size].float()

    def _offer(self, builder: BeamBuilder, hidden: torch.Tensor) -> tuple[Ints, Ints]:
        """Add a layer below nodes with ``hidden`` ``[n, nodes, h]``: its parents' places in their
        layer, and its tokens, both ``[n, width]``."""
        logits = self._logits(hidden.reshape(-1, hidden.shape[-1]))
        best, ids = logits.topk(min(CHILDREN, self._vocab_size))
        best = best - logits.logsumexp(dim=-1, keepdim=True)
        shape = (hidden.shape[0], hidden.shape[1], -1)
        children = ids.cpu().numpy().reshape(shape)
        slot, rank = builder.add_layer(best.double().cpu().numpy().reshape(shape), children)
        nodes: Ints = children[np.arange(len(slot))[:, None], slot, rank]
        return slot, nodes

    def _of(self, seq: int) -> _Drafted:
        drafted = self._drafted.get(seq)
        if drafted is None:
            model = self.model
            pages = SequencePages(model.pool, model.cache.layout.page_size, model.start, model.end)
            drafted = self._drafted[seq] = _Drafted(pages)
        return drafted

    def _item(self, drafted: _Drafted, context: int, rows: int) -> StepItem:
        self._reserve(drafted, context + rows)
        return StepItem(rows, context, drafted.pages.table, self.model.start, self.model.end)

    def _reserve(self, drafted: _Drafted, entries: int) -> None:
        try:
            drafted.pages.reserve(entries)
        except OutOfPages as error:
            raise WorkerFault(f"the draft model: {error}") from error

    def _known(self, tokens: Sequence[int]) -> torch.Tensor:
        # Unused ids of a padded vocabulary may be missing here.
        known = torch.tensor(tokens).clamp_(max=self.model.config.shape.vocab_size - 1)
        return known.to(self.model.device)
