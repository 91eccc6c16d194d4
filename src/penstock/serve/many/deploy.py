"""From an intent to a deployment: which precision, how many GPUs, and where.

Every configuration of the model on the pool's machines is priced (``estimate.py``), and
``plan/intent/select.py`` chooses. Free GPUs come first; where nothing fits them, the model shares
the nodes of another one and they take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock import __version__
from penstock.cost.base import BatchLimits
from penstock.cost.fingerprint import Configuration, Demand
from penstock.errors import Infeasible, SpecError
from penstock.plan.intent.select import Choice, choose
from penstock.plan.intent.table import ConfigurationTable, build_table
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.pool_plan import Deployment, PoolPlan
from penstock.plan.settings import SchedulerSettings
from penstock.serve.many.bodies import DeployBody
from penstock.serve.many.estimate import StepEstimator
from penstock.serve.many.member import Making, check_loadable
from penstock.serve.many.memory import Budget, engine_bytes
from penstock.serve.many.seats import Block, Seats, recut, seats
from penstock.spec.cluster import COORDINATOR
from penstock.spec.hardware import Accelerator
from penstock.spec.intent import Wish
from penstock.spec.load import load_model
from penstock.spec.model import ModelSpec
from penstock.spec.served import in_precision
from penstock.spec.variants import Precision, Variant

MAX_NUM_SEQS = 64
KV_LENGTHS = 8
"""KV memory of an engine, in requests of the model's full length, unless it is stated."""
_OWN = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration and the GPUs of each of its stages."""

    choice: Choice
    blocks: tuple[Block, ...]
    shared: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A pool plan with the model in it, and what its first engine was chosen for."""

    plan: PoolPlan
    model: str
    found: Found

    def told(self) -> dict[str, object]:
        """What the caller is told of the choice."""
        choice = self.found.choice
        return {
            "model": self.model,
            "precision": str(choice.configuration.precision),
            "tensor_parallel_size": choice.configuration.tensor_parallel_size,
            "pipeline_parallel_size": choice.configuration.pipeline_parallel_size,
            "layers": list(choice.layer_map.layers),
            "gpus": [f"{machine}:{i}" for block in self.found.blocks for machine, i in block],
            "shares_nodes": self.found.shared,
            "estimated_latency_s": choice.latency_s,
            "memory_bytes": choice.memory_bytes,
        }


def deployed(plan: PoolPlan, body: DeployBody, making: Making) -> Answer:
    """``plan`` with the model of ``body`` as its intent wants it; one that is there moves.

    Raises ``SpecError`` for what cannot be read or loaded, and ``Infeasible`` with the constraint
    that binds where no configuration will do.
    """
    model = _shape(body.checkpoint, making)
    others = tuple(entry for entry in plan.deployments if entry.name != body.model)
    base = replace(plan, deployments=others)
    asked = _Asked(model, body, variants_of(model, body, making))
    found: list[Found] = []
    engines: list[Engine] = []
    for i in range(body.replicas):
        one = asked.best(base, {gpu for other in found for b in other.blocks for gpu in b})
        found.append(one)
        asked.keep_precision(one)
        engines.append(asked.engine(f"engine-{i}", one))
    blocks = [block for one in found for block in one.blocks]
    changed, names = recut(base, blocks)
    entry = asked.deployment(changed, engines, found, names)
    answer = replace(changed, deployments=(*changed.deployments, entry))
    return Answer(answer, body.model, found[0])


def _shape(checkpoint: str, making: Making) -> ModelSpec:
    """The model in a checkpoint folder; null workers need no weights, and take presets too."""
    if making.options.executor == "null":
        return load_model(checkpoint)
    from penstock.serve.model import read_checkpoint  # noqa: PLC0415 - imports torch

    read_checkpoint(checkpoint)
    return load_model(Path(checkpoint))


def variants_of(model: ModelSpec, body: DeployBody, making: Making) -> tuple[Variant, ...]:
    """The precisions that are allowed, with their accuracy.

    That of the checkpoint is 1; so is that of float32, which holds every value of the others.
    Raises ``SpecError`` for one that cannot be loaded, or whose accuracy must be known and is not.
    """
    own = _OWN.get(model.weight_dtype or model.dtype, str(model.weight_dtype))
    found = []
    for name in body.precisions or (own,):
        precision = Precision(name)
        in_precision(model, precision)
        if making.options.executor == "torch":
            check_loadable(body.model, precision)
        accuracy = body.accuracy.get(name, 1.0 if name in (own, "float32") else None)
        if accuracy is None and body.accuracy_floor > 0:
            raise SpecError(
                "its accuracy is not known, and a floor is asked for",
                key=f"accuracy.{name}",
                fix="state it, as a share of the unquantised model's",
            )
        found.append(Variant(precision, accuracy or 1.0))
    return tuple(found)


class _Asked:
    """One deployment that is asked for, whatever the pool looks like."""

    def __init__(self, model: ModelSpec, body: DeployBody, variants: tuple[Variant, ...]) -> None:
        self._model, self._body, self._variants = model, body, variants
        self._cost: Mapping[str, object] = cost_document(body.fingerprint)
        self._kv_tokens = _kv_tokens(model, body)
        self._demand = Demand(body.prompt_tokens, body.output_tokens, body.batch)
        self._wish = Wish(body.intent, body.slo_latency, body.accuracy_floor)

    def best(self, plan: PoolPlan, taken: set[tuple[str, int]]) -> Found:
        """The best configuration on GPUs that are not ``taken``, free ones first."""
        budget = _budget(plan)
        most = sum(machine.count for machine in plan.cluster.nodes)
        options: list[Found] = []
        refusals: list[Infeasible] = []
        unpriced: SpecError | None = None
        for tensor in self._tensors(most):
            for there in seats(plan, tensor):
                blocks = tuple(b for b in there.blocks if not taken & set(b))
                if len(blocks) < len(there.blocks) and there.shared:
                    continue
                if blocks:
                    try:
                        options.append(self._on(plan, budget, Seats(blocks, there.shared), tensor))
                    except Infeasible as error:
                        refusals.append(error)
                    except SpecError as error:
                        unpriced = error
        if options:
            return min(options, key=lambda one: (one.shared, one.choice.cost))
        if unpriced is not None and not refusals:
            raise unpriced
        if refusals:
            self._explain(plan, budget, most)
            # Together the GPUs have the room, but not where a configuration needs it.
            raise refusals[0]
        raise Infeasible(
            f"{self._body.model}: no configuration has its GPUs side by side",
            binding="tensor_parallel_size, pipeline_parallel_size",
            fix="leave the sizes to the intent, or remove a model",
        )

    def _explain(self, plan: PoolPlan, budget: Budget, most: int) -> None:
        """Raises ``Infeasible`` with the nearest point of all configurations on all GPUs."""
        every = [
            one
            for tensor in self._tensors(most)
            for one in self._configurations(tensor, most // tensor, exact=False)
        ]
        table = self._priced(plan.cluster.nodes[0].accelerator, every)
        choose(table, self._wish, [budget.free_bytes(gpu) for gpu in budget.room])

    def keep_precision(self, found: Found) -> None:
        """Engines of one deployment are stored alike: what the first one takes, all take."""
        precisions = frozenset({found.choice.configuration.precision})
        self._wish = replace(self._wish, precisions=precisions)

    def _tensors(self, most: int) -> list[int]:
        model, wanted = self._model, self._body.tensor_parallel_size
        split = (model.num_attention_heads, model.num_key_value_heads, model.intermediate_size)
        sizes = [1 << i for i in range(most.bit_length()) if 1 << i <= most]
        if wanted is not None:
            sizes = [wanted]
        found = [size for size in sizes if not any(value % size for value in split)]
        if not found:
            raise SpecError(
                "does not divide the model's heads",
                key="tensor_parallel_size",
                value=wanted,
                fix=f"{model.num_attention_heads} heads, {model.num_key_value_heads} KV heads",
            )
        return found

    def _on(self, plan: PoolPlan, budget: Budget, there: Seats, tensor: int) -> Found:
        accelerator = plan.cluster.node(there.blocks[0][0][0]).accelerator
        every = self._configurations(tensor, len(there.blocks), exact=there.shared)
        table = self._priced(accelerator, every)
        free = [min(budget.free_bytes(gpu) for gpu in block) for block in there.blocks]
        if there.shared:
            # Stages keep their order: none is emptier than another.
            free = [min(free)] * len(free)
        chosen = choose(table, self._wish, [size for size in free for _ in range(tensor)])
        blocks = tuple(there.blocks[group[0] // tensor] for group in chosen.layer_map.groups)
        return Found(chosen, blocks, there.shared)

    def _configurations(self, tensor: int, stages: int, *, exact: bool) -> list[Configuration]:
        """Configurations of ``tensor`` GPUs a stage; with ``exact`` of ``stages`` stages only."""
        model, wanted = self._model, self._body.pipeline_parallel_size
        most = min(stages, model.num_hidden_layers)
        depths = range(most, most + 1) if exact else range(1, most + 1)
        if wanted is not None:
            depths = range(wanted, wanted + 1)
            if wanted > most or (exact and wanted != stages):
                raise Infeasible(
                    f"{self._body.model}: there is no place for {wanted} stages of {tensor} GPUs",
                    binding="pipeline_parallel_size",
                    fix="leave it to the intent",
                )
        if exact and stages > model.num_hidden_layers:
            raise Infeasible(
                f"{self._body.model}: fewer layers than the stages it would share",
                binding="memory",
            )
        return [
            Configuration(tensor, depth, variant.precision)
            for depth in depths
            for variant in self._variants
        ]

    def _priced(
        self, accelerator: Accelerator, configurations: Sequence[Configuration]
    ) -> ConfigurationTable:
        """Those that the cost model has figures for. Raises ``SpecError`` where there are none."""
        estimator = StepEstimator(self._model, accelerator, self._cost, self._kv_tokens)
        known: list[Configuration] = []
        unknown: SpecError | None = None
        for one in configurations:
            try:
                estimator.latency_s(one, self._demand)
                known.append(one)
            except SpecError as error:
                unknown = error
        if not known and unknown is not None:
            raise unknown
        return build_table(
            self._body.model,
            self._model.num_hidden_layers,
            known,
            estimator=estimator,
            demand=self._demand,
            variants=self._variants,
        )

    # -- the deployment -----------------------------------------------------------------------

    def engine(self, name: str, found: Found) -> Engine:
        """The engine of ``found``; its stages are named when all are known."""
        layers = found.choice.layer_map.layers
        ends = np.cumsum(layers)
        stages = tuple(
            Stage("", int(end) - count, int(end)) for count, end in zip(layers, ends, strict=True)
        )
        tokens = self._kv_tokens
        return Engine(
            name,
            stages,
            tokens * self._model.num_hidden_layers,
            BatchLimits(MAX_NUM_SEQS, 512, MAX_NUM_SEQS, tokens),
            scheduler=SchedulerSettings(
                "vllm",
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=512,
                enable_prefix_caching=True,
                prefix_piece_tokens=16,
            ),
        )

    def deployment(
        self,
        plan: PoolPlan,
        engines: Sequence[Engine],
        found: Sequence[Found],
        names: Sequence[str],
    ) -> Deployment:
        """The model on the nodes ``names``, in the order of the stages of ``engines``."""
        left = iter(names)
        placed = tuple(
            replace(e, stages=tuple(replace(stage, node=next(left)) for stage in e.stages))
            for e in engines
        )
        precision = found[0].choice.configuration.precision
        accuracy = next(v.accuracy for v in self._variants if v.precision == precision)
        model = in_precision(self._model, precision)
        return Deployment(
            self._body.model,
            Plan(
                cluster=plan.nodes,
                model=model,
                engines=placed,
                legs=tuple(
                    leg
                    for e in placed
                    for leg in (Leg(COORDINATOR, e.name, 1, 1), Leg(e.name, COORDINATOR, 1, 1))
                ),
                planner="intent",
                objective="goodput",
                value=0.0,
                max_flow_tokens_per_s=float(len(placed)),
                routing=Routing(engine_router="prefix-affinity"),
                cost=self._cost,
                version=__version__,
                checkpoint=self._body.checkpoint,
            ),
            precision,
            accuracy,
            self._body.priority,
        )


def cost_document(fingerprint: str | None) -> Mapping[str, object]:
    """What prices steps: the fingerprint that was measured, else the roofline of the catalogue."""
    if fingerprint is None:
        return {"kind": "step-roofline"}
    return {"kind": "fingerprint", "path": fingerprint}


def _kv_tokens(model: ModelSpec, body: DeployBody) -> int:
    """KV memory of an engine in tokens. Raises ``SpecError`` below one block."""
    longest = model.max_position_embeddings
    if body.kv_memory is None:
        return KV_LENGTHS * longest
    entry = model.kv_bytes_per_token_per_layer * model.num_hidden_layers
    tokens = min(body.kv_memory // entry, MAX_NUM_SEQS * (longest + 16))
    if tokens < 16:
        raise SpecError(
            f"a KV block needs {16 * entry} bytes",
            key="kv_memory",
            value=body.kv_memory,
            fix="give more memory",
        )
    return int(tokens)


def _budget(plan: PoolPlan) -> Budget:
    budget = Budget.of((plan,))
    for entry in plan.deployments:
        for engine in entry.plan.engines:
            budget.take(engine_bytes(plan, entry.plan.model, engine))
    return budget
