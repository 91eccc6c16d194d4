"""One model of a server: its runtime, and which of its engines stands for which of the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from penstock.cost.steps import StepCostModel
from penstock.errors import PenstockError, SpecError
from penstock.plan.goodput.plan_cost import plan_cost
from penstock.plan.plan import Engine
from penstock.plan.pool_plan import Deployment
from penstock.policy.deadline import Pace
from penstock.policy.fleet import engine_weights
from penstock.serve.coordinator.build import Build
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.coordinator.fleet import Fleet
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import ModelCard
from penstock.spec.model import ModelSpec
from penstock.spec.served import filled_classes
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, SLOClass

LOADABLE = ("float32", "bfloat16", "float16")
"""Precisions that workers load checkpoints in."""


@dataclass(frozen=True)
class Making:
    """What runtimes are made with, whatever their model.

    ``max_model_len`` None = what each model knows. ``costs`` tell null executors of each model
    how long steps take.
    """

    options: ServeOptions = field(default_factory=ServeOptions)
    classes: tuple[SLOClass, ...] = ()
    max_model_len: int | None = None
    costs: Mapping[str, StepCostModel] = field(default_factory=dict)
    own: Mapping[str, SLO] = field(default_factory=dict)
    """Limits that models brought along, by name; none where one came again without."""
    stated: tuple[SLOClass, ...] | None = None
    """``classes`` before models brought any."""

    def limited_by(self, entries: Iterable[Deployment]) -> Making:
        """With the limits of ``entries`` where the classes of the workload state none.

        A class keeps its place: requests that were served count for it.
        """
        stated = self.classes if self.stated is None else self.stated
        own = dict(self.own)
        for one in entries:
            if one.slo is not None or one.name in own:
                own[one.name] = one.slo or SLO()
        missing = own.keys() - {one.name for one in stated}
        more = tuple(SLOClass(name, SLO()) for name in own if name in missing)
        models = [_Limits(name, slo) for name, slo in own.items()]
        classes = filled_classes((*stated, *more), models)
        return replace(self, classes=classes, own=own, stated=stated)


class _Limits(NamedTuple):
    name: str
    slo: SLO


@dataclass(slots=True, eq=False)
class Member:
    """``drivers`` are running engines by their names in the plan; ``leaving``: no new requests."""

    entry: Deployment
    runtime: Runtime
    card: ModelCard
    drivers: dict[str, EngineDriver] = field(default_factory=dict)
    leaving: bool = False

    @property
    def fleet(self) -> Fleet:
        assert isinstance(self.runtime.domain, Fleet)
        return self.runtime.domain

    @property
    def outstanding(self) -> int:
        """Requests that are not over."""
        return self.fleet.outstanding


def make_member(entry: Deployment, share: WorkerPool, making: Making) -> Member:
    """A runtime without engines. Raises ``SpecError`` for what cannot be served."""
    card = card_of(entry, making)
    eos: tuple[int, ...] = ()
    if making.options.executor == "torch":
        from penstock.serve.model import read_checkpoint  # noqa: PLC0415 - imports torch

        eos = read_checkpoint(entry.plan.checkpoint).eos_token_ids
    runtime = Runtime(
        replace(entry.plan, model=_named(entry), engines=(), legs=()),
        share,
        card,
        replace(making.options, dtype=dtype_of(entry, making.options)),
        eos=eos,
        classes=making.classes,
        cost=making.costs.get(entry.name),
        piece_tokens=piece_tokens(entry.plan.engines),
    )
    return Member(entry, runtime, card)


def build_of(entry: Deployment, making: Making) -> Build:
    """What the engines of ``entry`` are built from."""
    return Build(
        entry.plan.cluster,
        _named(entry),
        entry.plan.checkpoint,
        dtype_of(entry, making.options),
        making.costs.get(entry.name),
    )


def pace_of(driver: EngineDriver, entry: Deployment, making: Making) -> Pace | None:
    """How fast an engine is by its plan's cost model; None where that cannot say."""
    try:
        cost = making.costs.get(entry.name) or plan_cost(entry.plan)
        timers = replace(build_of(entry, making), cost=cost).timers(driver.engine)
    except PenstockError:
        return None
    scheduler = driver.scheduler
    return Pace(timers, scheduler.max_num_seqs, scheduler.max_tokens)


def weight_of(entry: Deployment, engine: Engine) -> float:
    """The router's weight of one engine of the plan."""
    return engine_weights(entry.plan)[entry.plan.engine_index[engine.name]]


def dtype_of(entry: Deployment, options: ServeOptions) -> str:
    """The dtype workers load the weights in. Raises ``SpecError`` where they cannot."""
    if options.executor == "null":
        return "auto"
    check_loadable(entry.name, entry.precision)
    return entry.precision.weights


def check_loadable(name: str, precision: Precision) -> None:
    """Raises ``SpecError`` for a precision that workers cannot load a checkpoint in."""
    if precision.weights not in LOADABLE or precision.int8_kv:
        raise SpecError(
            "a checkpoint cannot be loaded in this precision here",
            key=f"{name}.precision",
            value=str(precision),
            fix=f"use {', '.join(LOADABLE)}",
        )


def card_of(entry: Deployment, making: Making) -> ModelCard:
    """The model as clients see it."""
    longest = entry.plan.model.max_position_embeddings
    length = min(making.max_model_len or longest, longest)
    return ModelCard(entry.name, length, entry.plan.model.vocab_size, entry.plan.checkpoint)


def piece_tokens(engines: tuple[Engine, ...]) -> int:
    """Tokens of a prompt piece where some engine caches prefixes, else 0."""
    return max(
        (
            engine.scheduler.prefix_piece_tokens
            for engine in engines
            if engine.scheduler is not None and engine.scheduler.enable_prefix_caching
        ),
        default=0,
    )


def _named(entry: Deployment) -> ModelSpec:
    return replace(entry.plan.model, name=entry.name)
