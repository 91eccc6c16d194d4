"""One engine in virtual time whose decode steps yield several tokens a request.

The life of a request: it arrives, waits for a slot, its prompt runs (in chunks beside the
decodes, or alone), the step that ends the prompt yields the first token, and each decode step
yields the accepted draft tokens and one of the target's own, until its output is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import numpy as np

from penstock.errors import InputError
from penstock.measure.run import STATUS, RequestTable, Run
from penstock.policy.speculation.batching import SlotBatch, SlotBatcher, SlotRules
from penstock.policy.speculation.latency import StepLatency
from penstock.policy.speculation.slo import TpotLimit
from penstock.policy.speculation.speculator import DecodeView, Speculator
from penstock.policy.speculation.trees import Ints, Mask
from penstock.policy.speculation.verification import verify
from penstock.sim.speculation.acceptance import AcceptanceModel, Floats
from penstock.sim.speculation.drafting import draft
from penstock.sim.speculation.log import StepLog, TokenLog
from penstock.spec.workload import Request

FINISHED, RUNNING, QUEUED, REJECTED = (
    STATUS.index(name) for name in ("finished", "running", "queued", "rejected")
)


@dataclass(frozen=True)
class SpeculativeEngine:
    """What the engine is made of.

    ``max_model_len`` bounds prompt and output of a request together.
    """

    latency: StepLatency
    acceptance: AcceptanceModel
    slots: SlotRules
    max_model_len: int = 2048


@dataclass(frozen=True)
class SpeculationRun:
    """``run`` in the one schema; ``steps`` and ``decode_s`` hold what speculation adds.

    ``decode_s`` ``[r]`` is the time from the first token to the last; ``tpot_limit_s`` ``[r]``
    the limit of each request, ``attained`` whether decode_s / output tokens is within it (the
    published rule: the prompt's token counts, TTFT does not).
    """

    run: Run
    steps: StepLog
    decode_s: Floats
    tpot_limit_s: Floats

    @property
    def finished(self) -> Mask:
        return np.asarray(self.run.requests.status == FINISHED)

    @property
    def attained(self) -> Mask:
        tokens = np.maximum(1, self.run.requests.generated_tokens)
        return np.asarray(self.finished & (self.decode_s / tokens <= self.tpot_limit_s))


def simulate_speculation(
    engine: SpeculativeEngine,
    requests: Sequence[Request],
    limits: dict[str, TpotLimit],
    baseline_s: float,
    speculator: Speculator,
    *,
    seed: int = 0,
    name: str = "speculation",
    header: dict[str, object] | None = None,
) -> SpeculationRun:
    """Serve ``requests`` (ascending arrivals) to the end.

    ``limits`` by class name; a class without one is best effort. ``baseline_s`` is the time
    per token at near-zero load, to which relative limits refer. A request that exceeds
    ``max_model_len`` is rejected and counted. Raises ``InputError`` for unsorted requests.
    """
    if any(b.arrival_s < a.arrival_s for a, b in pairwise(requests)):
        raise InputError("the requests are not sorted by arrival; sort them")
    state = _State(engine, requests, limits, baseline_s, seed)
    now = 0.0
    while True:
        state.arrive(now)
        batch = state.batcher.next_batch()
        if batch is None:
            if state.arrived == len(requests):
                break
            now = requests[state.arrived].arrival_s
            continue
        now = state.step(batch, speculator, now)
    return state.result(name, header or {}, seed, now)


@dataclass
class _Columns:
    """What is known of each request, by row."""

    requests: Sequence[Request]
    first_s: Floats = field(init=False)
    last_s: Floats = field(init=False)
    admitted_s: Floats = field(init=False)
    tokens: Ints = field(init=False)
    output: Ints = field(init=False)
    status: Ints = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.requests)
        self.first_s = np.full(n, np.nan)
        self.last_s = np.full(n, np.nan)
        self.admitted_s = np.full(n, np.nan)
        self.tokens = np.zeros(n, np.int64)
        self.output = np.array([r.output_tokens for r in self.requests], np.int64)
        self.status = np.full(n, QUEUED)


class _State:
    def __init__(
        self,
        engine: SpeculativeEngine,
        requests: Sequence[Request],
        limits: dict[str, TpotLimit],
        baseline_s: float,
        seed: int,
    ) -> None:
        self.engine = engine
        self.requests = requests
        self.column = _Columns(requests)
        self.batcher = SlotBatcher(engine.slots)
        self.steps = StepLog()
        self.log = TokenLog()
        self.arrived = 0
        self.active = np.zeros(0, np.int64)
        names = tuple(dict.fromkeys(request.class_name for request in requests))
        self.class_names = names
        kinds = {class_name: i for i, class_name in enumerate(names)}
        self.kind = np.array([kinds[request.class_name] for request in requests], np.int64)
        found = [limits.get(class_name, TpotLimit()) for class_name in names]
        seconds = np.array([limit.seconds(baseline_s) for limit in found] or [inf])
        relative = np.array([limit.relative for limit in found] or [False])
        self.tpot_s = seconds[self.kind] if len(requests) else np.zeros(0)
        self.relative = relative[self.kind] if len(requests) else np.zeros(0, bool)
        draws, verdicts = np.random.SeedSequence([seed, 0x5BEC]).spawn(2)
        self.draws = np.random.default_rng(draws)
        self.verdicts = np.random.default_rng(verdicts)
        self.means = np.array(
            [engine.acceptance.mean_of(r.class_name, self.draws) for r in requests]
        )

    def arrive(self, now: float) -> None:
        """Take in everything that has arrived by ``now`` and fill the slots."""
        requests = self.requests
        while self.arrived < len(requests) and requests[self.arrived].arrival_s <= now:
            row = self.arrived
            request = requests[row]
            self.arrived += 1
            if request.prompt_tokens + request.output_tokens > self.engine.max_model_len:
                self.column.status[row] = REJECTED
                continue
            self.batcher.add(row, request.prompt_tokens)
        for row in self.batcher.admit():
            self.column.admitted_s[row] = now
            self.column.status[row] = RUNNING

    def view(self, rows: Ints, now: float, prefill_tokens: int = 0) -> DecodeView:
        column = self.column
        return DecodeView(
            now - column.first_s[rows],
            column.tokens[rows],
            self.tpot_s[rows],
            self.relative[rows],
            self.kind[rows],
            prefill_tokens,
            self.batcher.occupancy,
        )

    def step(self, batch: SlotBatch, speculator: Speculator, now: float) -> float:
        """Run one step; return when it ends."""
        prefill_tokens = batch.prefill_tokens
        if batch.decode:
            end = self._decode(prefill_tokens, speculator, now)
        else:
            target_s = self.engine.latency.target_s(prefill_tokens)
            end = now + target_s
            self.steps.add(end, 0.0, target_s, prefill_tokens=prefill_tokens)
        done = self.batcher.commit(batch)
        if done:
            self._first_tokens(np.array(done, np.int64), end)
        return end

    def _first_tokens(self, rows: Ints, end: float) -> None:
        column = self.column
        column.first_s[rows] = end
        column.tokens[rows] = 1
        self.log.add(rows, np.ones(len(rows), np.int64), end)
        self.active = np.concatenate([self.active, rows])
        self._finish(rows[column.output[rows] <= 1], end)

    def _decode(self, prefill_tokens: int, speculator: Speculator, now: float) -> float:
        view = self.view(self.active, now, prefill_tokens)
        plan = speculator.plan(view)
        rows = self.active
        if plan.joins is not None:
            rows = rows[plan.joins]
            view = self.view(rows, now, prefill_tokens)
        drawn = draft(self.engine.acceptance, self.means[rows], plan, self.draws)
        selection = speculator.choose(view, drawn.trees)
        verdict = verify(drawn.trees, selection.selected, drawn.choices(self.verdicts))
        speculator.observe(view, drawn.trees, selection, verdict.path)
        nodes = selection.nodes
        latency = self.engine.latency
        draft_s = latency.draft_s(plan.depth)
        target_s = latency.target_s(prefill_tokens + len(rows) + nodes)
        end = now + draft_s + target_s
        column = self.column
        before = column.tokens[rows]
        after = np.minimum(before + verdict.accepted + 1, column.output[rows])
        column.tokens[rows] = after
        gained = after - before
        self.log.add(rows, gained, end)
        self.steps.add(
            end,
            draft_s,
            target_s,
            depth=plan.depth,
            requests=len(rows),
            nodes=nodes,
            prefill_tokens=prefill_tokens,
            generated=int(gained.sum()),
        )
        self._finish(rows[after >= column.output[rows]], end)
        return end

    def _finish(self, rows: Ints, end: float) -> None:
        if not len(rows):
            return
        column = self.column
        column.last_s[rows] = end
        column.status[rows] = FINISHED
        self.active = self.active[column.status[self.active] == RUNNING]
        self.batcher.finish(len(rows))

    def result(self, name: str, header: dict[str, object], seed: int, end: float) -> SpeculationRun:
        column, requests = self.column, self.requests
        n = len(requests)
        table = RequestTable(
            id=np.array([r.id for r in requests], np.int64),
            arrival_s=np.array([r.arrival_s for r in requests]),
            admitted_s=column.admitted_s,
            first_token_s=column.first_s,
            last_token_s=column.last_s,
            prompt_tokens=np.array([r.prompt_tokens for r in requests], np.int64),
            output_tokens=column.output,
            generated_tokens=column.tokens,
            status=column.status.astype(np.int8),
            preemptions=np.zeros(n, np.int32),
            class_index=self.kind.astype(np.int16),
            route_index=np.zeros(n, np.int32),
        )
        run = Run(
            name=name,
            header={"kind": "simulated", "seed": seed, **header},
            window_s=(0.0, end),
            requests=table,
            tokens=self.log.tables(n),
            routes=(("engine",),),
            class_names=self.class_names,
            counters={
                "steps": len(self.steps),
                "rejected": int(np.count_nonzero(column.status == REJECTED)),
            },
        )
        decode_s = np.nan_to_num(column.last_s - column.first_s)
        return SpeculationRun(run, self.steps, decode_s, self.tpot_s)
