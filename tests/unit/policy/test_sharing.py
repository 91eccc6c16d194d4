"""Whose turn it is: rules, urgency, and until when a choice holds."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.policy.schedulers import Sequence
from penstock.policy.sharing import TimeShare, Turn, Urgency
from penstock.spec.workload import SLO, SLOClass

CLASSES = {
    entry.name: entry
    for entry in (
        SLOClass("first", SLO(ttft_s=1.0, e2e_s=10.0)),
        SLOClass("end", SLO(e2e_s=4.0)),
        SLOClass("pace", SLO(ttft_s=1.0, tpot_s=0.1)),
        SLOClass("any", SLO()),
    )
}
RULES = ["earliest-deadline", "round-robin", "first-come"]
TURNS = st.builds(
    Turn,
    deadline_s=st.sampled_from([1.0, 2.0, 3.0, inf]),
    since_s=st.sampled_from([-inf, 0.0, 1.0, 2.0]),
    priority=st.integers(0, 2),
    late=st.booleans(),
    arrival_s=st.sampled_from([0.0, 0.5, 1.0]),
    paced=st.booleans(),
)


def request(row: int, name: str, arrival_s: float = 0.0) -> Sequence:
    slo = CLASSES[name].slo
    limit = slo.ttft_s if slo.ttft_s is not None else slo.e2e_s
    deadline_s = inf if limit is None else arrival_s + limit
    return Sequence(row, arrival_s, 10, 5, client=name, deadline_s=deadline_s)


@pytest.mark.parametrize(
    ("rule", "chosen"), [("earliest-deadline", 1), ("round-robin", 2), ("first-come", 0)]
)
def test_rules(rule: str, chosen: int) -> None:
    """The earliest deadline, the longest wait for a turn, or the oldest request."""
    waiting = [
        Turn(9.0, 3.0, arrival_s=0.1),
        Turn(5.0, 2.0, arrival_s=0.2),
        Turn(7.0, 1.0, arrival_s=0.3),
    ]
    assert TimeShare(rule).next(waiting) == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_a_higher_priority_goes_first(rule: str) -> None:
    """Whatever else its turn says."""
    waiting = [Turn(1.0, -inf, 0, arrival_s=0.0), Turn(9.0, 5.0, 1, arrival_s=4.0, late=True)]
    assert TimeShare(rule).next(waiting) == 1  # type: ignore[arg-type]


def test_an_unknown_rule_is_refused() -> None:
    """With the nearest one that is known."""
    with pytest.raises(SpecError, match="round-robin"):
        TimeShare("round-robbin")  # type: ignore[arg-type]


@given(waiting=st.lists(TURNS, min_size=1, max_size=5), rule=st.sampled_from(RULES))
def test_a_choice_that_holds_is_made_again(waiting: list[Turn], rule: str) -> None:
    """While ``until_s`` lasts, the chosen one has the next turn too, though it had the last one."""
    share = TimeShare(rule)  # type: ignore[arg-type]
    chosen = share.next(waiting)
    if share.until_s(waiting, chosen) > -inf:
        turn = waiting[chosen]
        later = turn.deadline_s + 1 if turn.paced else turn.deadline_s
        waiting[chosen] = turn._replace(since_s=99.0, deadline_s=later)
        assert share.next(waiting) == chosen


def test_urgency_follows_a_request_to_its_end() -> None:
    """Its first token is due, then its last one; then nothing is."""
    urgency = Urgency(CLASSES)
    early, late = request(1, "first"), request(2, "first", 0.5)
    urgency.add(late)
    urgency.add(early)
    assert urgency.turn(0.6).deadline_s == 1.0
    urgency.first(early)
    assert urgency.turn(0.6).deadline_s == 1.5
    urgency.first(late)
    assert urgency.turn(0.6).deadline_s == 10.0
    assert urgency.turn(0.6).arrival_s == 0.0
    urgency.end(early)
    assert urgency.turn(0.6).deadline_s == 10.5
    assert urgency.turn(0.6).arrival_s == 0.5


def test_urgency_of_the_next_token() -> None:
    """Under a limit on TPOT a token is due so long after the step before."""
    urgency = Urgency(CLASSES)
    seq = request(1, "pace")
    urgency.add(seq)
    assert not urgency.turn(0.0).paced
    urgency.stepped(0.3)
    urgency.first(seq)
    assert urgency.turn(0.3).paced
    assert urgency.turn(0.3).deadline_s == pytest.approx(0.4)
    urgency.stepped(0.35)
    assert urgency.turn(0.35).deadline_s == pytest.approx(0.45)
    urgency.end(seq)
    urgency.add(request(2, "end"))
    assert not urgency.turn(0.4).paced


def test_a_request_that_is_late_no_longer_speaks_for_its_engine() -> None:
    """The next one does; when all are late, the engine is; one without limits is never late."""
    urgency = Urgency(CLASSES)
    for row, arrival_s in ((1, 0.0), (2, 3.0)):
        urgency.add(request(row, "end", arrival_s))
    assert urgency.turn(4.0).deadline_s == 4.0
    assert urgency.turn(4.1).deadline_s == 7.0
    turn = urgency.turn(7.1)
    assert turn.late
    assert turn.deadline_s == 4.0
    urgency.add(request(3, "any", 7.1))
    assert urgency.turn(7.2) == turn._replace(late=False, deadline_s=inf)
