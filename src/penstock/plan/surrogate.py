"""Decode throughput of a placement by arithmetic: KV-limited concurrency over round-trip time.

With requests always waiting, the KV memory that fills first sets how many requests run at once
(N); each needs one trip for its prompt and one per output token; throughput is what N requests
finish. A trip is the time on links plus, at each node, the mean wait for the running batch and
the batch itself, whose size follows from the traffic: a closed network solved by fixed point.
Good for ranking placements cheaply; the simulator gives the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.plan.flow import Flow
from penstock.plan.placement import Placement, PlacementProblem

PROMPT_TOKENS = 763.0
OUTPUT_TOKENS = 232.0
"""Means of the Azure 2023 conversation trace, as published with Helix (section 6.2)."""
_KV_FILL = 0.85
_ROUNDS = 12
_BATCH_ROUNDS = 12
_BUSIEST = 0.97


class Surrogate:
    """Scores placements of one problem; remembers timers and memory sizes."""

    def __init__(
        self,
        problem: PlacementProblem,
        prompt_tokens: float = PROMPT_TOKENS,
        output_tokens: float = OUTPUT_TOKENS,
    ) -> None:
        self._problem = problem
        self._prompt, self._output = prompt_tokens, output_tokens
        self._timer: dict[int, Callable[[int, int, int], float]] = {}
        self._memory: dict[tuple[int, int], float] = {}

    def decode_tokens_per_s(self, placement: Placement, flow: Flow) -> float:
        """Decode tokens/s when requests are spread as ``flow`` says; 0 without flow."""
        if flow.value <= 0:
            return 0.0
        used = np.flatnonzero(flow.node_flow > 1e-9 * flow.value).tolist()
        share = {i: float(flow.node_flow[i] / flow.value) for i in used}
        layers = {i: _length(placement, i) for i in used}
        concurrency = min(
            self._kv_tokens(i, layers[i]) * _KV_FILL / (self._context * share[i]) for i in used
        )
        rate = 0.0
        for _ in range(_ROUNDS):
            prompt_s, decode_s = self._link_seconds(flow, rate)
            for i in used:
                batch_s = self._batch_seconds(i, layers[i], rate * share[i], concurrency * share[i])
                # On arrival half a batch is still running, in the mean.
                prompt_s += share[i] * 1.5 * batch_s
                decode_s += share[i] * 1.5 * batch_s
            target = concurrency / (prompt_s + self._output * decode_s)
            rate = target if rate == 0 else 0.5 * (rate + target)
        return float(rate * self._output)

    @property
    def _context(self) -> float:
        """Tokens of KV a request is expected to need: what admission reserves."""
        return self._prompt + self._output

    def _kv_tokens(self, node: int, layers: int) -> float:
        kind = int(self._problem.node_type[node])
        if (kind, layers) not in self._memory:
            capacity = self._problem.cost.kv_capacity_layer_tokens(
                self._problem.cluster.nodes[node], layers
            )
            self._memory[kind, layers] = capacity / layers
        return self._memory[kind, layers]

    def _link_seconds(self, flow: Flow, rate: float) -> tuple[float, float]:
        """Seconds on links of one prompt and of one decode iteration, waiting included."""
        prompt_s = decode_s = 0.0
        carried = flow.leg_flow > 1e-9 * flow.value
        for (src, dst), amount in zip(
            flow.legs[carried].tolist(), flow.leg_flow[carried].tolist(), strict=True
        ):
            share = amount / flow.value
            per_token = 1.0 / self._problem.link_tokens_per_s[src, dst]
            latency = self._problem.link_latency_s[src, dst]
            tokens = self._prompt + self._output
            busy = min(_BUSIEST, rate * share * tokens * per_token)
            # Most of the queue is prompts: mean residual of a prompt's transfer.
            wait = busy / (1 - busy) * 0.5 * self._prompt * per_token
            prompt_s += share * (latency + wait + self._prompt * per_token)
            decode_s += share * (latency + wait + per_token)
        return prompt_s, decode_s

    def _batch_seconds(self, node: int, layers: int, rate: float, present: float) -> float:
        """Seconds of a batch when ``rate`` requests/s (``present`` at once) pass the node."""
        kind = int(self._problem.node_type[node])
        if kind not in self._timer:
            self._timer[kind] = self._problem.cost.planning_timer(self._problem.cluster.nodes[node])
        timer = self._timer[kind]
        context = self._prompt + 0.5 * self._output
        limits = self._problem.cost.batch_limits(self._problem.cluster.nodes[node], layers)
        seconds = layers * timer(0, 1, int(context))
        for _ in range(_BATCH_ROUNDS):
            decodes = min(present, rate * self._output * seconds, limits.max_decode_seqs)
            prompts = min(present, rate * seconds) * self._prompt
            prompts = min(prompts, float(limits.max_prefill_tokens))
            count = max(1, round(decodes))
            longer = layers * timer(round(prompts), count, int(count * context))
            if abs(longer - seconds) <= 1e-4 * seconds:
                break
            seconds = longer
        return seconds


def _length(placement: Placement, node: int) -> int:
    interval = placement.intervals[node]
    return 0 if interval is None else interval[1] - interval[0]
