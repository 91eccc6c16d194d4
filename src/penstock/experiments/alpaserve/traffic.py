"""The arrivals of the published runs, drawn again: gamma processes, and Azure's minutes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.plan.pool.greedy import order_of
from penstock.plan.pool.model import PoolTraffic

BIN_S = 30.0
SPREAD_S = 29.9
LOADING_S = 90.0
SEED = 42


def gamma_arrivals(rate_rps: float, cv: float, duration_s: float, seed: int) -> list[float]:
    """Seconds of one model's arrivals: gamma gaps drawn in blocks, as AlpaServe draws them."""
    random = np.random.RandomState(seed)
    block = max(int(rate_rps * duration_s * 1.2), 1)
    times: list[float] = []
    at = 0.0
    while True:
        for gap in random.gamma(1 / cv**2, cv**2 / rate_rps, block).tolist():
            at += gap
            if at >= duration_s:
                return times
            times.append(at)


def gamma_traffic(
    rates_rps: Sequence[float], slo_s: Sequence[float], cv: float, duration_s: float
) -> PoolTraffic:
    """Model i with seed i, merged by time; equal times as AlpaServe sorts them."""
    every = [gamma_arrivals(rate, cv, duration_s, i) for i, rate in enumerate(rates_rps)]
    times = np.array([time for one in every for time in one])
    models = np.repeat(np.arange(len(every)), [len(one) for one in every])
    order = order_of(times)
    limits = np.array(slo_s, dtype=np.float64)
    return PoolTraffic(times[order], models[order].astype(np.int32), limits[models[order]])


def minute_traffic(
    minutes: Sequence[int], scale: float, load_bins: Sequence[int], slo_s: Sequence[float]
) -> PoolTraffic:
    """Minute counts replayed twice over in 30 s each; loading a model delays all by 90 s.

    Each request goes to any model loaded so far. ``slo_s`` [models].
    """
    random = np.random.RandomState(SEED)
    times: list[float] = []
    models: list[int] = []
    loaded = 0
    for place, requests in enumerate([int(count * scale) for count in minutes] * 2):
        while loaded < len(load_bins) and load_bins[loaded] == place:
            loaded += 1
        start = BIN_S * place + LOADING_S * loaded
        times += (np.sort(random.uniform(0.0, SPREAD_S, requests)) + start).tolist()
        models += random.choice(loaded, requests).tolist() if requests else []
    ids = np.array(models, dtype=np.int32)
    return PoolTraffic(np.array(times), ids, np.array(slo_s, dtype=np.float64)[ids])
