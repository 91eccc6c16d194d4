"""Percentiles of what was measured lately."""

from __future__ import annotations

from collections import deque

PERCENTILES = (50, 90, 99)


class Window:
    """Values of the last ``span_s`` seconds, at most ``most`` of them: the latest."""

    def __init__(self, span_s: float, most: int = 20_000) -> None:
        self._span_s = span_s
        self._values: deque[tuple[float, float]] = deque(maxlen=most)

    def add(self, value: float, now_s: float) -> None:
        self._values.append((now_s, value))

    def percentiles(self, now_s: float) -> dict[str, float] | None:
        """Nearest-rank percentiles and the count, None where there is no value."""
        values = self._values
        while values and values[0][0] < now_s - self._span_s:
            values.popleft()
        if not values:
            return None
        ranked = sorted(value for _, value in values)
        last = len(ranked) - 1
        found = {f"p{p}": ranked[min(last, -(-p * len(ranked) // 100) - 1)] for p in PERCENTILES}
        return {**found, "count": len(ranked)}
