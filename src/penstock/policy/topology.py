"""A plan as indices: what routers and admission look at on every request."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.plan import Plan
from penstock.policy.route import Hop
from penstock.spec.cluster import COORDINATOR


@dataclass(frozen=True)
class Topology:
    """Engines 0..n-1 and the coordinator (vertex n), joined by legs in the plan's order.

    ``out[v]`` are the usable legs that leave vertex v: alive, and on some path from the
    coordinator back to it. ``flow`` is tokens/s by leg, ``kv_capacity`` (token, layer) entries.
    """

    names: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    limits: tuple[BatchLimits, ...]
    kv_capacity: tuple[int, ...]
    num_layers: int
    src: tuple[int, ...]
    dst: tuple[int, ...]
    flow: tuple[float, ...]
    out: tuple[tuple[int, ...], ...]
    alive: tuple[bool, ...]

    @property
    def coordinator(self) -> int:
        return len(self.names)

    @property
    def connected(self) -> bool:
        """Whether any path through all layers is left."""
        return bool(self.out[self.coordinator])

    @classmethod
    def of(cls, plan: Plan) -> Topology:
        """Index ``plan``. Raises ``SpecError`` where its legs name unknown engines."""
        index = {engine.name: i for i, engine in enumerate(plan.engines)}
        index[COORDINATOR] = len(plan.engines)
        for leg in plan.legs:
            for end in (leg.src, leg.dst):
                if end not in index:
                    raise SpecError("a leg names an engine the plan does not have", value=end)
        n = len(plan.engines)
        bare = cls(
            names=tuple(engine.name for engine in plan.engines),
            spans=tuple((engine.start_layer, engine.end_layer) for engine in plan.engines),
            limits=tuple(engine.limits for engine in plan.engines),
            kv_capacity=tuple(engine.kv_capacity_layer_tokens for engine in plan.engines),
            num_layers=plan.model.num_hidden_layers,
            src=tuple(index[leg.src] for leg in plan.legs),
            dst=tuple(index[leg.dst] for leg in plan.legs),
            flow=tuple(leg.flow_tokens_per_s for leg in plan.legs),
            out=((),) * (n + 1),
            alive=(True,) * n,
        )
        return bare.restricted((), ())

    def restricted(
        self,
        engines_down: Collection[int],
        legs_down: Collection[int],
        flow: Mapping[int, float] | None = None,
    ) -> Topology:
        """Return what is left without some engines and legs; ``flow`` replaces the weights."""
        n = self.coordinator
        usable = [
            leg
            for leg, (a, b) in enumerate(zip(self.src, self.dst, strict=True))
            if leg not in legs_down and not {a, b} & set(engines_down) and self.follows(a, b)
        ]
        forward = _reachable(n, [(self.src[leg], self.dst[leg]) for leg in usable])
        backward = _reachable(n, [(self.dst[leg], self.src[leg]) for leg in usable])
        out: list[list[int]] = [[] for _ in range(n + 1)]
        for leg in usable:
            starts = self.src[leg] == n or self.src[leg] in forward
            ends = self.dst[leg] == n or self.dst[leg] in backward
            if starts and ends:
                out[self.src[leg]].append(leg)
        return replace(
            self,
            flow=self.flow
            if flow is None
            else tuple(flow.get(i, 0.0) for i in range(len(self.src))),
            out=tuple(tuple(legs) for legs in out),
            alive=tuple(i not in engines_down for i in range(n)),
        )

    def follows(self, src: int, dst: int) -> bool:
        """Whether the layers of ``dst`` continue (exactly or part way in) where ``src`` ends."""
        n = self.coordinator
        layer = 0 if src == n else self.spans[src][1]
        if dst == n:
            return src != n and layer == self.num_layers
        start, end = self.spans[dst]
        return start == 0 if src == n else start <= layer < end

    def hop(self, leg: int) -> Hop | None:
        """The hop a request makes after ``leg``; None at the end of its path."""
        src, dst = self.src[leg], self.dst[leg]
        if dst == self.coordinator:
            return None
        layer = 0 if src == self.coordinator else self.spans[src][1]
        return Hop(dst, layer, self.spans[dst][1])

    def entry_layers(self, engine: int) -> tuple[int, ...]:
        """Layers at which requests can enter ``engine``, ascending; its first layer always."""
        entries = {self.spans[engine][0]}
        for leg, dst in enumerate(self.dst):
            if dst == engine and self.follows(self.src[leg], dst):
                hop = self.hop(leg)
                if hop is not None:
                    entries.add(hop.start_layer)
        return tuple(sorted(entries))


def _reachable(start: int, arcs: Sequence[tuple[int, int]]) -> set[int]:
    """Vertices after ``start``; paths do not continue through ``start`` itself."""
    after: dict[int, list[int]] = {}
    for a, b in arcs:
        after.setdefault(a, []).append(b)
    seen: set[int] = set()
    todo = list(after.get(start, ()))
    while todo:
        vertex = todo.pop()
        if vertex != start and vertex not in seen:
            seen.add(vertex)
            todo.extend(after.get(vertex, ()))
    return seen
