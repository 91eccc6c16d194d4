"""From a pool plan to its engines in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.plan.goodput.plan_cost import plan_cost
from penstock.plan.moves import Placed
from penstock.plan.plan import Plan
from penstock.plan.pool_plan import PoolPlan
from penstock.policy.fleet import role_scheduler
from penstock.sim.engine_plans import engine_specs
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import EngineLog, EngineRecorder
from penstock.sim.engines.stages import engine_timers
from penstock.sim.pools.engine import PoolEngine
from penstock.sim.pools.options import PoolOptions
from penstock.spec.workload import SLOClass


class Builder:
    """Makes engines. ``costs`` price the models by name; a deployment in another precision than
    its entry is priced by its own plan."""

    def __init__(
        self,
        costs: Mapping[str, StepCostModel],
        classes: Mapping[str, SLOClass],
        recorder: EngineRecorder,
        options: PoolOptions,
    ) -> None:
        self._costs = costs
        self._classes = classes
        self._recorder = recorder
        self._options = options
        self._count = 0

    def specs(self, pool: PoolPlan) -> dict[tuple[str, str], EngineSpec]:
        """(model, engine) -> what the simulator needs to know. Raises ``SpecError``."""
        found: dict[tuple[str, str], EngineSpec] = {}
        for entry in pool.deployments:
            for spec in engine_specs(entry.plan):
                if spec.role != "both":
                    raise SpecError(
                        "engines of a pool do both phases",
                        key=f"{entry.name}.engines.{spec.name}.role",
                        value=spec.role,
                        fix='use role: "both"',
                    )
                found[entry.name, spec.name] = replace(spec, name=f"{entry.name}/{spec.name}")
        return found

    def cost(self, name: str, plan: Plan) -> StepCostModel:
        """What prices the steps of a deployment."""
        cost = self._costs.get(name)
        return cost if cost is not None and cost.model == plan.model else plan_cost(plan)

    def engine(self, pool: PoolPlan, placed: Placed, spec: EngineSpec) -> PoolEngine:
        """An engine that waits to be loaded."""
        entry = pool.deployment(placed.model)
        assert spec.num_blocks is not None
        stages = spec.shape.pipeline_parallel_size
        self._count += 1
        return PoolEngine(
            self._count - 1,
            spec,
            role_scheduler(spec.scheduler, spec.role, spec.num_blocks, stages),
            engine_timers(self.cost(placed.model, entry.plan), spec),
            model=placed.model,
            gpus=placed.gpus,
            load_s=placed.load_s,
            priority=entry.priority,
            classes=self._classes,
            recorder=self._recorder,
            log=EngineLog() if self._options.keep_tokens else None,
            step_by_step=self._options.step_by_step,
        )
