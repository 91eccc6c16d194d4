"""Which GPUs hold a deployment: least loaded first, packing, or packing up to a threshold.

A GPU's load is the share of recent samples in which it was busy. A strategy orders the GPUs;
each stage then takes the first ones in that order that have room. Unlike the published loop this
ends for every input, and a stage keeps its own layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from penstock.errors import SpecError
from penstock.plan.intent.layers import LayerMap, check_free

Strategy = Literal["llf", "packing", "hybrid"]
STRATEGIES: tuple[Strategy, ...] = ("llf", "packing", "hybrid")
HYBRID_THRESHOLD = 0.7


def gpu_order(
    strategy: Strategy, load: Sequence[float], threshold: float = HYBRID_THRESHOLD
) -> tuple[int, ...]:
    """GPU indices in the order of ``strategy``; ``load`` is a share from 0 to 1.

    llf: lowest load first. packing: highest first among GPUs below 1, then the rest. hybrid:
    highest first among those below ``threshold``, then the rest from the lowest on.
    """
    values = np.asarray(load, dtype=np.float64)
    if len(values) and not (np.all(values >= 0) and np.all(values <= 1)):
        raise SpecError("must be shares from 0 to 1", key="load", value=list(load))
    if not 0 < threshold <= 1:
        raise SpecError("must be above 0 and at most 1", key="threshold", value=threshold)
    if strategy == "llf":
        return _sorted(values, range(len(values)), descending=False)
    limit = 1.0 if strategy == "packing" else threshold
    available = [i for i in range(len(values)) if values[i] < limit]
    busy = [i for i in range(len(values)) if values[i] >= limit]
    first = _sorted(values, available, descending=True)
    return first + _sorted(values, busy, descending=strategy == "packing")


def _sorted(values: np.ndarray, indices: Sequence[int], *, descending: bool) -> tuple[int, ...]:
    sign = -1.0 if descending else 1.0
    return tuple(sorted(indices, key=lambda i: (sign * float(values[i]), i)))


def assign_gpus(
    layer_map: LayerMap,
    free_bytes: Sequence[float],
    strategy: Strategy,
    load: Sequence[float],
    threshold: float = HYBRID_THRESHOLD,
) -> LayerMap:
    """``layer_map`` on GPUs chosen by ``strategy``; where these do not suffice, as it was.

    The stage that needs most memory chooses first. Only GPUs with room are taken, so an uneven
    map on fragmented memory keeps the GPUs for which it was made.
    """
    free = check_free(free_bytes)
    if len(load) != len(free):
        raise SpecError("needs one value a GPU", key="load", value=len(load))
    left = list(gpu_order(strategy, load, threshold))
    groups: dict[int, tuple[int, ...]] = {}
    by_size = sorted(range(len(layer_map.layers)), key=lambda s: (-layer_map.stage_bytes[s], s))
    for stage in by_size:
        size = len(layer_map.groups[stage])
        need = layer_map.stage_bytes[stage]
        taken = tuple(gpu for gpu in left if free[gpu] >= need)[:size]
        if len(taken) < size:
            return layer_map
        groups[stage] = taken
        left = [gpu for gpu in left if gpu not in taken]
    ordered = tuple(groups[stage] for stage in range(len(layer_map.layers)))
    return LayerMap(layer_map.layers, ordered, layer_map.stage_bytes)
