"""A whole model with a draft model beside it: steps that yield several tokens a sequence.

What is drafted and verified is decided by ``policy/speculation``, with the latency of the two
models as it was measured when they were loaded. Tokens are those of decoding one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from penstock.errors import InputError
from penstock.policy.speculation.make import make_speculator
from penstock.policy.speculation.speculator import DecodeView, Speculator
from penstock.policy.speculation.trees import CandidateTrees, Mask
from penstock.policy.speculation.verification import Verdict, verify
from penstock.serve.model import (
    Draw,
    LayerSlice,
    StepInput,
    StepItem,
    TokenTree,
    load_slice,
    read_checkpoint,
    sample,
)
from penstock.serve.model.sampler import tree_draws
from penstock.serve.pool import WorkerSpec
from penstock.serve.protocol import TokenLogprobs
from penstock.serve.wire import Command, Decoding, Drawn, Free, Verified
from penstock.serve.worker.draft import DraftModel
from penstock.serve.worker.executor import Buffer, Job, Outcome, PageCount, Work, WorkerFault
from penstock.serve.worker.speculation_latency import measure
from penstock.serve.worker.torch_executor import TorchExecutor


class SpeculativeExecutor:
    """An ``Executor`` over a target with all layers of its model."""

    def __init__(
        self,
        target: TorchExecutor,
        draft: DraftModel,
        speculator: Speculator,
        baseline_s: float,
    ) -> None:
        """``baseline_s``: a decode step of one sequence alone; relative limits are multiples."""
        self._baseline_s = baseline_s
        self._target = target
        self._draft = draft
        self._speculator = speculator
        self._tokens: dict[int, list[int]] = {}
        self.layout = target.layout

    @classmethod
    def load(cls, spec: WorkerSpec) -> SpeculativeExecutor:
        """Load both models and measure them. Raises ``InputError``."""
        settings = spec.speculation
        assert settings is not None
        if spec.start_layer or spec.end_layer != spec.num_layers:
            raise InputError(
                f"worker {spec.name!r} holds layers [{spec.start_layer}, {spec.end_layer}) of "
                f"{spec.num_layers}; speculation needs engines of one stage"
            )
        if spec.tensor_parallel_size > 1:
            raise InputError(f"worker {spec.name!r}: speculation needs tensor_parallel_size 1 here")
        if not Path(settings.draft_model).is_dir():
            raise InputError(
                f"the draft model must be the folder of a checkpoint (got "
                f"{settings.draft_model!r}); set speculation.draft_model"
            )
        target = TorchExecutor.load(spec)
        tokens = spec.num_pages // spec.num_layers
        model = _load_draft(settings.draft_model, spec, tokens)
        draft = DraftModel(model, target.model.config.shape.vocab_size)
        latency = measure(target.model, draft)
        return cls(target, draft, make_speculator(settings, latency), latency.target_s(1))

    # -- what a target does alone -------------------------------------------------------------

    def apply(self, command: Command) -> None:
        self._target.apply(command)
        if isinstance(command, Free):
            self._draft.free(command.seq)
            self._tokens.pop(command.seq, None)

    def pages_missing(self, jobs: Sequence[Job]) -> int:
        return self._target.pages_missing(jobs)

    def pages(self) -> PageCount:
        return self._target.pages()

    def export_layer(self, seq: int, layer: int, tokens: int) -> Buffer:
        return self._target.export_layer(seq, layer, tokens)

    def load_layer(self, seq: int, layer: int, tokens: int, content: Buffer) -> None:
        self._target.load_layer(seq, layer, tokens, content)

    def close(self) -> None:
        self._target.close()

    # -- steps --------------------------------------------------------------------------------

    def run(self, work: Work) -> Outcome:
        started_s = perf_counter()
        for job in work.jobs:
            self._note(job)
        verified: Verified | None = None
        if work.decoding is None:
            prompts = [job.seq for job in work.jobs]
            self._draft.grow(self._tokens, (), prompts, depth=0, width=1)
            drawn = self._target.run(work).drawn
        else:
            drawn, verified = self._decode(work.jobs, work.decoding)
        for one in drawn:
            self._tokens[one.seq].extend(one.tokens)
        return Outcome(None, drawn, perf_counter() - started_s, verified=verified)

    def _note(self, job: Job) -> None:
        """Keep the tokens of a sequence: the draft reads them when it needs them."""
        tokens = self._tokens.setdefault(job.seq, [])
        if len(tokens) < job.context:
            raise WorkerFault(f"sequence {job.seq} has tokens that its draft model never saw")
        del tokens[job.context :]
        tokens.extend(job.tokens)

    def _decode(
        self, jobs: Sequence[Job], decoding: Decoding
    ) -> tuple[tuple[Drawn, ...], Verified]:
        view = _view(decoding, self._baseline_s)
        plan = self._speculator.plan(view)
        most = np.array(decoding.most)
        seqs = np.array(decoding.seqs)
        if plan.joins is not None:
            seqs, most, view = seqs[plan.joins], most[plan.joins], _part(view, plan.joins)
        by_seq = {job.seq: job for job in jobs}
        decodes = [by_seq[int(seq)] for seq in seqs]
        here = set(decoding.seqs)
        prompts = [job for job in jobs if job.seq not in here]
        depth = min(plan.depth, int(most.max()) - 1, self._draft.room(self._tokens, seqs))
        if depth <= 0:
            return self._target.run(Work([*decodes, *prompts])).drawn, Verified(0, 0, 0)
        trees = self._draft.grow(
            self._tokens,
            [job.seq for job in decodes],
            [job.seq for job in prompts],
            depth=depth,
            width=plan.width,
        )
        selection = self._speculator.choose(view, trees)
        # The last token of an output needs no draft.
        useful = np.arange(trees.parent.shape[1]) // trees.width + 1 < most[:, None]
        selection = replace(selection, selected=selection.selected & useful)
        step = _Verification(self._target, trees, selection.selected, decodes, prompts)
        verdict, drawn = step.run()
        self._speculator.observe(view, trees, selection, verdict.path)
        self._draft.settle([job.seq for job in decodes], verdict.accepted, verdict.path)
        drafts = int(selection.selected.any(axis=1).sum())
        count = int(selection.selected.sum())
        return drawn, Verified(drafts, count, int(verdict.accepted.sum()))


class _Verification:
    """One step of the target over the selected nodes of all trees, and over prompts."""

    def __init__(
        self,
        target: TorchExecutor,
        trees: CandidateTrees,
        selected: Mask,
        decodes: Sequence[Job],
        prompts: Sequence[Job],
    ) -> None:
        self._target = target
        self._trees = trees
        self._selected = selected
        self._decodes = decodes
        self._prompts = prompts
        self._columns = [np.flatnonzero(row) for row in selected]

    def run(self) -> tuple[Verdict, tuple[Drawn, ...]]:
        items, tokens, draws, rows = self._prepare()
        model = self._target.model
        hidden = model.forward(StepInput(items, tokens=torch.tensor(tokens)))
        found = sample(model.head(hidden[torch.tensor(rows, dtype=torch.int64)]), draws)
        choices = np.full((len(self._decodes), 1 + self._selected.shape[1]), -1, np.int64)
        at = 0
        starts: list[int] = []
        for i, columns in enumerate(self._columns):
            starts.append(at)
            chosen = found.tokens[at : at + 1 + len(columns)]
            choices[i, [0, *(columns + 1)]] = chosen
            at += len(chosen)
        verdict = verify(self._trees, self._selected, choices)
        drawn = [
            self._accept(i, verdict, starts[i], found.logprobs) for i in range(len(self._decodes))
        ]
        ends = [job for job in self._prompts if job.draw]
        for job, token, logs in zip(ends, found.tokens[at:], found.logprobs[at:], strict=True):
            self._target.drawing.state(job.seq).take((token,))
            drawn.append(Drawn(job.seq, (token,), _wire_logs([logs])))
        return verdict, tuple(drawn)

    def _prepare(self) -> tuple[list[StepItem], list[int], list[Draw], list[int]]:
        """Items, their tokens, what is drawn, and the rows it is drawn from."""
        items: list[StepItem] = []
        tokens: list[int] = []
        draws: list[Draw] = []
        rows: list[int] = []
        drawing = self._target.drawing
        for i, job in enumerate(self._decodes):
            columns = self._columns[i]
            row_of = {-1: 0, **{int(column): 1 + j for j, column in enumerate(columns)}}
            parents = [-1, *(row_of[int(self._trees.parent[i, column])] for column in columns)]
            fed = [job.tokens[0], *(int(self._trees.token[i, column]) for column in columns)]
            # Rows of a chain see those before them, as those of a prompt do.
            chain = parents == list(range(-1, len(columns)))
            tree = None if chain else TokenTree.of(parents)
            items.append(self._target.item(job, len(fed), tree))
            draws.extend(tree_draws(drawing.state(job.seq).draw(), fed, parents))
            rows.extend(range(len(tokens), len(tokens) + len(fed)))
            tokens.extend(fed)
        for job in self._prompts:
            items.append(self._target.item(job, len(job.tokens)))
            tokens.extend(job.tokens)
            if job.draw:
                draws.append(drawing.state(job.seq).draw())
                rows.append(len(tokens) - 1)
        return items, tokens, draws, rows

    def _accept(
        self, i: int, verdict: Verdict, start: int, logs: Sequence[TokenLogprobs | None]
    ) -> Drawn:
        """Keep the accepted path of a tree and its KV entries."""
        job, columns = self._decodes[i], self._columns[i]
        path = verdict.path[i, : verdict.accepted[i]]
        kept = [0, *(1 + int(np.searchsorted(columns, column)) for column in path)]
        if kept[-1] >= len(kept):
            table = self._target.sequence(job.seq).table
            self._target.model.cache.keep(table, job.context, kept)
        new = (*(int(token) for token in self._trees.token[i, path]), int(verdict.next_token[i]))
        self._target.drawing.state(job.seq).take(new)
        return Drawn(job.seq, new, _wire_logs([logs[start + row] for row in kept]))


def _wire_logs(
    logs: Sequence[TokenLogprobs | None],
) -> tuple[tuple[float, tuple[tuple[int, float], ...]], ...]:
    return tuple((entry.logprob, entry.top) for entry in logs if entry is not None)


def _view(decoding: Decoding, baseline_s: float) -> DecodeView:
    relative = np.array(decoding.relative)
    return DecodeView(
        np.array(decoding.decode_s),
        np.array(decoding.tokens),
        np.array(decoding.tpot) * np.where(relative, baseline_s, 1.0),
        relative,
        np.array(decoding.kind),
        decoding.prefill_tokens,
        decoding.occupancy,
    )


def _part(view: DecodeView, rows: Mask) -> DecodeView:
    return DecodeView(
        view.decode_s[rows],
        view.tokens[rows],
        view.tpot_s[rows],
        view.relative[rows],
        view.kind[rows],
        view.prefill_tokens,
        view.occupancy,
    )


def _load_draft(folder: str, spec: WorkerSpec, pages_per_layer: int) -> LayerSlice:
    """The draft with as many KV entries as the target.

    On a CPU it computes in float32: few rows of a small model run faster so than in bfloat16.
    """
    checkpoint = read_checkpoint(folder)
    return load_slice(
        checkpoint,
        dtype="float32" if spec.device == "cpu" else spec.dtype,
        device=spec.device,
        num_pages=pages_per_layer * checkpoint.config.num_layers,
        page_size=spec.page_size,
    )
