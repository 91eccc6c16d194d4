"""From one pool plan to the next: what stays, what is loaded, what goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from penstock.plan.plan import Engine
from penstock.plan.pool_plan import PoolPlan
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec
from penstock.spec.variants import Precision

Gpus = frozenset[tuple[str, int]]


class Seat(NamedTuple):
    """One engine of a pool, by what it is and where: equal seats need no move."""

    model: str
    precision: Precision
    stages: tuple[tuple[Gpus, int, int], ...]
    """(GPUs, first layer, layer after the last)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An engine of a pool plan. ``load_s``: until its weights are read, on idle disks."""

    model: str
    engine: Engine
    gpus: Gpus
    load_bytes: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Moves:
    """``kept`` pairs an engine with the one that takes its seat; new settings, same weights."""

    kept: tuple[tuple[Placed, Placed], ...]
    loaded: tuple[Placed, ...]
    removed: tuple[Placed, ...]

    @property
    def load_bytes(self) -> float:
        return sum(entry.load_bytes for entry in self.loaded)


def moves(old: PoolPlan | None, new: PoolPlan) -> Moves:
    """What it takes to get from ``old`` (None = an empty pool) to ``new``."""
    before = {} if old is None else dict(_seats(old))
    after = dict(_seats(new))
    return Moves(
        tuple((before[seat], placed) for seat, placed in after.items() if seat in before),
        tuple(placed for seat, placed in after.items() if seat not in before),
        tuple(placed for seat, placed in before.items() if seat not in after),
    )


def _seats(pool: PoolPlan) -> Iterator[tuple[tuple[Seat, int], Placed]]:
    """Every engine by its seat and its number among equal ones."""
    count: dict[Seat, int] = {}
    for entry in pool.deployments:
        for engine in entry.plan.engines:
            gpus = tuple(pool.gpus_of(stage.node) for stage in engine.stages)
            seat = Seat(
                entry.name,
                entry.precision,
                tuple(
                    (held, stage.start_layer, stage.end_layer)
                    for held, stage in zip(gpus, engine.stages, strict=True)
                ),
            )
            number = count[seat] = count.get(seat, -1) + 1
            size, seconds = load_of(pool, entry.plan.model, engine)
            all_gpus = frozenset(gpu for held in gpus for gpu in held)
            yield (seat, number), Placed(entry.name, engine, all_gpus, size, seconds)


def load_of(pool: PoolPlan, model: ModelSpec, engine: Engine) -> tuple[float, float]:
    """Bytes of the weights of ``engine``, and seconds to read them, all stages at once."""
    nodes: list[Node] = [pool.nodes.node(stage.node) for stage in engine.stages]
    sizes = [
        model.slice_weight_bytes(stage.start_layer, stage.end_layer) for stage in engine.stages
    ]
    seconds = max(size / node.disk_bytes_per_s for size, node in zip(sizes, nodes, strict=True))
    return sum(sizes), seconds
