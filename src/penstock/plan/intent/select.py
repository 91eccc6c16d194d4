"""One deployment: filter by constraints, sort by the intent's cost, take the first that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.fingerprint import GIB, Configuration
from penstock.errors import Infeasible
from penstock.plan.intent.layers import LayerMap, check_free, place_layers
from penstock.plan.intent.table import ConfigurationTable
from penstock.spec.intent import Intent, Wish

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
# Costs as near as this are one: the figures are sums of floats.
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration, its place, and its estimates. ``meets_slo`` is False only where
    ``or_nearest`` was asked for and nothing met it."""

    configuration: Configuration
    layer_map: LayerMap
    latency_s: float
    memory_bytes: float
    cost: float
    meets_slo: bool = True


def costs(table: ConfigurationTable, intent: Intent) -> FloatArray:
    """The cost that ``intent`` minimises, per configuration: s, byte s, bytes or GPU s."""
    if intent == "min_latency":
        return table.latency_s
    if intent == "min_cost":
        return table.latency_s * table.memory_bytes
    if intent == "min_memory":
        return table.memory_bytes
    return table.latency_s * table.gpus


def fits(table: ConfigurationTable, free_bytes: Sequence[float]) -> BoolArray:
    """Which configurations find room for their layers on these GPUs; all at once.

    The same rule as ``place_layers``: stages take the emptiest GPUs in blocks, each stage needs a
    layer, and together they need them all.
    """
    free = -np.sort(-check_free(free_bytes))
    result = np.zeros(len(table.configurations), dtype=np.bool_)
    layer_bytes = table.layer_bytes
    for tensor in np.unique(table.tensor):
        ends = np.arange(tensor - 1, len(free), tensor)
        rows = np.flatnonzero((table.tensor == tensor) & (table.pipeline <= len(ends)))
        if not len(rows):
            continue
        # A block's room is that of its last GPU: the fullest one.
        rooms = np.floor(free[ends][None, :] / layer_bytes[rows, None] + 1e-9)
        held = np.cumsum(rooms, axis=1)[np.arange(len(rows)), table.pipeline[rows] - 1]
        last = rooms[np.arange(len(rows)), table.pipeline[rows] - 1]
        enough = (held >= table.layers) & (last >= 1) & (table.pipeline[rows] <= table.layers)
        result[rows] = enough
    return result


def choose(table: ConfigurationTable, wish: Wish, free_bytes: Sequence[float]) -> Choice:
    """The best configuration for ``wish`` on GPUs with ``free_bytes``.

    Ties go to the lower latency, then to the earlier configuration. Raises ``Infeasible``: which
    constraint binds, and the nearest feasible point.
    """
    allowed = _allowed(table, wish)
    accurate = table.accuracy >= wish.accuracy_floor
    roomy = fits(table, free_bytes)
    usable = allowed & accurate & roomy
    if wish.latency_slo_s is None:
        quick = np.ones_like(usable)
    else:
        quick = table.latency_s < wish.latency_slo_s
    if not np.any(usable & quick):
        if wish.or_nearest and np.any(usable):
            return _choice(table, _least(table.latency_s, usable), wish, free_bytes, met=False)
        raise _infeasible(table, wish, (allowed, accurate, roomy, quick), free_bytes)
    cost = costs(table, wish.intent)
    among = usable & quick
    lowest = float(cost[among].min())
    best = _least(table.latency_s, among & (cost <= lowest * (1 + _TIE)))
    return _choice(table, best, wish, free_bytes, met=True)


def _allowed(table: ConfigurationTable, wish: Wish) -> BoolArray:
    allowed = wish.precisions
    return np.array([allowed is None or c.precision in allowed for c in table.configurations])


def _least(values: FloatArray, among: BoolArray) -> int:
    return int(np.argmin(np.where(among, values, np.inf)))


def _choice(
    table: ConfigurationTable, index: int, wish: Wish, free: Sequence[float], *, met: bool
) -> Choice:
    one = table.configurations[index]
    size = float(table.layer_bytes[index])
    tensor, pipeline = one.tensor_parallel_size, one.pipeline_parallel_size
    found = place_layers(free, tensor, pipeline, table.layers, size)
    if found is None:
        raise AssertionError(f"{one} was found to fit and has no place")
    return Choice(
        one,
        found,
        float(table.latency_s[index]),
        float(table.memory_bytes[index]),
        float(costs(table, wish.intent)[index]),
        met,
    )


def _infeasible(
    table: ConfigurationTable,
    wish: Wish,
    masks: tuple[BoolArray, BoolArray, BoolArray, BoolArray],
    free_bytes: Sequence[float],
) -> Infeasible:
    """Name the one constraint whose absence would help, with the point that is nearest then."""
    allowed, accurate, roomy, quick = masks
    name = table.model
    total = f"{sum(free_bytes) / GIB:.1f} GiB free on {len(free_bytes)} GPUs"
    options: list[tuple[str, BoolArray, FloatArray, str]] = [
        ("latency_slo_s", allowed & accurate & roomy, table.latency_s, "{:.3f} s"),
        ("accuracy_floor", allowed & roomy & quick, -table.accuracy, "{:.4f}"),
        ("precisions", accurate & roomy & quick, costs(table, wish.intent), ""),
        ("memory", allowed & accurate & quick, table.memory_bytes, "{:.1f} GiB"),
    ]
    for binding, mask, distance, form in options:
        if not np.any(mask):
            continue
        index = _least(distance, mask)
        value = abs(float(distance[index])) / (GIB if binding == "memory" else 1.0)
        point = f"{table.configurations[index]}"
        said = form.format(value)
        return Infeasible(
            f"{name}: no configuration meets the intent with {total}",
            binding=binding,
            fix=f"{point} is the nearest" + (f", with {said}" if said else ""),
        )
    index = _least(table.memory_bytes, np.ones_like(roomy))
    return Infeasible(
        f"{name}: no configuration meets the intent with {total}; relaxing one constraint alone "
        "does not help",
        binding=", ".join(
            key
            for key, mask in zip(
                ("precisions", "accuracy_floor", "memory", "latency_slo_s"), masks, strict=True
            )
            if not np.all(mask)
        ),
        fix=f"the smallest is {table.configurations[index]}, "
        f"with {table.memory_bytes[index] / GIB:.1f} GiB and {table.latency_s[index]:.3f} s",
    )
