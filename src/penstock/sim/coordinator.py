"""The coordinator in virtual time: requests enter, iterate and end here."""

from __future__ import annotations

from collections.abc import Callable

from penstock.measure.run import Status
from penstock.policy.admission import Feeder, Gate, Ticket, Verdict
from penstock.policy.kv import KVExpectation, preemption_victim
from penstock.policy.routing import Router
from penstock.sim.loop import ARRIVE, Loop
from penstock.sim.node import NodeState
from penstock.sim.recorder import Recorder
from penstock.sim.sequence import Sequence
from penstock.sim.transport import Transport
from penstock.spec.workload import Request


class CoordinatorState:
    """Source and sink of all routes.

    ``active`` holds the admitted sequences by row, in order of admission. ``next_request`` draws
    the feeder's next request, or None when there is none left.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        gate: Gate[Sequence],
        router: Router,
        kv: KVExpectation,
        nodes: list[NodeState],
        recorder: Recorder,
        first_iteration_is_token: bool,
    ) -> None:
        self.active: dict[int, Sequence] = {}
        self.preemptions = 0
        self._loop = loop
        self._gate = gate
        self._router = router
        self._kv = kv
        self._nodes = nodes
        self._recorder = recorder
        self._token_at_prompt = first_iteration_is_token
        self._transport: Transport | None = None
        self._feeder: Feeder | None = None
        self._next_request: Callable[[], Request | None] | None = None
        self._feed_until_s = 0.0
        self._admissions = 0
        self._retry_due = False

    def attach(self, transport: Transport) -> None:
        self._transport = transport

    def feed(
        self, feeder: Feeder, next_request: Callable[[], Request | None], start: float, until: float
    ) -> None:
        """Launch requests by ``feeder`` between ``start`` and ``until``."""
        self._feeder = feeder
        self._next_request = next_request
        self._feed_until_s = until
        # The first ones are drawn before anything runs, as published: a request that is launched
        # between two of them does not change what they are.
        for delay in feeder.start():
            request = next_request()
            if request is not None:
                self._loop.at(start + delay, ARRIVE, self.arrive, request)

    def arrive(self, request: Request) -> None:
        """A request reaches the coordinator now."""
        now = self._loop.now
        row = self._recorder.arrive(request, now)
        item = Sequence(row, request.prompt_tokens, request.output_tokens)
        verdict, ticket = self._gate.offer(item)
        self._settle(item, verdict, ticket)

    def receive(self, items: list[Sequence]) -> None:
        """Iterations come back from their last node."""
        now = self._loop.now
        for item in items:
            if not item.dead:
                self._complete(item, now)

    def make_room(self, vertex: int, batch: list[Sequence]) -> None:
        """Preempt the youngest request that holds, or wants, KV memory on engine ``vertex``.

        A request that does not fit although it is alone there ends as failed.
        """
        wanting = {id(item) for item in batch}
        sharing = [
            item
            for item in self.active.values()
            if id(item) in wanting or self._held_on(item, vertex) > 0
        ]
        victim = sharing[preemption_victim([item.order for item in sharing])]
        self._abandon(victim)
        if len(sharing) == 1:
            self._end(victim, "failed")
            self._launch_after_end()
            self.retry()
        else:
            self.preemptions += 1
            self._start_over(victim)

    def evict(self, item: Sequence) -> None:
        """Take ``item`` off the system; it starts over from what it has generated."""
        self._abandon(item)
        self._start_over(item)

    def retry(self) -> None:
        """Try those that wait, once everything that happens at this moment is done."""
        if not self._retry_due and self._gate.waiting:
            self._retry_due = True
            self._loop.at(self._loop.now, ARRIVE, self._retry_now, None)

    def _launch(self, _: None) -> None:
        if self._loop.now > self._feed_until_s or self._next_request is None:
            return
        request = self._next_request()
        if request is not None:
            self.arrive(request)

    def _retry_now(self, _: None) -> None:
        self._retry_due = False
        while (decided := self._gate.next_waiting()) is not None:
            self._settle(*decided)

    def _settle(self, item: Sequence, verdict: Verdict, ticket: Ticket | None) -> None:
        if verdict is Verdict.WAITS:
            return
        if ticket is None:
            self._recorder.end(item.row, "dropped" if verdict is Verdict.DROPPED else "rejected")
            return
        now = self._loop.now
        self._admissions += 1
        item.order = self._admissions
        item.ticket = ticket
        item.hops.extend(ticket.route.hops)
        item.legs.extend(ticket.route.legs)
        self.active[item.row] = item
        self._recorder.admit(item.row, now)
        self._dispatch(item, now)

    def _dispatch(self, item: Sequence, now: float) -> None:
        assert self._transport is not None
        item.hop = 0
        item.layer = 0
        self._transport.send(len(self._nodes), [item], now)

    def _complete(self, item: Sequence, now: float) -> None:
        recorder = self._recorder
        prompt = item.prefill
        item.context += item.tokens
        if prompt and not self._token_at_prompt:
            if not recorder.completed(item.row):
                recorder.iteration(item.row, now)
        else:
            item.generated_tokens += 1
            recorder.iteration(item.row, now)
        ended = item.generated_tokens >= item.output_tokens
        if ended:
            self._finish(item)
        else:
            item.prefill = False
            item.tokens = 1
            self._router.count_decode(item.legs)
            self._dispatch(item, now)
        if prompt:
            self._launch_after_prompt()
        if ended:
            self._launch_after_end()

    def _finish(self, item: Sequence) -> None:
        for hop in item.hops:
            self._nodes[hop.engine].pool.give(item.context * hop.num_layers)
        self._release(item)
        self._recorder.took(item.row, tuple(hop.engine for hop in item.hops))
        self._end(item, "finished")
        self.retry()

    def _end(self, item: Sequence, status: Status) -> None:
        self._recorder.generated(item.row, item.generated_tokens)
        self._recorder.end(item.row, status)

    def _release(self, item: Sequence) -> None:
        del self.active[item.row]
        assert item.ticket is not None
        self._gate.release(item.ticket, item.ticket.route.hops)

    def _abandon(self, item: Sequence) -> None:
        item.dead = True
        for number, hop in enumerate(item.hops):
            node = self._nodes[hop.engine]
            node.pool.give(self._held(item, number))
            node.discard(item)
        self._release(item)

    def _start_over(self, item: Sequence) -> None:
        self._recorder.preempted(item.row)
        # It waits for the next request to end: the room it made is for its elders.
        self._gate.offer_again(item.next_life())

    def _held_on(self, item: Sequence, engine: int) -> int:
        return sum(
            self._held(item, number) for number, hop in enumerate(item.hops) if hop.engine == engine
        )

    def _held(self, item: Sequence, number: int) -> int:
        """KV entries that ``item`` holds at hop ``number``: cached tokens, and this iteration's."""
        hop = item.hops[number]
        cached = item.context * hop.num_layers
        if number < item.hop:
            return cached + item.tokens * hop.num_layers
        if number > item.hop:
            return cached
        node = self._nodes[hop.engine]
        reached = item.layer
        if node.running is not None and node.is_running(item):
            reached = node.running.end_layer
        return cached + item.tokens * (reached - hop.start_layer)

    def _launch_after_prompt(self) -> None:
        if self._feeder is not None:
            self._schedule(self._feeder.after_prompt(self._kv.use, len(self._gate.waiting)))

    def _launch_after_end(self) -> None:
        if self._feeder is not None:
            self._schedule(self._feeder.after_end(self._kv.use, len(self._gate.waiting)))

    def _schedule(self, delay: float | None) -> None:
        if delay is not None:
            self._loop.at(self._loop.now + delay, ARRIVE, self._launch, None)

    def finish_run(self) -> None:
        """Note how far the requests came that are still on their way."""
        for item in (*self.active.values(), *self._gate.waiting):
            self._recorder.generated(item.row, item.generated_tokens)
