"""Helix's published event loop, written out event by event: the oracle of the layerwise mode.

Every layer of every batch and every message on every hop is an event of its own, with the kinds
and the order of creation of the artifact specification, section 5. Requests come from a trace or
from a feeder; nothing is preempted here. Routing is the product's; batching and transport are not.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

from penstock.plan.plan import Plan
from penstock.policy.admission import Gate, Verdict, make_feeder
from penstock.policy.kv import KVExpectation
from penstock.policy.routing import make_router
from penstock.policy.topology import Topology
from penstock.sim.link import degrees, make_links, nic_bytes_per_s, planned_rates
from penstock.sim.sequence import Sequence
from penstock.spec.workload import ClosedLoop, Saturating, Workload


class PublishedLoop:
    def __init__(self, plan: Plan, workload: Workload, cost, seed: int, start_s: float) -> None:
        self.rng = Random(seed)
        self.topo = Topology.of(plan)
        self.kv = KVExpectation(self.topo)
        self.router = make_router(self.topo, plan.routing, self.kv, self.rng)
        self.gate = Gate(self.topo, plan.routing, self.router, self.kv, plan.admission)
        self.workload, self.start_s = workload, start_s
        self.home = len(plan.engines)
        self.links = make_links(plan, self.topo)
        self.whole = self.router.plans_whole_route
        if self.whole:
            self.rate = planned_rates(plan, self.topo)
        inbound, outbound = nic_bytes_per_s(plan)
        self.in_free, self.out_free = list(inbound), list(outbound)
        out_degree, _ = degrees(self.topo)
        self.share = [n / max(d, 1) for n, d in zip(outbound, out_degree, strict=True)]
        self.bandwidth = [link.rate_bytes_per_s for link in self.links]
        self.link_free = list(self.bandwidth)
        self.sending = [False] * len(self.links)
        self.outbound = [{} for _ in range(self.home + 1)]
        self.spans = self.topo.spans
        self.limits = [e.limits for e in plan.engines]
        self.timers = [cost.layer_timer(plan.cluster.node(e.stages[0].node)) for e in plan.engines]
        self.activation = plan.model.activation_bytes_per_token
        self.queues = [{k: [] for k in range(*span)} for span in self.spans]
        self.current = [span[0] for span in self.spans]
        self.busy = [False] * self.home
        self.buffered = [0] * self.home
        self.batch = [None] * self.home
        self.heap, self.created, self.now = [], 0, 0.0
        self.times: list[list[float]] = []
        self.status: list[str] = []
        self.arrivals: list[float] = []

    def at(self, time, fn, *args):
        self.created += 1
        heappush(self.heap, (time, self.created, fn, args))

    def run(self):
        w = self.workload
        self.until = self.start_s + w.duration_s
        self.feeder = None
        if w.trace:
            for request in w.trace:
                self.at(
                    self.start_s + request.arrival_s,
                    self.new,
                    request.prompt_tokens,
                    request.output_tokens,
                )
            end = float("inf")
        else:
            assert isinstance(w.arrivals, ClosedLoop | Saturating)
            self.feeder = make_feeder(w.arrivals)
            for delay in self.feeder.start():
                self.at(self.start_s + delay, self.new, *w.lengths.sample(self.rng))
            end = self.until
        while self.heap and self.heap[0][0] <= end:
            self.now, _, fn, args = heappop(self.heap)
            fn(*args)
        return self

    def launch(self):
        if self.now <= self.until:
            self.new(*self.workload.lengths.sample(self.rng))

    def new(self, prompt, output):
        item = Sequence(len(self.times), prompt, output)
        self.times.append([])
        self.arrivals.append(self.now)
        self.status.append("queued")
        self.settle(item, *self.gate.offer(item))

    def settle(self, item, verdict, ticket):
        if verdict is Verdict.WAITS:
            return
        if ticket is None:
            self.status[item.row] = verdict.value
            return
        self.status[item.row] = "running"
        item.ticket = ticket
        item.hops.extend(ticket.route.hops)
        item.legs.extend(ticket.route.legs)
        self.insert(self.home, item)
        self.at(self.now, self.start_transmission, self.home)

    def insert(self, vertex, item):
        item.hop = 0 if vertex == self.home else item.hop + 1
        self.outbound[vertex][id(item)] = [item, False]

    def free_bandwidth(self, leg):
        a, b = self.links[leg].src, self.links[leg].dst
        free = self.link_free[leg]
        rate = min(
            self.share[a] - (self.bandwidth[leg] - free), self.out_free[a], free, self.in_free[b]
        )
        return rate if rate > 10 else 0.0

    def start_transmission(self, v):
        chosen = []
        entries = list(self.outbound[v].items())
        if not self.whole and v != self.home:
            for _, entry in entries:
                if not entry[1]:
                    entry[1] = True
                    item = entry[0]
                    self.router.observe(item.legs[item.hop - 1], self.now - item.sent_s)
        taken = set()
        for key, (item, _) in entries:
            if len(item.legs) == item.hop:
                offered = self.topo.out[v]
                if self.router.picks_free_legs:
                    offered = [
                        leg for leg in offered if leg not in taken and self.free_bandwidth(leg)
                    ]
                    if not offered:
                        continue
                leg = self.router.next_leg(v, offered, self.queued)
                if leg is None:
                    continue
                item.legs.append(leg)
                if self.topo.hop(leg):
                    item.hops.append(self.topo.hop(leg))
            leg = item.legs[item.hop]
            rate = self.rate[leg] if self.whole else self.free_bandwidth(leg)
            if leg in taken or (self.sending[leg] and self.whole) or not rate:
                continue
            taken.add(leg)
            chosen.append((key, item, leg, rate))
        for key, item, leg, rate in chosen:
            link = self.links[leg]
            del self.outbound[v][key]
            self.reserve(leg, rate)
            self.sending[leg] = True
            item.sent_s = self.now
            duration = link.latency_s + item.tokens * link.token_bytes / rate
            self.at(self.now + duration - link.latency_s, self.finish_sending, item, leg, rate)

    def queued(self, engine):
        return len(self.queues[engine][self.spans[engine][0]])

    def reserve(self, leg, rate):
        self.link_free[leg] -= rate
        self.out_free[self.links[leg].src] -= rate
        self.in_free[self.links[leg].dst] -= rate

    def finish_sending(self, item, leg, rate):
        self.reserve(leg, -rate)
        self.sending[leg] = False
        link = self.links[leg]
        self.at(self.now, self.start_transmission, link.src)
        self.at(self.now + link.latency_s, self.finish_transmission, item, link.dst)

    def finish_transmission(self, item, vertex):
        if vertex == self.home:
            self.at(self.now, self.gather, item)
            return
        item.layer = item.hops[item.hop].start_layer
        self.queues[vertex][item.layer].append(item)
        self.buffered[vertex] += item.tokens
        self.at(self.now, self.start_execution, vertex)

    def next_layer(self, v, layer):
        start, end = self.spans[v]
        for step in range(end - start):
            candidate = start + (layer - start + step) % (end - start)
            if self.queues[v][candidate]:
                return candidate
        return None

    def start_execution(self, v):
        if self.busy[v]:
            return
        layer = self.next_layer(v, self.current[v])
        if layer is None:
            return
        limits = self.limits[v]
        taken, left, prompts, tokens, decodes, context = [], [], 0, 0, 0, 0
        for item in self.queues[v][layer]:
            if item.prefill:
                fits = prompts < limits.max_prefill_seqs
                fits = fits and tokens + item.tokens <= limits.max_prefill_tokens
                if fits:
                    prompts, tokens = prompts + 1, tokens + item.tokens
            else:
                fits = decodes < limits.max_decode_seqs
                fits = fits and context + item.context <= limits.max_decode_context_tokens
                if fits:
                    decodes, context = decodes + 1, context + item.context
            (taken if fits else left).append(item)
        self.queues[v][layer] = left
        seconds = self.timers[v](tokens, decodes, context)
        if layer == self.spans[v][0]:
            size = self.buffered[v] * self.activation
            seconds += size / 4e9 + size / 5e9
            self.buffered[v] = 0
        self.busy[v] = True
        self.batch[v] = (layer, taken)
        self.at(self.now + seconds, self.finish_execution, v)

    def finish_execution(self, v):
        layer, items = self.batch[v]
        self.busy[v] = False
        start, end = self.spans[v]
        for item in items:
            item.layer = layer + 1
            if layer + 1 == end:
                self.insert(v, item)
            else:
                self.queues[v][layer + 1].append(item)
        following = start + (layer + 1 - start) % (end - start)
        found = self.next_layer(v, following)
        self.current[v] = following if found is None else found
        if layer + 1 == end:
            self.at(self.now, self.start_transmission, v)
        self.at(self.now, self.start_execution, v)

    def gather(self, item):
        prompt = item.prefill
        self.times[item.row].append(self.now)
        item.context += item.tokens
        if not prompt:
            item.generated_tokens += 1
        if item.generated_tokens >= item.output_tokens:
            self.status[item.row] = "finished"
            self.gate.release(item.ticket, item.ticket.route.hops)
            while (decided := self.gate.next_waiting()) is not None:
                self.settle(*decided)
        else:
            item.prefill, item.tokens = False, 1
            self.at(self.now, self.next_iteration, item)
        if self.feeder:
            waiting = len(self.gate.waiting)
            for due in ([self.feeder.after_prompt] if prompt else []) + (
                [self.feeder.after_end] if self.status[item.row] == "finished" else []
            ):
                delay = due(self.kv.use, waiting)
                if delay is not None:
                    self.at(self.now + delay, self.launch)

    def next_iteration(self, item):
        self.router.count_decode(item.legs)
        self.insert(self.home, item)
        self.at(self.now, self.start_transmission, self.home)
