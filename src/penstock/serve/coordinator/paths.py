"""Per-request pipelines in real time (Helix): each request goes over the nodes its route names.

Admission, routes and expected KV memory are those of ``policy/``; nodes batch what reaches them
with the batcher of ``policy/batching.py``. Routers that choose hop by hop choose all hops when a
request is admitted, from the queue lengths the nodes last reported: activations then go straight
from node to node. KV entries are counted in whole pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from math import ceil
from random import Random

from penstock.cost.load import cost_from_dict
from penstock.errors import InputError, PenstockError
from penstock.plan.degraded import degraded_flow
from penstock.plan.plan import Plan
from penstock.policy.admission import Gate, Ticket, Verdict
from penstock.policy.kv import KVExpectation, KVPool, preemption_victim
from penstock.policy.route import Hop as PlannedHop
from penstock.policy.routing import make_router
from penstock.policy.topology import Topology
from penstock.serve.coordinator.life import Life, NodeView
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.moment import together, when_settled
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.pool import WorkerPool, WorkerSpec
from penstock.serve.protocol import EngineStatus, RequestTooLong, Unavailable
from penstock.serve.wire import (
    Begin,
    Hop,
    Item,
    NodeBatch,
    Release,
    Step,
    StepDone,
    ToCoordinator,
)


class Paths:
    """All nodes of a plan of per-request paths; see ``domain.Domain``."""

    def __init__(
        self,
        plan: Plan,
        pool: WorkerPool,
        options: ServeOptions,
        *,
        ended: Callable[[Live], None],
        clock: Callable[[], float],
    ) -> None:
        self.routes: list[tuple[int, tuple[str, ...]]] = []
        self.restarts = 0
        self.restarted_requests = 0
        self._plan, self._pool, self._options = plan, pool, options
        self._ended, self._clock = ended, clock
        self._whole = self._topology = Topology.of(plan)
        self._kv = KVExpectation(self._topology)
        rng = Random(f"{options.seed}/router")
        self._router = make_router(self._topology, plan.routing, self._kv, rng)
        self._gate: Gate[Life] = Gate(
            self._topology, plan.routing, self._router, self._kv, plan.admission
        )
        self._nodes = [NodeView(KVPool(engine.kv_capacity_layer_tokens)) for engine in plan.engines]
        self._index = {engine.name: i for i, engine in enumerate(plan.engines)}
        self._newest = 0
        self._lives: dict[int, Life] = {}
        self._of_row: dict[int, Life] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing: set[int] = set()
        self._retrying = False
        self._cuts = 0
        self._started_s = clock()

    # -- workers ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers. Raises ``InputError`` for the first one that cannot be built."""
        await together(self._start(i) for i in range(len(self._nodes)))

    async def _start(self, i: int) -> None:
        await self._pool.start(self._spec(i))
        node = self._nodes[i]
        node.pool = KVPool(node.pool.capacity)
        node.alive = True

    def _spec(self, i: int) -> WorkerSpec:
        engine, options, model = self._plan.engines[i], self._options, self._plan.model
        node = engine.stages[0].node
        return WorkerSpec(
            name=engine.name,
            node=node,
            checkpoint=self._plan.checkpoint,
            start_layer=engine.start_layer,
            end_layer=engine.end_layer,
            num_layers=model.num_hidden_layers,
            num_pages=engine.kv_capacity_layer_tokens // options.page_size + engine.num_layers,
            page_size=options.page_size,
            tensor_parallel_size=self._plan.cluster.node(node).count,
            dtype=options.dtype,
            device=options.device,
            threads=options.threads,
            executor=options.executor,
            batches=True,
            first_seq=self._newest,
            limits=engine.limits,
            entry_layers=self._whole.entry_layers(i),
            kv_bytes_per_token_per_layer=model.kv_bytes_per_token_per_layer,
        )

    # -- requests -----------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        return len(self._of_row)

    @property
    def num_waiting(self) -> int:
        return len(self._gate.waiting)

    def submit(self, live: Live) -> None:
        """Take a request in. Raises ``RequestTooLong`` where an idle system could not hold it."""
        life = Life(live)
        self._of_row[live.row] = life
        verdict, ticket = self._gate.offer(life)
        if verdict in (Verdict.NEVER, Verdict.DROPPED):
            del self._of_row[live.row]
            raise RequestTooLong(
                f"{live.prompt_tokens} prompt tokens do not fit the nodes of any path"
            )
        self._settle(life, verdict, ticket)

    def cancel(self, live: Live) -> None:
        """Free what a request holds on every node."""
        life = self._of_row.pop(live.row, None)
        if life is None:
            return
        if life.ticket is None:
            if life in self._gate.waiting:
                self._gate.waiting.remove(life)
            return
        self._leave(life)
        self._retry()

    def _settle(self, life: Life, verdict: Verdict, ticket: Ticket | None) -> None:
        if verdict is Verdict.WAITS:
            self._wait(life)
            return
        if ticket is None:
            self._of_row.pop(life.live.row, None)
            life.live.fail(RequestTooLong("the request does not fit the nodes of any path"))
            self._ended(life.live)
            return
        route = ticket.route
        hops, legs = route.hops, route.legs
        if not self._router.plans_whole_route:
            walked = self._walk()
            if walked is None:
                self._gate.release(ticket, ())
                self._gate.offer_again(life)
                self._wait(life)
                return
            hops, legs = walked
        self._newest += 1
        life.number = self._newest
        life.ticket, life.hops, life.legs = ticket, hops, legs
        live = life.live
        if live.admitted_s != live.admitted_s:
            live.admitted_s = self._clock()
        names = tuple(self._plan.engines[hop.engine].name for hop in hops)
        live.place = " > ".join(names)
        if self._options.trace:
            self.routes.append((live.row, names))
        self._lives[life.number] = life
        life.fed = len(live.tokens)
        self._dispatch(life, prefill=True)

    def _walk(self) -> tuple[tuple[PlannedHop, ...], tuple[int, ...]] | None:
        """A path chosen hop by hop, by what is known now."""
        topology = self._topology
        at = topology.coordinator
        hops: list[PlannedHop] = []
        legs: list[int] = []
        while True:
            leg = self._router.next_leg(at, topology.out[at], self._queued)
            if leg is None:
                return None
            legs.append(leg)
            hop = topology.hop(leg)
            if hop is None:
                return tuple(hops), tuple(legs)
            hops.append(hop)
            at = hop.engine

    def _queued(self, engine: int) -> int:
        return self._nodes[engine].queued_first + len(self._nodes[engine].outgoing)

    def _wait(self, life: Life) -> None:
        if not self._topology.connected:
            loop = asyncio.get_running_loop()
            loop.call_later(self._options.unavailable_s, self._give_up, life, self._cuts)

    def _give_up(self, life: Life, cut: int) -> None:
        """End a request that has waited through all of the ``cut``-th loss of connection."""
        still = cut == self._cuts and not self._topology.connected
        if still and life in self._gate.waiting:
            self._gate.waiting.remove(life)
            self._of_row.pop(life.live.row, None)
            life.live.fail(Unavailable("the nodes that are left do not hold the whole model"))
            self._ended(life.live)

    # -- iterations ---------------------------------------------------------------------------

    def _dispatch(self, life: Life, *, prefill: bool) -> None:
        """Send one iteration off, when every node of its path has memory for it."""
        for hop in life.hops:
            need = self._entries(life.context + life.fed) - self._entries(life.context)
            while not self._nodes[hop.engine].pool.take(need * hop.num_layers):
                if not self._make_room(hop.engine, life):
                    return
        live = life.live
        names = [engine.name for engine in self._plan.engines]
        hops = tuple(Hop(names[h.engine], h.start_layer, h.end_layer) for h in life.hops)
        fed = tuple(live.tokens[life.context : life.context + life.fed])
        first = life.hops[0].engine
        life.since_s = self._clock()
        if prefill:
            # It travels with the prompt to the node that draws.
            self._nodes[first].begins.append(Begin(life.number, live.sampling()))
        self._nodes[first].outgoing.append(
            Item(life.number, life.context, fed, True, prefill, hops)
        )
        self._flush_soon(first)

    def _entries(self, tokens: int) -> int:
        page = self._options.page_size
        return ceil(tokens / page) * page

    def _make_room(self, engine: int, wanting: Life) -> bool:
        """Preempt the youngest request on ``engine``; False when that was ``wanting`` itself."""
        sharing = [
            life
            for life in self._lives.values()
            if life is wanting or any(hop.engine == engine for hop in life.hops)
        ]
        victim = sharing[preemption_victim([life.number for life in sharing])]
        # What ``wanting`` has not taken yet on this and later hops is not its own to give back.
        missing = None
        if victim is wanting:
            missing = next(i for i, hop in enumerate(wanting.hops) if hop.engine == engine)
        self._leave(victim, short_from=missing)
        self._nodes[engine].preemptions += 1
        victim.live.preemptions += 1
        if len(sharing) == 1:
            self._of_row.pop(victim.live.row, None)
            victim.live.fail(RequestTooLong("the request outgrew the KV memory of its path"))
            self._ended(victim.live)
        else:
            self._start_over(victim)
        return victim is not wanting

    def _start_over(self, life: Life) -> None:
        again = Life(life.live)
        self._of_row[life.live.row] = again
        self._gate.offer_again(again)
        self._wait(again)

    def _leave(self, life: Life, short_from: int | None = None) -> None:
        """Free everything a request holds. Hops from ``short_from`` on lack its last tokens."""
        del self._lives[life.number]
        for position, hop in enumerate(life.hops):
            tokens = life.context + life.fed
            if short_from is not None and position >= short_from:
                tokens = life.context
            node = self._nodes[hop.engine]
            node.pool.give(self._entries(tokens) * hop.num_layers)
            node.outgoing = [item for item in node.outgoing if item.seq != life.number]
            if node.alive:
                self._pool.send(self._plan.engines[hop.engine].name, Release((life.number,)))
        assert life.ticket is not None
        self._gate.release(life.ticket, life.ticket.route.hops)

    def _flush_soon(self, engine: int) -> None:
        if engine not in self._flushing:
            self._flushing.add(engine)
            when_settled(self._flush, engine)

    def _flush(self, engine: int) -> None:
        self._flushing.discard(engine)
        node = self._nodes[engine]
        if node.alive and (node.outgoing or node.begins):
            step = Step(0, tuple(node.outgoing), tuple(node.begins))
            self._pool.send(self._plan.engines[engine].name, step)
        node.outgoing, node.begins = [], []

    def _retry(self) -> None:
        """Try those that wait, once everything that happens at this moment is done."""
        if not self._retrying and self._gate.waiting:
            self._retrying = True
            when_settled(self._retry_now)

    def _retry_now(self) -> None:
        self._retrying = False
        while (decided := self._gate.next_waiting()) is not None:
            self._settle(*decided)
            if decided[0] in self._gate.waiting or self._starting_over(decided[0]):
                # There was no memory after all: it waits for the next request to end.
                return

    def _starting_over(self, life: Life) -> bool:
        """Whether ``life`` had to give up its place again at once."""
        current = self._of_row.get(life.live.row)
        return current is not None and current is not life

    # -- messages -----------------------------------------------------------------------------

    def receive(self, message: ToCoordinator) -> None:
        if isinstance(message, NodeBatch):
            self._batch_ran(message)
        elif isinstance(message, StepDone):
            for drawn in message.drawn:
                life = self._lives.get(drawn.seq)
                if life is not None:
                    self._completed(life, life.live.take(drawn, self._clock()))

    def _batch_ran(self, message: NodeBatch) -> None:
        engine = self._index[message.worker]
        node = self._nodes[engine]
        node.queued_first = message.queued_first
        node.batches += 1
        node.busy_s += message.busy_s
        node.prompt_tokens += message.prefill_tokens
        node.decode_tokens += message.decode_seqs
        now = self._clock()
        for number in message.seqs:
            life = self._lives.get(number)
            if life is not None:
                at = next(i for i, hop in enumerate(life.hops) if hop.engine == engine)
                self._router.observe(life.legs[at], now - life.since_s)
                life.since_s = now

    def _completed(self, life: Life, ended: bool) -> None:
        life.context += life.fed
        life.fed = 0
        if ended:
            self._of_row.pop(life.live.row, None)
            self._leave(life)
            self._ended(life.live)
            self._retry()
            return
        life.fed = 1
        self._router.count_decode(life.legs)
        self._dispatch(life, prefill=False)

    def died(self, worker: str, why: str) -> None:
        """A node is gone: its requests are routed anew over the others, from what they have."""
        engine = self._index.get(worker)
        if engine is None or not self._nodes[engine].alive:
            return
        self._nodes[engine].alive = False
        self._nodes[engine].outgoing, self._nodes[engine].begins = [], []
        broken = [
            life for life in self._lives.values() if any(hop.engine == engine for hop in life.hops)
        ]
        for life in sorted(broken, key=lambda one: -one.number):
            life.live.attempts += 1
            self.restarted_requests += 1
            self._leave(life)
            self._start_over(life)
        self._rebuild()
        if self._options.restart:
            task = asyncio.get_running_loop().create_task(self._revive(engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _revive(self, engine: int) -> None:
        self.restarts += 1
        await self._pool.stop(self._plan.engines[engine].name)
        while not self._nodes[engine].alive:
            try:
                await self._start(engine)
            except InputError:
                await asyncio.sleep(self._options.restart_delay_s)
        self._rebuild()

    def _rebuild(self) -> None:
        """Route over the nodes that are left, by the max flow they allow."""
        down = {i for i, node in enumerate(self._nodes) if not node.alive}
        left = self._whole.restricted(down, ())
        if down:
            left = self._whole.restricted(down, (), self._flow(left, down))
        newly_cut = self._topology.connected and not left.connected
        self._cuts += newly_cut
        self._topology = left
        self._router.rebuild(left)
        self._kv.rebuild(left)
        self._gate.rebuild(left, impaired=bool(down))
        for life in tuple(self._gate.waiting) if newly_cut else ():
            self._wait(life)
        self._retry()

    def _flow(self, left: Topology, down: Collection[int]) -> dict[int, float]:
        """Tokens/s by leg; the plan's own flow where there are no figures for what is left."""
        legs = [leg for out in left.out for leg in out]
        try:
            cost = cost_from_dict(self._plan.cost, self._plan.model)
            return degraded_flow(self._plan, cost, legs, engines_down=down)[1]
        except PenstockError:
            return {leg: self._plan.legs[leg].flow_tokens_per_s for leg in legs}

    # -- for reports --------------------------------------------------------------------------

    def status(self) -> tuple[EngineStatus, ...]:
        span_s = max(self._clock() - self._started_s, 1e-9)
        found = []
        for i, engine in enumerate(self._plan.engines):
            node = self._nodes[i]
            here = sum(any(hop.engine == i for hop in life.hops) for life in self._lives.values())
            found.append(
                EngineStatus(
                    name=engine.name,
                    role=engine.role,
                    model=self._plan.model.name,
                    nodes=(engine.stages[0].node,),
                    start_layer=engine.start_layer,
                    end_layer=engine.end_layer,
                    alive=node.alive,
                    draining=False,
                    running=here,
                    waiting=node.queued_first,
                    kv_use=node.pool.used / max(1, node.pool.capacity),
                    prompt_tokens=node.prompt_tokens,
                    generation_tokens=node.decode_tokens,
                    preemptions=node.preemptions,
                    busy_share=min(1.0, node.busy_s / span_s),
                )
            )
        return tuple(found)

    def ready(self) -> bool:
        return self._topology.connected and any(node.alive for node in self._nodes)

    def counters(self) -> Mapping[str, float]:
        return {
            "worker_restarts": self.restarts,
            "requests_restarted": self.restarted_requests,
        }

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        raise InputError(
            "nodes of per-request paths are placed by the plan; plan again to change them"
        )

    async def close(self) -> None:
        for node in self._nodes:
            node.alive = False
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lives = [life.live for life in self._of_row.values()]
        for entries in (self._of_row, self._lives, self._gate.waiting):
            entries.clear()
        for live in lives:
            live.fail(Unavailable("the server has stopped"))
            self._ended(live)
