"""Who holds how many bytes of which GPU while a pool changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from penstock.plan.plan import Engine
from penstock.plan.pool_plan import PoolPlan
from penstock.spec.model import ModelSpec

Gpu = tuple[str, int]
Bytes = Mapping[Gpu, float]
# Sums of floats are not exact.
_HAIR = 1e-9


def engine_bytes(pool: PoolPlan, model: ModelSpec, engine: Engine) -> Bytes:
    """Weights and KV memory of ``engine`` on every GPU it stands on; none elsewhere by url."""
    if engine.url:
        return {}
    entry_bytes = model.kv_bytes_per_token_per_layer / engine.num_layers
    held: dict[Gpu, float] = {}
    for stage in engine.stages:
        weights = model.slice_weight_bytes(stage.start_layer, stage.end_layer)
        kv = engine.kv_capacity_layer_tokens * stage.num_layers * entry_bytes
        gpus = pool.gpus_of(stage.node)
        held.update(dict.fromkeys(gpus, (weights + kv) / len(gpus)))
    return held


@dataclass(slots=True)
class Budget:
    """Bytes of every GPU, and those that are taken."""

    room: dict[Gpu, float]
    taken: defaultdict[Gpu, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, pools: Iterable[PoolPlan]) -> Budget:
        """The GPUs of all ``pools``; the last one says how large a GPU is."""
        return cls(
            {
                (machine.name, i): float(machine.accelerator.memory_bytes)
                for pool in pools
                for machine in pool.cluster.nodes
                for i in range(machine.count)
            }
        )

    def fits(self, need: Bytes) -> bool:
        return all(
            self.taken[gpu] + size <= self.room[gpu] * (1 + _HAIR) for gpu, size in need.items()
        )

    def take(self, need: Bytes) -> None:
        for gpu, size in need.items():
            self.taken[gpu] += size

    def give(self, need: Bytes) -> None:
        for gpu, size in need.items():
            self.taken[gpu] -= size

    def free_bytes(self, gpu: Gpu) -> float:
        return max(0.0, self.room[gpu] - self.taken[gpu])
