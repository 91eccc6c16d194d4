"""What the nodes did over time, in equal buckets."""

from __future__ import annotations

import numpy as np

from penstock.measure.run import NodeSeries


class Series:
    """Collects busy seconds, waiting seconds and KV use per node and bucket.

    Waiting time is booked when a batch takes an iteration in, KV use is the mean over the batches
    that started in the bucket (the last known value where none did).
    """

    def __init__(self, names: tuple[str, ...], start_s: float, bucket_s: float) -> None:
        self._names = names
        self._start_s = start_s
        self._bucket_s = bucket_s
        self._busy: list[list[float]] = [[] for _ in names]
        self._waited: list[list[float]] = [[] for _ in names]
        self._kv: list[list[float]] = [[] for _ in names]
        self._batches: list[list[int]] = [[] for _ in names]

    def batch(self, node: int, start_s: float, end_s: float, waited_s: float, kv: int) -> None:
        """Book a batch that runs from ``start_s`` to ``end_s`` with ``kv`` entries in use."""
        width = self._bucket_s
        first = int((start_s - self._start_s) / width)
        last = int((end_s - self._start_s) / width)
        busy = self._busy[node]
        while len(busy) <= last:
            busy.append(0.0)
            self._waited[node].append(0.0)
            self._kv[node].append(0.0)
            self._batches[node].append(0)
        self._waited[node][first] += waited_s
        self._kv[node][first] += kv
        self._batches[node][first] += 1
        if first == last:
            busy[first] += end_s - start_s
            return
        for bucket in range(first, last + 1):
            left = self._start_s + bucket * width
            busy[bucket] += min(end_s, left + width) - max(start_s, left)

    def result(self, end_s: float, capacity: list[int]) -> NodeSeries:
        """Return fractions and means for the buckets up to ``end_s``."""
        buckets = max(1, int(np.ceil((end_s - self._start_s) / self._bucket_s)))
        shape = (buckets, len(self._names))
        busy, kv, queued = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for node in range(len(self._names)):
            last = 0.0
            for bucket in range(min(buckets, len(self._busy[node]))):
                busy[bucket, node] = self._busy[node][bucket] / self._bucket_s
                queued[bucket, node] = self._waited[node][bucket] / self._bucket_s
                if self._batches[node][bucket]:
                    mean = self._kv[node][bucket] / self._batches[node][bucket]
                    last = mean / capacity[node] if capacity[node] else 0.0
                kv[bucket, node] = last
        return NodeSeries(
            self._names, self._bucket_s, self._start_s, np.minimum(busy, 1.0), kv, queued
        )
