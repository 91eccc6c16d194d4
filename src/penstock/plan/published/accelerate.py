"""Hugging Face Accelerate on a pool: every model over all GPUs, layers balanced, one at a time.

Its balanced device map fills GPUs in order up to an even share and can leave the last ones
without layers; here each GPU of the machine has a layer of every model, as even as memory allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from penstock.cost.steps import StepCostModel
from penstock.errors import Infeasible, SpecError
from penstock.plan.intent.layers import place_layers
from penstock.plan.planner import Progress, ProgressCallback
from penstock.plan.pool_plan import PoolPlan, Sharing, Unplaced
from penstock.plan.pool_question import PoolQuestion, Score
from penstock.plan.published.asked import Asked, best_form
from penstock.plan.published.assemble import Placing, Replica, Verdict, pool_of
from penstock.plan.published.equal_gpus import Wanted, one_machine, refuse_budget
from penstock.spec.served import ServedModel

NAME = "accelerate"
SERIAL = Sharing(turns="first-come", admission="queue")


@dataclass(frozen=True, slots=True)
class AcceleratePlanner:
    """Models in order, as long as they fit; what does not is left out, not offloaded."""

    def plan(self, question: PoolQuestion, score: Score, progress: ProgressCallback) -> PoolPlan:
        """``score`` gives the plan's value. Raises ``SpecError`` for more than one machine,
        ``Infeasible`` where no model fits."""
        refuse_budget(question, NAME)
        asked = Asked(question, one_machine(question.cluster, NAME))
        gpus = asked.machines.num_gpus
        used = 0.0
        placings, unplaced = [], []
        for served in question.models:
            form = best_form(served)
            cost = asked.cost(served, form.precision)
            free = asked.room_bytes(cost, served.name) - used
            held, layers = _balanced(asked, cost, served, free)
            if layers:
                used += held
                placings.append(Placing(served, form, (Replica(0, 1, layers),)))
            else:
                unplaced.append(Unplaced(served.name, "does not fit beside the models before it"))
        if not placings:
            raise Infeasible("no model fits on all GPUs", binding="accelerator memory")
        group = Wanted(tuple((gpu,) for gpu in range(gpus)))
        reasons = (
            f"every model in order over all {gpus} GPUs, a stage each",
            "one request a model at a time; the single thread that keeps all models waiting for "
            "one request is not part of this plan",
        )
        verdict = Verdict(NAME, 0.0, SERIAL, tuple(unplaced), reasons)
        found = pool_of(asked, [group], placings, verdict)
        progress(Progress("simulating the answer"))
        return replace(found, value=float(score([found])[0]))


def _balanced(
    asked: Asked, cost: StepCostModel, served: ServedModel, free: float
) -> tuple[float, tuple[int, ...]]:
    """What a GPU holds of the model, and its layers by GPU; no layers where it does not fit."""
    gpus, layers = asked.machines.num_gpus, served.model.num_hidden_layers
    try:
        held = asked.held_bytes(cost, served.name, asked.shape(1, gpus), 1)
    except SpecError:
        return 0.0, ()
    each = held / ceil(layers / gpus)
    found = place_layers([max(0.0, free)] * gpus, 1, gpus, layers, each)
    return (held, found.layers) if found else (0.0, ())
