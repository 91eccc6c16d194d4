"""Engines that stand on the same nodes take turns: whose batch enters the first stage next.

The life of a turn: a node has room for a batch; every engine with work there states its ``Turn``
(``Urgency`` keeps what it needs); ``TimeShare.next`` chooses one. While the others have no work an
engine has all turns, so that no stage idles while anybody could use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from penstock.errors import SpecError
from penstock.plan.pool_plan import TurnRule
from penstock.policy.schedulers import sequence
from penstock.spec.names import did_you_mean
from penstock.spec.workload import SLO, SLOClass

NANOSECOND = 1e-9
"""A deadline passed by less is not passed: rounding decides nothing."""


class Turn(NamedTuple):
    """An engine that could form a batch now.

    deadline_s  of its most urgent request
    since_s     when it last had a turn; -infinity if never
    priority    of its model, higher first
    late        no request of it can meet its limit any more
    arrival_s   of its oldest request
    paced       ``deadline_s`` is that of a next token, and moves on with every turn it has
    """

    deadline_s: float = inf
    since_s: float = -inf
    priority: int = 0
    late: bool = False
    arrival_s: float = 0.0
    paced: bool = False


Key = Callable[[Turn], tuple[float, ...]]

# What decides before the last turn does; only a tie of these is broken by ``since_s``.
_KEYS: Mapping[str, Key] = {
    "earliest-deadline": lambda turn: (-turn.priority, turn.late, turn.deadline_s),
    "first-come": lambda turn: (-turn.priority, turn.arrival_s),
    "round-robin": lambda turn: (-turn.priority,),
}


class TimeShare:
    """Chooses whose batch is next, by one of three rules; a higher priority always goes first.

    ``earliest-deadline``: the most urgent request, those that are late already after all others.
    ``first-come``: the oldest request. ``round-robin``, and all ties: whose last turn is longest
    ago. Raises ``SpecError`` for an unknown rule.
    """

    def __init__(self, rule: TurnRule = "earliest-deadline") -> None:
        if rule not in _KEYS:
            raise SpecError(
                "unknown rule", key="sharing.turns", value=rule, fix=did_you_mean(rule, _KEYS)
            )
        self.rule = rule
        self._key = _KEYS[rule]

    def next(self, waiting: Sequence[Turn]) -> int:
        """The place in ``waiting`` (at least one) of the engine whose turn it is."""
        key = self._key
        order = [(key(turn), turn.since_s) for turn in waiting]
        return order.index(min(order))

    def until_s(self, waiting: Sequence[Turn], chosen: int) -> float:
        """Until when ``next`` stays with ``chosen`` while no request comes, goes or gets its first
        token; -infinity where it may choose another one at the next step already."""
        turn = waiting[chosen]
        key = self._key
        mine, ahead = key(turn), True
        for i, entry in enumerate(waiting):
            if i == chosen or entry.priority < turn.priority:
                continue
            ahead = False
            if turn.paced or key(entry) <= mine:
                return -inf
        # Once its deadline has passed a request no longer speaks for its engine.
        live = self.rule == "earliest-deadline" and not turn.late and not ahead
        return turn.deadline_s if live else inf


class Urgency:
    """What an engine's requests want of its next batch, kept up as they come and go.

    Until its first token a request wants that one in time (TTFT), then its end (end to end) and
    its next token (TPOT after the last step). Drivers call ``add``, ``first`` and ``end`` with
    requests, ``started`` and ``stepped`` with batches.
    """

    def __init__(self, classes: Mapping[str, SLOClass], priority: int = 0) -> None:
        self._priority = priority
        self._slo = {name: entry.slo for name, entry in classes.items()}
        self._due: dict[int, float] = {}
        self._begun: set[int] = set()
        self._live: list[tuple[float, int]] = []
        self._late: list[tuple[float, int]] = []
        self._oldest: list[tuple[float, int]] = []
        self._unlimited = 0
        self._paces: dict[float, int] = {}
        self._since_s = -inf
        self._stepped_s = 0.0
        self._turn: Turn | None = None
        self._holds_s = inf

    @property
    def priority(self) -> int:
        """Of the model; higher first."""
        return self._priority

    @priority.setter
    def priority(self, priority: int) -> None:
        self._priority = priority
        self._turn = None

    def add(self, seq: sequence.Sequence) -> None:
        """A request has come."""
        self._turn = None
        heappush(self._oldest, (seq.arrival_s, seq.row))
        self._want(seq.row, seq.deadline_s)

    def first(self, seq: sequence.Sequence) -> None:
        """A prompt is complete; only the first time counts."""
        if seq.row in self._begun or seq.row not in self._due:
            return
        self._turn = None
        self._begun.add(seq.row)
        slo = self._slo.get(seq.client)
        if slo is None:
            return
        if slo.ttft_s is not None:
            self._forget(seq.row)
            self._want(seq.row, inf if slo.e2e_s is None else seq.arrival_s + slo.e2e_s)
        if slo.tpot_s is not None:
            self._paces[slo.tpot_s] = self._paces.get(slo.tpot_s, 0) + 1

    def end(self, seq: sequence.Sequence) -> None:
        """A request has ended or goes elsewhere."""
        if seq.row not in self._due:
            return
        self._turn = None
        self._forget(seq.row)
        if seq.row in self._begun:
            self._begun.discard(seq.row)
            slo = self._slo.get(seq.client, SLO())
            if slo.tpot_s is not None:
                self._paces[slo.tpot_s] -= 1
                if not self._paces[slo.tpot_s]:
                    del self._paces[slo.tpot_s]

    def started(self, now_s: float) -> None:
        """It has its turn."""
        self._since_s = now_s
        self._turn = None

    def stepped(self, now_s: float) -> None:
        """A batch of it has ended."""
        self._stepped_s = now_s
        if self._paces:
            self._turn = None

    def turn(self, now_s: float) -> Turn:
        """Its turn, as of now; it must have a request."""
        turn = self._turn
        if turn is None or now_s > self._holds_s:
            turn = self._turn = self._look(now_s)
        return turn

    def _look(self, now_s: float) -> Turn:
        due, live = self._due, self._live
        while live and (due.get(live[0][1]) != live[0][0] or live[0][0] < now_s - NANOSECOND):
            entry = heappop(live)
            if due.get(entry[1]) == entry[0]:
                heappush(self._late, entry)
        oldest = self._oldest
        while oldest and oldest[0][1] not in due:
            heappop(oldest)
        arrival_s = oldest[0][0] if oldest else inf
        deadline_s = live[0][0] if live else inf
        self._holds_s = deadline_s + NANOSECOND
        paced = False
        if self._paces:
            pace_s = self._stepped_s + min(self._paces)
            if pace_s < deadline_s:
                deadline_s, paced = pace_s, True
        late = deadline_s == inf and not self._unlimited and bool(due)
        if late:
            deadline_s = self._longest_late_s()
        return Turn(deadline_s, self._since_s, self._priority, late, arrival_s, paced)

    def _longest_late_s(self) -> float:
        late, due = self._late, self._due
        while due.get(late[0][1]) != late[0][0]:
            heappop(late)
        return late[0][0]

    def _want(self, row: int, deadline_s: float) -> None:
        self._due[row] = deadline_s
        if deadline_s < inf:
            heappush(self._live, (deadline_s, row))
        else:
            self._unlimited += 1

    def _forget(self, row: int) -> None:
        self._unlimited -= self._due.pop(row) == inf
