"""Max flow and cheapest flow on a small directed network, in plain Python lists.

Dinic's algorithm (level graph, blocking flow) and successive shortest paths with potentials.
Capacities are floats: a residual at or below ``EPSILON`` times the largest finite capacity counts
as none, so rounding cannot keep an augmenting path alive.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

EPSILON = 1e-12


class Network:
    """Vertices ``0 .. n-1`` and arcs in the order they were added.

    Arc ``a`` is stored at ``2 a`` with its reverse at ``2 a + 1``.
    """

    def __init__(self, num_vertices: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(num_vertices)]
        self.head: list[int] = []
        self.residual: list[float] = []
        self.price: list[float] = []
        self.potential: list[float] = []

    def vertex(self) -> int:
        self.out.append([])
        return len(self.out) - 1

    def arc(self, tail: int, head: int, capacity: float, price: float = 0.0) -> int:
        index = len(self.head) // 2
        self.out[tail].append(2 * index)
        self.out[head].append(2 * index + 1)
        self.head += (head, tail)
        self.residual += (capacity, 0.0)
        self.price += (price, -price)
        return index

    def flow(self, arc: int) -> float:
        return self.residual[2 * arc + 1]

    def _tolerance(self) -> float:
        return EPSILON * max((c for c in self.residual if c < inf), default=1.0)

    def max_flow(self, source: int, sink: int) -> float:
        """Push as much as possible from ``source`` to ``sink``; return the amount."""
        tolerance = self._tolerance()
        total = 0.0
        while True:
            level = self._levels(source, tolerance)
            if level[sink] < 0:
                return total
            total += self._blocking_flow(source, sink, level, tolerance)

    def _levels(self, source: int, tolerance: float) -> list[int]:
        level = [-1] * len(self.out)
        level[source] = 0
        queue = [source]
        head, residual, out = self.head, self.residual, self.out
        for u in queue:
            for a in out[u]:
                if residual[a] > tolerance and level[head[a]] < 0:
                    level[head[a]] = level[u] + 1
                    queue.append(head[a])
        return level

    def _blocking_flow(self, source: int, sink: int, level: list[int], tolerance: float) -> float:
        head, residual, out = self.head, self.residual, self.out
        cursor = [0] * len(out)
        total = 0.0
        path: list[int] = []
        u = source
        while True:
            if u == sink:
                amount = min(residual[a] for a in path)
                total += amount
                keep = len(path)
                for i in range(len(path) - 1, -1, -1):
                    a = path[i]
                    residual[a] -= amount
                    residual[a ^ 1] += amount
                    if residual[a] <= tolerance:
                        keep = i
                u = head[path[keep] ^ 1]
                del path[keep:]
                continue
            arcs = out[u]
            position = cursor[u]
            while position < len(arcs):
                a = arcs[position]
                if residual[a] > tolerance and level[head[a]] == level[u] + 1:
                    break
                position += 1
            cursor[u] = position
            if position < len(arcs):
                path.append(arcs[position])
                u = head[arcs[position]]
            elif path:
                u = head[path.pop() ^ 1]
                cursor[u] += 1
            else:
                return total

    def cheapest_flow(self, source: int, sink: int, demand: float) -> float:
        """Push up to ``demand`` units at the least total price; return the amount pushed.

        Prices must not be negative. Successive shortest paths (Ahuja, Magnanti, Orlin, ch. 9.7).
        """
        tolerance = self._tolerance()
        head, residual = self.head, self.residual
        self.potential = [0.0] * len(self.out)
        pushed = 0.0
        while demand - pushed > tolerance:
            distance, entered = self._shortest(source, tolerance)
            if distance[sink] == inf:
                break
            limit = distance[sink]
            for v, d in enumerate(distance):
                self.potential[v] += min(d, limit)
            amount = demand - pushed
            v = sink
            while v != source:
                amount = min(amount, residual[entered[v]])
                v = head[entered[v] ^ 1]
            v = sink
            while v != source:
                a = entered[v]
                residual[a] -= amount
                residual[a ^ 1] += amount
                v = head[a ^ 1]
            pushed += amount
        return pushed

    def _shortest(self, source: int, tolerance: float) -> tuple[list[float], list[int]]:
        """Reduced distances from ``source`` and the arc by which each vertex is entered."""
        head, residual, price, out = self.head, self.residual, self.price, self.out
        potential = self.potential
        distance = [inf] * len(out)
        entered = [-1] * len(out)
        distance[source] = 0.0
        heap = [(0.0, source)]
        while heap:
            d, u = heappop(heap)
            if d > distance[u]:
                continue
            base = d + potential[u]
            for a in out[u]:
                if residual[a] > tolerance:
                    v = head[a]
                    # Rounding may leave a reduced price a hair below zero.
                    through = max(d, base + price[a] - potential[v])
                    if through < distance[v]:
                        distance[v] = through
                        entered[v] = a
                        heappush(heap, (through, v))
        return distance, entered
