"""Models whose step times and bytes are counted by hand, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.cost.base import Provenance
from penstock.cost.step_line import StepLine
from penstock.cost.step_table import TableTimer
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.intent import Intent, Wish
from penstock.spec.model import ModelSpec
from penstock.spec.served import ServedModel
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import SLO, Request, SLOClass, Workload

GPU_BYTES = 1_000_000
HALF, FULL = Precision("int8"), Precision("float16")


@dataclass(frozen=True)
class ToyCost:
    """A decode step takes a millisecond for each 100 kB of weights, halved by every doubling of
    GPUs in a stage; a prompt takes ten steps whatever its length."""

    model: ModelSpec

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return (Provenance("assumed", "toy"),)

    def whole_step_s(self, tensor: int) -> float:
        size = self.model.slice_weight_bytes(0, self.model.num_hidden_layers)
        return size / 1e5 * 1e-3 / tensor

    def step_timer(self, shape: EngineShape) -> TableTimer:
        if self.model.num_attention_heads % shape.tensor_parallel_size:
            raise SpecError("does not divide the heads", key="tensor_parallel_size")
        step_s = self.whole_step_s(shape.tensor_parallel_size)
        prompts = [(1, 10 * step_s), (10_000, 10 * step_s)]
        return TableTimer([StepLine(1, step_s, 0.0)], prompts, 0.0, shape.pipeline_parallel_size)

    def weight_bytes_per_accelerator(self, shape: EngineShape) -> float:
        layers, stages = self.model.num_hidden_layers, shape.pipeline_parallel_size
        most = -(-layers // stages)
        cuts = [(i, min(layers, i + most)) for i in range(0, layers, most)]
        return max(self.model.slice_weight_bytes(a, b) for a, b in cuts) / (
            shape.tensor_parallel_size
        )

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        layers = -(-self.model.num_hidden_layers // shape.pipeline_parallel_size)
        token = self.model.kv_bytes_per_token_per_layer * layers / shape.tensor_parallel_size
        room = GPU_BYTES * shape.gpu_memory_utilization - self.weight_bytes_per_accelerator(shape)
        if room < token:
            raise Infeasible(f"{self.model.name} does not fit")
        return int(room / token)

    def to_dict(self) -> dict[str, object]:
        return {"kind": "toy"}


def toy_model(name: str, layers: int = 4, width: int = 64) -> ModelSpec:
    return ModelSpec(
        name=name,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=width // 8,
        intermediate_size=2 * width,
        vocab_size=16,
        max_position_embeddings=512,
        dtype="fp16",
    )


def machine(name: str, gpus: int, memory: int = GPU_BYTES, kind: str = "Toy") -> Node:
    gpu = Accelerator(kind, memory, 1e9, {"fp16": 1e12}, "pcie", 1e9, 1.0, "toy")
    return Node(name, gpu, gpus, f"{kind}x{gpus}", "here", 1e9, 1e9, 1e9, memory * gpus)


def cluster(*nodes: Node) -> Cluster:
    link = Link(1e9, 0.0)
    return Cluster("toys", nodes, Coordinator("here", 1e9, 1e9), {("here", "here"): link}, {})


def served(
    model: ModelSpec, intent: Intent = "min_latency", *, halved: bool = False
) -> ServedModel:
    """One model under its own name; ``halved`` lets it be stored in half the bytes too."""
    forms = [Variant(FULL, 1.0)] + ([Variant(HALF, 0.9)] if halved else [])
    return ServedModel(model.name, model, tuple(forms), Wish(intent))


def question(
    fleet: Cluster,
    models: list[ServedModel],
    requests: list[tuple[float, str]],
    limit_s: float = 10.0,
) -> PoolQuestion:
    """``requests`` are (arrival, model) of 10 prompt and 5 output tokens each."""
    return PoolQuestion(
        fleet,
        tuple(models),
        Workload(
            "toy",
            max((at_s for at_s, _ in requests), default=0.0) + 1.0,
            trace=tuple(Request(i, at, 10, 5, m, m) for i, (at, m) in enumerate(requests)),
            classes=tuple(SLOClass(one.name, SLO(e2e_s=limit_s)) for one in models),
        ),
        ToyCost,
        gpu_memory_utilization=1.0,
    )
