"""KV memory in (token, layer) entries: what is expected to be used, and what is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.policy.route import Hop
from penstock.policy.topology import Topology


class KVExpectation:
    """KV entries the admitted requests are expected to need (Helix section 4.1).

    A request is charged its expected length on every layer of its route when it is admitted,
    and released when it ends; real usage does not correct the charge. Requests whose route is
    chosen hop by hop are charged to all layers alike (``charge_pooled``).
    """

    def __init__(self, topology: Topology) -> None:
        self._num_layers = topology.num_layers
        self._used = [0.0] * len(topology.names)
        self._pooled_tokens = 0
        self.charged = 0
        self.rebuild(topology)

    def rebuild(self, topology: Topology) -> None:
        """Look at ``topology`` from now on (engines failed or came back)."""
        self._capacity = list(topology.kv_capacity)
        self._layers = [end - start for start, end in topology.spans]
        self._holders: list[list[int]] = [[] for _ in range(self._num_layers)]
        for engine, (start, end) in enumerate(topology.spans):
            if topology.alive[engine]:
                for layer in range(start, end):
                    self._holders[layer].append(engine)
        distinct: dict[tuple[int, ...], None] = {}
        for holders in self._holders:
            distinct.setdefault(tuple(holders))
        self._covers = [
            (cover, sum(self._capacity[e] / self._layers[e] for e in cover)) for cover in distinct
        ]
        self.token_capacity = min((total for _, total in self._covers), default=0.0)

    def fits(self, engine: int, expected_tokens: int, high_water_mark: float) -> bool:
        """Whether ``expected_tokens`` on all layers of ``engine`` stay under the mark.

        Counts every layer the engine holds even where a request would run only some, as
        published.
        """
        capacity = self._capacity[engine]
        left = capacity - self._used[engine] - expected_tokens * self._layers[engine]
        return left >= (1 - high_water_mark) * capacity

    def fits_pooled(self, expected_tokens: int, high_water_mark: float) -> bool:
        """Whether ``expected_tokens`` more on every layer stay under the mark of the tightest."""
        return self._pooled_tokens + expected_tokens <= high_water_mark * self.token_capacity

    def charge(self, hops: Iterable[Hop], expected_tokens: int) -> None:
        self.charged += 1
        for hop in hops:
            self._used[hop.engine] += expected_tokens * hop.num_layers

    def release(self, hops: Iterable[Hop], expected_tokens: int) -> None:
        self.charged -= 1
        for hop in hops:
            self._used[hop.engine] -= expected_tokens * hop.num_layers

    def charge_pooled(self, expected_tokens: int) -> None:
        self.charged += 1
        self._pooled_tokens += expected_tokens

    def release_pooled(self, expected_tokens: int) -> None:
        self.charged -= 1
        self._pooled_tokens -= expected_tokens

    def use(self) -> float:
        """Expected use of the tightest layer, a fraction: idle holders count as free room."""
        worst = 0.0
        for cover, total in self._covers:
            if not cover:
                return 1.0
            free = sum((self._capacity[e] - self._used[e]) / self._layers[e] for e in cover)
            use = 1 - (free - self._pooled_tokens) / total if total > 0 else 1.0
            worst = max(worst, use)
        return worst


class KVPool:
    """The entries one engine really holds. ``take`` refuses what does not fit."""

    __slots__ = ("capacity", "peak", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.peak = 0

    def take(self, entries: int) -> bool:
        used = self.used + entries
        if used > self.capacity:
            return False
        self.used = used
        self.peak = max(self.peak, used)
        return True

    def give(self, entries: int) -> None:
        self.used -= entries


def preemption_victim(admission_order: Sequence[int]) -> int:
    """Which of the requests that share an overfull engine must recompute: index of the youngest.

    Preempting the youngest keeps the oldest running, so that work always progresses.
    """
    return max(range(len(admission_order)), key=admission_order.__getitem__)
