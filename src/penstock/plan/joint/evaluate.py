"""What a candidate does with the traffic: memory, replays of what hangs together, one score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.plan.joint.book import Kind, Row
from penstock.plan.joint.kernel import compiled_replay
from penstock.plan.joint.layout import Candidate, Group, kind_of
from penstock.plan.joint.problem import BLOCK_SIZE, UNASKED_TOKENS, JointProblem
from penstock.plan.joint.state import (
    EARLIEST_DEADLINE,
    FIRST_COME,
    NO_LIMIT,
    ROUND_ROBIN,
    Engines,
    Floats,
    Requests,
)

RULES = {
    "earliest-deadline": EARLIEST_DEADLINE,
    "round-robin": ROUND_ROBIN,
    "first-come": FIRST_COME,
}
LATENCY_WEIGHT = 1e-3
MOST_NORM = 2.0
Loads = Mapping[tuple[int, int, Group], float]
"""Seconds until (model, form, group) is loaded; 0 for what is not named."""


@dataclass(frozen=True)
class Outcome:
    """``good``, ``seconds`` and ``slow`` [models]: requests within their limits, sum of latencies
    of those that end, sum of latencies as shares of what is allowed (2 at most, and for those
    that never end). ``busy`` [groups] seconds of service of the whole group."""

    good: NDArray[np.int64]
    seconds: Floats
    slow: Floats
    busy: Floats

    def attainment(self, requests: int) -> float:
        return float(self.good.sum()) / requests if requests else 1.0

    def score(self, requests: int) -> float:
        """Attainment; among equals the shorter latencies."""
        if not requests:
            return 1.0
        return self.attainment(requests) - LATENCY_WEIGHT * float(self.slow.sum()) / requests


_Part = tuple[NDArray[np.int64], Floats, Floats, Floats]
_Key = tuple[object, ...]


@dataclass
class Evaluator:
    """Scores candidates of one problem. ``replays`` counts the requests replayed.

    Groups that share no model do not affect each other: each such part of a candidate is replayed
    once, however many candidates have it.
    """

    problem: JointProblem
    load_s: Callable[[int, int, Group], float] | None = None
    replay: Callable[..., None] = field(default_factory=compiled_replay)
    replays: int = 0
    _known: dict[_Key, _Part] = field(default_factory=dict)
    _kinds: dict[Group, Kind] = field(default_factory=dict)
    _rows: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    # -- memory -------------------------------------------------------------------------------

    def kind(self, group: Group) -> Kind:
        found = self._kinds.get(group)
        if found is None:
            found = self._kinds[group] = kind_of(group, self.problem.question.cluster)
        return found

    def row(self, model: int, form: int, group: Group) -> Row | None:
        return self.problem.book.row(self.problem.forms[model][form].spec, self.kind(group))

    def need_tokens(self, model: int, row: Row) -> int:
        """KV memory an engine must have: that of the longest request, if it fits at all.

        A block where nothing is asked of the model.
        """
        if not self.problem.asked[model]:
            return BLOCK_SIZE
        blocks = -(-int(self.problem.longest[model]) // BLOCK_SIZE) * BLOCK_SIZE
        return min(blocks, row.kv_tokens)

    def fits(self, group: Group, models: Sequence[int], forms: Sequence[int]) -> bool:
        """Whether weights and one longest request of each of ``models`` fit ``group``."""
        room, used = np.inf, 0.0
        for m in models:
            row = self.row(m, forms[m], group)
            if row is None:
                return False
            room = min(room, row.room_bytes)
            used += row.weight_bytes + self.need_tokens(m, row) * row.token_bytes
        return used <= room

    def kv_tokens(self, candidate: Candidate, g: int) -> list[int]:
        """KV tokens of the engines of group ``g``, in the order it holds them.

        What weights leave is divided by expected load, above one longest request of each; models
        without requests get what ``UNASKED_TOKENS`` take, if that is not more than their part.
        """
        problem, group = self.problem, candidate.groups[g]
        rows = [self.row(m, candidate.forms[m], group) for m in candidate.held[g]]
        found = [row for row in rows if row is not None]
        left = min(row.room_bytes for row in found) - sum(row.weight_bytes for row in found)
        needs, wants = [], []
        for m, row in zip(candidate.held[g], found, strict=True):
            needs.append(self.need_tokens(m, row) * row.token_bytes)
            tokens = problem.mean_prompt[m] + problem.mean_output[m] / 2
            load = problem.asked[m] * tokens * problem.mean_output[m]
            wants.append(load * row.token_bytes / max(1, len(candidate.homes(m))))
        part = max(0.0, left - sum(needs)) / len(found)
        for i, (m, row) in enumerate(zip(candidate.held[g], found, strict=True)):
            if not problem.asked[m]:
                needs[i] += min(UNASKED_TOKENS * row.token_bytes, part)
        # What is held already may have been made for shorter requests.
        needs = [need * min(1.0, left / sum(needs)) for need in needs]
        spare = max(0.0, left - sum(needs))
        total = sum(wants)
        tokens_of = []
        for row, need, want in zip(found, needs, wants, strict=True):
            share = want / total if total else 1 / len(found)
            tokens = int((need + spare * share) / row.token_bytes * (1 + 1e-12))
            tokens_of.append(min(row.kv_tokens, tokens) // BLOCK_SIZE * BLOCK_SIZE)
        return tokens_of

    # -- replay -------------------------------------------------------------------------------

    def __call__(self, candidate: Candidate) -> Outcome:
        models = len(self.problem.models)
        good = np.zeros(models, dtype=np.int64)
        seconds, slow = np.zeros(models), np.zeros(models)
        busy = np.zeros(len(candidate.groups))
        lost = self.problem.sampled.copy()
        for groups in together(candidate):
            held = sorted({m for g in groups for m in candidate.held[g]})
            part = self._part(candidate, groups, held)
            good[held], seconds[held], slow[held], busy[groups] = part
            lost[held] = 0
        slow += MOST_NORM * lost
        return Outcome(good, seconds, slow, busy)

    def score(self, candidate: Candidate) -> float:
        return self(candidate).score(self.problem.traffic.num_requests)

    def _part(self, candidate: Candidate, groups: list[int], models: list[int]) -> _Part:
        # Equal groups may change places: the key has shapes and what they hold, in a fixed order.
        load_s = self.load_s
        entries = []
        for g in groups:
            group, held = candidate.groups[g], candidate.held[g]
            ready: tuple[float, ...] = ()
            if load_s is not None:
                ready = tuple(load_s(m, candidate.forms[m], group) for m in held)
            kind = self.kind(group)
            entries.append(((-kind.gpus, kind.gpu, kind.tensor), held, ready, g))
        entries.sort()
        key: _Key = (
            tuple(entry[:3] for entry in entries),
            tuple(candidate.forms[m] for m in models),
        )
        order = [entry[3] for entry in entries]
        found = self._known.get(key)
        if found is None:
            ready_of = {entry[3]: entry[2] for entry in entries}
            found = self._known[key] = self._replay(candidate, order, models, ready_of)
        good, seconds, slow, busy = found
        by_group = dict(zip(order, busy.tolist(), strict=True))
        return good, seconds, slow, np.array([by_group[g] for g in groups])

    def _replay(
        self,
        candidate: Candidate,
        groups: list[int],
        models: list[int],
        ready_of: Mapping[int, tuple[float, ...]],
    ) -> _Part:
        problem = self.problem
        rows = self._rows_of(models)
        traffic = problem.traffic
        local = np.full(len(problem.models), -1, dtype=np.int64)
        local[models] = np.arange(len(models))
        which = local[traffic.model[rows]]
        requests = Requests(
            traffic.arrival[rows],
            traffic.deadline[rows],
            traffic.later[rows],
            which,
            traffic.prompt[rows],
            traffic.output[rows],
            traffic.ttft[rows],
            traffic.tpot[rows],
            traffic.e2e[rows],
        )
        engines = self._engines(candidate, groups, models, ready_of)
        first, finish = np.empty(len(rows)), np.empty(len(rows))
        busy = np.empty(len(groups))
        sharing = problem.question.sharing
        self.replay(
            requests,
            problem.book.steps,
            engines,
            RULES[sharing.turns],
            sharing.admission == "deadline",
            first,
            finish,
            busy,
        )
        self.replays += len(rows)
        count = len(models)
        ended = np.isfinite(finish)
        finish, first = np.where(ended, finish, NO_LIMIT), np.where(ended, first, 0.0)
        latency = finish - requests.arrival
        pace = np.where(
            requests.output > 1, (finish - first) / np.maximum(1, requests.output - 1), 0.0
        )
        good = ended & (first - requests.arrival <= requests.ttft)
        good &= (latency <= requests.e2e) & (pace <= requests.tpot)
        norm = np.where(
            np.isfinite(traffic.norm_s[rows]),
            traffic.norm_s[rows],
            10 * self.alone_s(candidate, models)[which],
        )
        share = np.where(ended, np.minimum(MOST_NORM, latency / norm), MOST_NORM)
        lanes = np.array([len(candidate.groups[g].stages) for g in groups])
        return (
            np.bincount(which, good, minlength=count).astype(np.int64),
            np.bincount(which, np.where(ended, latency, 0.0), minlength=count).astype(np.float64),
            np.bincount(which, share, minlength=count).astype(np.float64),
            busy / lanes,
        )

    def alone_s(self, candidate: Candidate, models: Sequence[int]) -> Floats:
        """Seconds of a mean request of each of ``models`` on its idle engine, at best."""
        problem = self.problem
        found = []
        for m in models:
            rows = [
                self.row(m, candidate.forms[m], candidate.groups[g]) for g in candidate.homes(m)
            ]
            prompt, output = problem.mean_prompt[m], problem.mean_output[m]
            times = [problem.book.alone_s(row, prompt, output) for row in rows if row is not None]
            found.append(max(1e-9, min(times)))
        return np.array(found)

    def _rows_of(self, models: list[int]) -> NDArray[np.int64]:
        """Requests of ``models``, by arrival."""
        if len(models) == len(self.problem.models):
            return np.arange(self.problem.traffic.num_requests)
        for m in models:
            if m not in self._rows:
                self._rows[m] = np.flatnonzero(self.problem.traffic.model == m)
        return np.sort(np.concatenate([self._rows[m] for m in models]))

    def _engines(
        self,
        candidate: Candidate,
        groups: list[int],
        models: list[int],
        ready_of: Mapping[int, tuple[float, ...]],
    ) -> Engines:
        entries = []
        for local, g in enumerate(groups):
            tokens = self.kv_tokens(candidate, g)
            for place, m in enumerate(candidate.held[g]):
                row = self.row(m, candidate.forms[m], candidate.groups[g])
                assert row is not None
                ready = ready_of[g][place] if ready_of[g] else 0.0
                entries.append((models.index(m), local, place, row.index, tokens[place], ready))
        entries.sort()
        table = list(zip(*entries, strict=True))
        owner, group, place_of = (np.array(column, dtype=np.int64) for column in table[:3])
        count = np.bincount(group, minlength=len(groups))
        begin = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        members = np.empty(len(entries), dtype=np.int64)
        members[begin[group] + place_of] = np.arange(len(entries))
        per_model = np.bincount(owner, minlength=len(models))
        priority = [self.problem.models[models[m]].priority for m in owner.tolist()]
        return Engines(
            np.concatenate([[0], np.cumsum(per_model)]).astype(np.int64),
            group,
            place_of,
            np.array(table[3], dtype=np.int64),
            np.array(table[4], dtype=np.int64),
            np.array(table[5], dtype=np.float64),
            np.array(priority, dtype=np.int64),
            np.array([len(candidate.groups[g].stages) for g in groups], dtype=np.int64),
            begin,
            members,
        )


def together(candidate: Candidate) -> list[list[int]]:
    """Groups that share models, directly or through others; those that hold none are left out."""
    parts: list[tuple[set[int], list[int]]] = []
    for g, held in enumerate(candidate.held):
        if not held:
            continue
        models, groups = set(held), [g]
        apart = []
        for one in parts:
            if one[0].isdisjoint(models):
                apart.append(one)
            else:
                models |= one[0]
                groups += one[1]
        parts = [*apart, (models, groups)]
    return [sorted(groups) for _, groups in parts]
