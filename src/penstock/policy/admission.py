"""Whether a request enters now, and when the next one is launched."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from penstock.plan.plan import AdmissionName, Routing
from penstock.policy.kv import KVExpectation
from penstock.policy.route import Hop, Route
from penstock.policy.routing import Router
from penstock.policy.topology import Topology
from penstock.spec.workload import ClosedLoop, Saturating


class Candidate(Protocol):
    """A request at the coordinator. ``generated_tokens`` > 0 for one that starts over."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def generated_tokens(self) -> int: ...


C = TypeVar("C", bound=Candidate)


class Verdict(Enum):
    ADMITTED = "admitted"
    WAITS = "waits"
    DROPPED = "dropped"
    NEVER = "never fits"


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request's path and the tokens charged for it; hand it back when it ends."""

    route: Route
    expected_tokens: int


class Gate(Generic[C]):
    """Admission at the coordinator.

    ``queue``: a request that does not fit waits, first come first served, and is tried again
    whenever memory is released. ``drop``: it is turned away (Helix's published offline mode).
    ``none``: everything enters, whatever the memory. A request that does not even fit an idle
    system is told so at once (``NEVER``).
    """

    def __init__(
        self,
        topology: Topology,
        routing: Routing,
        router: Router,
        kv: KVExpectation,
        mode: AdmissionName,
    ) -> None:
        self._topology = topology
        self._routing = routing
        self._router = router
        self._kv = kv
        self._mode = mode
        self._impaired = False
        self._turns = 0
        self.waiting: deque[C] = deque()

    def offer(self, candidate: C) -> tuple[Verdict, Ticket | None]:
        """Decide on a new request. Those that wait already go first."""
        if self.waiting:
            self.waiting.append(candidate)
            return Verdict.WAITS, None
        return self._decide(candidate, front=False)

    def offer_again(self, candidate: C) -> None:
        """Put a request that lost its place (preempted, failed node) ahead of all that wait."""
        self.waiting.appendleft(candidate)

    def next_waiting(self) -> tuple[C, Verdict, Ticket | None] | None:
        """Try the longest-waiting request; None when it still has to wait or nobody waits.

        Call until None after memory was released or the topology changed.
        """
        if not self.waiting:
            return None
        if self._mode == "none" and not self._impaired:
            # Without a memory check, let one return for each that ended, or all would come back
            # at once and be preempted again.
            if self._turns == 0:
                return None
            self._turns -= 1
        candidate = self.waiting.popleft()
        verdict, ticket = self._decide(candidate, front=True)
        return None if verdict is Verdict.WAITS else (candidate, verdict, ticket)

    def release(self, ticket: Ticket, hops: tuple[Hop, ...]) -> None:
        """Give back what was charged for a request that ended or was preempted."""
        self._turns += 1
        if self._router.plans_whole_route:
            self._kv.release(hops, ticket.expected_tokens)
        else:
            self._kv.release_pooled(ticket.expected_tokens)

    def rebuild(self, topology: Topology, *, impaired: bool) -> None:
        """Decide for ``topology`` from now on; while ``impaired`` nothing is refused for good."""
        self._topology = topology
        self._impaired = impaired
        self._turns += len(self.waiting)

    def _decide(self, candidate: C, *, front: bool) -> tuple[Verdict, Ticket | None]:
        expected = self._expected_tokens(candidate)
        ticket = self._try(candidate.prompt_tokens, expected)
        if ticket is not None:
            return Verdict.ADMITTED, ticket
        if self._mode == "drop" and not candidate.generated_tokens and not self._impaired:
            return Verdict.DROPPED, None
        if self._kv.charged == 0 and not self._impaired:
            return Verdict.NEVER, None
        if front:
            self.waiting.appendleft(candidate)
        else:
            self.waiting.append(candidate)
        return Verdict.WAITS, None

    def _expected_tokens(self, candidate: Candidate) -> int:
        output = max(self._routing.expected_output_tokens, candidate.generated_tokens + 1)
        return int(candidate.prompt_tokens + output)

    def _try(self, prompt_tokens: int, expected: int) -> Ticket | None:
        check_kv = self._mode != "none"
        if not self._router.plans_whole_route and not self._open(prompt_tokens, expected, check_kv):
            return None
        backtrack = self._mode != "drop"
        route = self._router.route(prompt_tokens, expected, check_kv=check_kv, backtrack=backtrack)
        if route is None:
            return None
        if self._router.plans_whole_route:
            self._kv.charge(route.hops, expected)
        else:
            self._kv.charge_pooled(expected)
        return Ticket(route, expected)

    def _open(self, prompt_tokens: int, expected: int, check_kv: bool) -> bool:
        longest = min(limits.max_prefill_tokens for limits in self._topology.limits)
        if prompt_tokens > longest:
            return False
        return not check_kv or self._kv.fits_pooled(expected, self._routing.kv_high_water_mark)


class Feeder(Protocol):
    """Launches requests in answer to the system's progress. Delays are seconds from the event."""

    def start(self) -> list[float]:
        """Delays of the first launches, from the start of the run."""
        ...

    def after_prompt(self, use: Callable[[], float], waiting: int) -> float | None:
        """Delay of the launch a prompt's completion brings, or None."""
        ...

    def after_end(self, use: Callable[[], float], waiting: int) -> float | None:
        """Delay of the launch a request's end brings, or None."""
        ...


class SaturatingFeeder:
    """Feeds while expected KV use is at or under the mark and nobody waits (Helix offline)."""

    def __init__(self, rule: Saturating) -> None:
        self._rule = rule

    def start(self) -> list[float]:
        return [self._rule.interval_s * i for i in range(self._rule.initial)]

    def after_prompt(self, use: Callable[[], float], waiting: int) -> float | None:
        if waiting or use() > self._rule.feed_mark:
            return None
        return self._rule.interval_s

    after_end = after_prompt


class ClosedLoopFeeder:
    """Keeps a constant number of requests in the system: each end launches the next."""

    def __init__(self, rule: ClosedLoop) -> None:
        self._rule = rule

    def start(self) -> list[float]:
        return [self._rule.interval_s * i for i in range(self._rule.concurrency)]

    def after_prompt(self, use: Callable[[], float], waiting: int) -> float | None:
        return None

    def after_end(self, use: Callable[[], float], waiting: int) -> float | None:
        return self._rule.interval_s


def make_feeder(rule: ClosedLoop | Saturating) -> Feeder:
    return SaturatingFeeder(rule) if isinstance(rule, Saturating) else ClosedLoopFeeder(rule)
