"""MaverIQ (SC'25) on a pool: each model in turn chooses a configuration for its intent.

The configuration of least cost for the model's wish is taken, on the GPUs that the strategy picks
among those with room. Requests of all models then go through one FIFO, one at a time on the GPUs
of their model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from penstock.cost.fingerprint import Configuration
from penstock.errors import Infeasible, SpecError
from penstock.plan.intent.balancing import HYBRID_THRESHOLD, STRATEGIES, assign_gpus
from penstock.plan.intent.layers import LayerMap
from penstock.plan.intent.select import Choice, choose
from penstock.plan.intent.table import ConfigurationTable
from penstock.plan.planner import Progress, ProgressCallback
from penstock.plan.pool_plan import PoolPlan, Sharing, Unplaced
from penstock.plan.pool_question import PoolQuestion, Score
from penstock.plan.published.asked import Asked, allowed_forms
from penstock.plan.published.assemble import Placing, Verdict, pool_of
from penstock.plan.published.equal_gpus import one_machine, refuse_budget
from penstock.plan.published.overlap import widened
from penstock.spec.names import did_you_mean
from penstock.spec.served import ServedModel
from penstock.spec.variants import Variant

NAME = "maveriq"
FIFO = Sharing(turns="first-come", admission="queue")
StrategyName = Literal["none", "llf", "packing", "hybrid"]


@dataclass(frozen=True, slots=True)
class Deployed:
    """A model as MaverIQ deploys it; ``choice`` is None where nothing fitted, for ``reason``."""

    served: ServedModel
    choice: Choice | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MaverIQPlanner:
    """``strategy`` picks the GPUs; ``none`` leaves them to the layer map (the emptiest ones)."""

    strategy: StrategyName = "none"
    threshold: float = HYBRID_THRESHOLD

    def plan(self, question: PoolQuestion, score: Score, progress: ProgressCallback) -> PoolPlan:
        """``score`` gives the plan's value, since MaverIQ estimates none.

        Raises ``SpecError`` for more than one machine, ``Infeasible`` where no model fits.
        """
        refuse_budget(question, NAME)
        asked = Asked(question, one_machine(question.cluster, NAME))
        deployed = deployments(asked, self.strategy, self.threshold, progress)
        placed = [one for one in deployed if one.choice is not None]
        if not placed:
            raise Infeasible(f"no model fits: {deployed[0].reason}", binding="memory")
        groups, replicas, notes = widened(asked, [(one.served, one.choice) for one in placed])
        placings = [
            Placing(one.served, _form(one), (replica,))
            for one, replica in zip(placed, replicas, strict=True)
        ]
        unplaced = tuple(
            Unplaced(one.served.name, one.reason) for one in deployed if one.choice is None
        )
        reasons = (
            *(_said(one) for one in placed),
            *notes,
            "batch 1, first come first served; its wait of the whole host for the head of one "
            "queue is not part of this plan",
        )
        found = pool_of(asked, groups, placings, Verdict(NAME, 0.0, FIFO, unplaced, reasons))
        progress(Progress("simulating the answer"))
        return replace(found, value=float(score([found])[0]))


def _form(one: Deployed) -> Variant:
    assert one.choice is not None
    precision = one.choice.configuration.precision
    return next(form for form in one.served.variants if form.precision == precision)


def _said(one: Deployed) -> str:
    assert one.choice is not None
    gpus = ", ".join(str(gpu) for gpu in one.choice.layer_map.gpus)
    said = f"{one.served.name}: {one.served.wish.intent} chose {one.choice.configuration} "
    return f"{said}on GPUs {gpus}, {one.choice.latency_s:.3f} s a request"


def deployments(
    asked: Asked,
    strategy: StrategyName = "none",
    threshold: float = HYBRID_THRESHOLD,
    progress: ProgressCallback = lambda _: None,
) -> tuple[Deployed, ...]:
    """What each model gets in order. A GPU's load is the share of time its models keep it busy.

    Raises ``SpecError`` for an unknown strategy.
    """
    if strategy != "none" and strategy not in STRATEGIES:
        names = ("none", *STRATEGIES)
        raise SpecError(
            "unknown strategy", key="strategy", value=strategy, fix=did_you_mean(strategy, names)
        )
    gpus = asked.machines.num_gpus
    rooms = _rooms(asked)
    used, busy = [0.0] * gpus, [0.0] * gpus
    found = []
    for done, served in enumerate(asked.question.models):
        progress(Progress(f"choosing for {served.name}", done / len(asked.question.models)))
        free = [max(0.0, rooms[served.name] - taken) for taken in used]
        one = _deploy(asked, served, free)
        if one.choice is not None:
            layers = one.choice.layer_map
            if strategy != "none":
                load = [min(1.0, share) for share in busy]
                layers = assign_gpus(layers, free, strategy, load, threshold)
            one = replace(one, choice=replace(one.choice, layer_map=layers))
            _occupy(layers, used)
            share = asked.means[served.name].rate_per_s * one.choice.latency_s  # type: ignore[union-attr]
            for gpu in layers.gpus:
                busy[gpu] += share
        found.append(one)
    return tuple(found)


def _rooms(asked: Asked) -> dict[str, float]:
    """Bytes of an empty GPU for each model, by the form that needs most beside weights."""
    return {
        served.name: max(
            asked.room_bytes(asked.cost(served, form.precision), served.name)
            for form in allowed_forms(served)
        )
        for served in asked.question.models
    }


def _occupy(layers: LayerMap, used: list[float]) -> None:
    for group, size in zip(layers.groups, layers.stage_bytes, strict=True):
        for gpu in group:
            used[gpu] += size


def _deploy(asked: Asked, served: ServedModel, free: Sequence[float]) -> Deployed:
    table = configuration_table(asked, served)
    if table is None:
        return Deployed(served, None, "no configuration fits an empty machine")
    try:
        return Deployed(served, choose(table, replace(served.wish, or_nearest=True), free))
    except Infeasible as error:
        return Deployed(served, None, str(error))


def configuration_table(asked: Asked, served: ServedModel) -> ConfigurationTable | None:
    """Every configuration that the cost model knows, for a mean request alone.

    TP degrees are powers of two; PP is whatever the GPUs allow. None where there is none.
    """
    gpus = asked.machines.num_gpus
    shapes = [
        (1 << bit, pipeline)
        for bit in range(gpus.bit_length())
        for pipeline in range(1, (gpus >> bit) + 1)
        if pipeline <= served.model.num_hidden_layers
    ]
    rows: list[tuple[Configuration, float, float, float]] = []
    for form in served.variants:
        cost = asked.cost(served, form.precision)
        for tensor, pipeline in shapes:
            shape = asked.shape(tensor, pipeline)
            try:
                seconds = sum(asked.latency_s(cost, served.name, shape))
                held = asked.held_bytes(cost, served.name, shape, 1) * tensor * pipeline
            except (SpecError, Infeasible):
                continue
            rows.append(
                (Configuration(tensor, pipeline, form.precision), seconds, held, form.accuracy)
            )
    if not rows:
        return None
    shapes_of, seconds_of, bytes_of, accuracy_of = zip(*rows, strict=True)
    return ConfigurationTable(
        served.name,
        served.model.num_hidden_layers,
        shapes_of,
        np.array(seconds_of),
        np.array(bytes_of),
        np.array(accuracy_of),
        np.array([one.tensor_parallel_size for one in shapes_of]),
        np.array([one.pipeline_parallel_size for one in shapes_of]),
    )
