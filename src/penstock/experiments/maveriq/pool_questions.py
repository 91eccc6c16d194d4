"""MaverIQ's serving runs as questions about a pool: same host, models, requests and load windows.

What nobody published is the same for all systems here: every prompt has the mean length, step
times and memory are those of ``step_tables``, and a disk that fills a GPU within the 60 s that the
traces leave between the call for a model and its first request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from penstock.cost.steps import StepCostModel
from penstock.experiments.maveriq.data import (
    GPU_BYTES,
    GPUS,
    OUTPUT_TOKENS,
    ModelSet,
    azure_counts,
    model_of,
    model_set,
    variants,
)
from penstock.experiments.maveriq.serving import slo_limits
from penstock.experiments.maveriq.step_errors import SENT_PROMPT_TOKENS
from penstock.experiments.maveriq.step_tables import StepTables, TableCost
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.catalogue import catalogue
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.intent import Intent, Wish
from penstock.spec.minute_bins import BinRules, BinTrace, bin_trace
from penstock.spec.model import ModelSpec
from penstock.spec.served import ServedModel
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, SLOClass, Workload

FP16 = frozenset({Precision("float16"), Precision("float16", int8_kv=True)})
INT4 = frozenset({Precision("int4"), Precision("int4", int8_kv=True)})
# GPTQ has the weights of int4 and less accuracy; MaverIQ chose it in none of its logged runs.
QUANTISED = FP16 | INT4 | frozenset({Precision("int8"), Precision("int8", int8_kv=True)})
LOAD_WINDOW_S = 60.0
LINK_BYTES_PER_S = 25e9
REGION = "host"
PLANNING_SEED = 43
"""Ours plans for other draws of the same rates: it does not know the requests to come."""


@dataclass(frozen=True, slots=True)
class Case:
    """One serving run."""

    models: str
    trace: str
    scale: float

    def __str__(self) -> str:
        return f"{self.models} {self.trace} {self.scale:g}"


CASES = (
    *(Case("large", "conversation", scale) for scale in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)),
    *(Case("large", "code", scale) for scale in (0.1, 0.2, 0.3, 0.4)),
    Case("regular", "code", 0.4),
    *(Case("twentyone", "conversation", scale) for scale in (0.2, 0.4)),
)


@lru_cache(maxsize=4)
def step_tables(maveriq: Path) -> StepTables:
    return StepTables(maveriq)


@dataclass(frozen=True)
class Costs:
    """Step costs by model and precision; a ``CostOf``."""

    maveriq: Path

    def __call__(self, model: ModelSpec) -> StepCostModel:
        return _cost(self.maveriq, model)


@lru_cache(maxsize=128)
def _cost(maveriq: Path, model: ModelSpec) -> StepCostModel:
    return TableCost(model, step_tables(maveriq))


def host() -> Cluster:
    """8 x A6000 with the memory that was measured, none of it kept back."""
    gpu = replace(catalogue().get("RTX-A6000"), memory_bytes=int(GPU_BYTES))
    node = Node(
        name="host",
        accelerator=gpu,
        count=GPUS,
        machine_type=f"{gpu.name}x{GPUS}",
        region=REGION,
        nic_in_bytes_per_s=LINK_BYTES_PER_S,
        nic_out_bytes_per_s=LINK_BYTES_PER_S,
        disk_bytes_per_s=GPUS * GPU_BYTES / LOAD_WINDOW_S,
        memory_bytes=int(GPUS * GPU_BYTES),
    )
    coordinator = Coordinator(REGION, LINK_BYTES_PER_S, LINK_BYTES_PER_S)
    link = Link(LINK_BYTES_PER_S, 0.0)
    return Cluster("a6000-host", (node,), coordinator, {(REGION, REGION): link}, {})


@dataclass(frozen=True)
class Traffic:
    """The requests of a case with limits of ``factor`` times the published base."""

    maveriq: Path
    case: Case
    factor: float

    @property
    def models(self) -> ModelSet:
        return model_set(self.maveriq, self.case.models)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every model of the set, which holds some twice."""
        return tuple(f"{i}-{name}" for i, name in enumerate(self.models.models, start=1))

    @property
    def limits_s(self) -> tuple[float, ...]:
        return slo_limits(self.maveriq, self.models, self.factor)

    def drawn(self, seed: int = BinRules().seed) -> BinTrace:
        counts = azure_counts(self.maveriq, self.case.trace)
        rules = BinRules(seed=seed)
        return bin_trace(counts, self.case.scale, self.models.load_bins, rules)

    def workload(self, seed: int = BinRules().seed) -> Workload:
        trace = self.drawn(seed)
        requests = trace.requests(self.names, SENT_PROMPT_TOKENS, OUTPUT_TOKENS)
        classes = tuple(
            SLOClass(name, SLO(e2e_s=limit))
            for name, limit in zip(self.names, self.limits_s, strict=True)
        )
        return Workload(
            f"{self.case} at {self.factor:g}x",
            duration_s=float(trace.arrival_s[-1]),
            trace=tuple(replace(one, class_name=one.model) for one in requests),
            classes=classes,
        )

    def question(
        self,
        precisions: frozenset[Precision],
        intent: Intent = "min_latency",
        seed: int = BinRules().seed,
    ) -> PoolQuestion:
        served = served_models(self.maveriq, self.names, self.models.models, precisions, intent)
        return PoolQuestion(
            host(),
            served,
            self.workload(seed),
            Costs(self.maveriq),
            gpu_memory_utilization=1.0,
        )


def served_models(
    maveriq: Path,
    names: Sequence[str],
    models: Sequence[str],
    precisions: frozenset[Precision],
    intent: Intent,
) -> tuple[ServedModel, ...]:
    """Models with their measured accuracy, in ``precisions`` only."""
    return tuple(
        ServedModel(
            name,
            model_of(model),
            tuple(one for one in variants(maveriq, model) if one.precision in precisions),
            Wish(intent, precisions=precisions),
        )
        for name, model in zip(names, models, strict=True)
    )
