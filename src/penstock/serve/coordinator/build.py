"""What the workers of an engine are built from, beside the engine itself."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.cost.steps import EngineShape, StepCostModel, StepTimer, stage_timers
from penstock.plan.plan import Engine
from penstock.spec.cluster import Cluster
from penstock.spec.model import ModelSpec


@dataclass(frozen=True)
class Build:
    """``cluster`` holds the nodes of the engine's stages; ``dtype`` is that of its weights.

    ``cost`` tells null executors how long steps take.
    """

    cluster: Cluster
    model: ModelSpec
    checkpoint: str
    dtype: str
    cost: StepCostModel | None = None

    def timers(self, engine: Engine) -> tuple[StepTimer, ...]:
        """One per stage; none without a cost model."""
        if self.cost is None:
            return ()
        node = self.cluster.node(engine.stages[0].node)
        return stage_timers(
            self.cost, EngineShape(node.accelerator, node.count, len(engine.stages))
        )
