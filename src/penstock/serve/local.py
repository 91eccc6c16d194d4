"""Plans for the machine at hand: made for a checkpoint alone, or cut to fit."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from penstock import __version__
from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.settings import SchedulerSettings, SpeculationSettings
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.load import load_model
from penstock.spec.model import ModelSpec

REGION = "local"
KV_SHARE = 0.25
"""Share of this machine's memory for the KV memory of all workers, unless it is stated."""
_TOKEN_BYTES = 2.0
_LINK = Link(bandwidth_bytes_per_s=5e9, latency_s=1e-4)
_SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class LocalShape:
    """How ``local_plan`` cuts the model: ``engines`` copies of ``stages`` of ``tensor`` ranks."""

    engines: int = 1
    stages: int = 1
    tensor: int = 1
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    prefix_caching: bool = True


def machine_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def local_accelerator() -> Accelerator:
    """This machine's CPU as something a plan can name; its speed is for profiles to say."""
    return Accelerator(
        name="CPU",
        memory_bytes=machine_memory_bytes(),
        memory_bandwidth_bytes_per_s=2e10,
        flops_per_s={"fp32": 5e10, "bf16": 1e11},
        interconnect="none",
        interconnect_bytes_per_s=5e9,
        price_per_hour=None,
        source="this machine: memory as found, speeds a guess",
    )


def local_cluster(nodes: int, tensor: int = 1) -> Cluster:
    """``nodes`` processes (or groups of ``tensor`` of them) of this machine, named cpu-0 on."""
    accelerator = local_accelerator()
    return Cluster(
        name="this-machine",
        nodes=tuple(
            Node(
                name=f"cpu-{i}",
                accelerator=accelerator,
                count=tensor,
                machine_type="CPU",
                region=REGION,
                nic_in_bytes_per_s=5e9,
                nic_out_bytes_per_s=5e9,
                disk_bytes_per_s=1e9,
                memory_bytes=accelerator.memory_bytes,
            )
            for i in range(nodes)
        ),
        coordinator=Coordinator(REGION, 5e9, 5e9),
        region_links={(REGION, REGION): _LINK},
        pair_links={},
    )


def local_plan(
    checkpoint: str | Path,
    shape: LocalShape | None = None,
    *,
    kv_memory_bytes: float | None = None,
    speculation: SpeculationSettings | None = None,
) -> Plan:
    """Engines that hold all of ``checkpoint`` on this machine.

    ``kv_memory_bytes`` is for each worker. Raises ``SpecError`` for what cannot be read and for
    KV memory that does not hold a single block.
    """
    shape = shape or LocalShape()
    model = load_model(Path(checkpoint))
    layers, stages = model.num_hidden_layers, shape.stages
    if stages > layers:
        raise SpecError(
            f"the model has {layers} layers only",
            key="pipeline_parallel_size",
            value=stages,
            fix=f"use at most {layers}",
        )
    workers = shape.engines * stages
    each = kv_memory_bytes or KV_SHARE * machine_memory_bytes() / (workers * shape.tensor)
    cuts = [layers * i // stages for i in range(stages + 1)]
    entry_bytes = model.kv_bytes_per_token_per_layer * max(b - a for a, b in pairwise(cuts))
    tokens = int(each * shape.tensor / entry_bytes)
    # More than all slots at full length could never be used.
    tokens = min(tokens, shape.max_num_seqs * (model.max_position_embeddings + 16))
    scheduler = SchedulerSettings(
        "vllm",
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=max(shape.max_num_batched_tokens, shape.max_num_seqs),
        enable_prefix_caching=shape.prefix_caching,
        prefix_piece_tokens=16,
    )
    if tokens < scheduler.block_size:
        raise SpecError(
            f"a KV block needs {entry_bytes * scheduler.block_size} bytes on each worker",
            key="--kv-memory",
            value=each,
            fix="give more memory",
        )
    engines = tuple(
        Engine(
            name=f"engine-{i}",
            stages=tuple(
                Stage(f"cpu-{i * stages + j}", a, b) for j, (a, b) in enumerate(pairwise(cuts))
            ),
            kv_capacity_layer_tokens=tokens * layers,
            limits=BatchLimits(
                shape.max_num_seqs, shape.max_num_batched_tokens, shape.max_num_seqs, tokens
            ),
            scheduler=scheduler,
            speculation=speculation,
        )
        for i in range(shape.engines)
    )
    most = _LINK.bandwidth_bytes_per_s / _TOKEN_BYTES
    return Plan(
        cluster=local_cluster(workers, shape.tensor),
        model=model,
        engines=engines,
        legs=tuple(
            leg
            for engine in engines
            for leg in (
                Leg(COORDINATOR, engine.name, 0.0, most),
                Leg(engine.name, COORDINATOR, 0.0, most),
            )
        ),
        planner="local",
        objective="goodput",
        value=0.0,
        max_flow_tokens_per_s=0.0,
        routing=Routing(engine_router="prefix-affinity"),
        reasons=("made for this machine; nothing was searched",),
        cost={"kind": "step-roofline"},
        version=__version__,
        checkpoint=str(checkpoint),
    )


def fitted(plan: Plan, checkpoint: str | Path | None, kv_memory_bytes: float | None) -> Plan:
    """``plan`` with the checkpoint to load, its KV memory cut to what the workers may take here.

    Plans are often made for larger machines than the one they are tried on. Raises ``SpecError``
    where the checkpoint is not of the plan's model, or there is none.
    """
    folder = str(checkpoint or plan.checkpoint)
    if not folder:
        raise SpecError(
            "the plan names no checkpoint", key="checkpoint", fix="give one with --model DIR"
        )
    model = load_model(Path(folder))
    _check_model(plan, model, folder)
    each = kv_memory_bytes or KV_SHARE * machine_memory_bytes() / max(1, local_ranks(plan))
    engines = tuple(_capped(plan, engine, model, each) for engine in plan.engines)
    return replace(plan, model=model, engines=engines, checkpoint=folder)


def local_ranks(plan: Plan) -> int:
    """Processes that hold weights and KV memory; engines of other servers have none here."""
    return sum(
        plan.cluster.node(stage.node).count
        for engine in plan.engines
        if not engine.url
        for stage in engine.stages
    )


def _capped(plan: Plan, engine: Engine, model: ModelSpec, each_bytes: float) -> Engine:
    if engine.url:
        return engine
    # The smallest stage decides: a token needs its entries on every one.
    tokens = min(
        each_bytes
        * plan.cluster.node(stage.node).count
        / (stage.num_layers * model.kv_bytes_per_token_per_layer)
        for stage in engine.stages
    )
    most = int(tokens) * engine.num_layers
    return replace(engine, kv_capacity_layer_tokens=min(engine.kv_capacity_layer_tokens, most))


def _check_model(plan: Plan, model: ModelSpec, folder: str) -> None:
    for name in _SHAPE:
        wanted, found = getattr(plan.model, name), getattr(model, name)
        if wanted != found:
            raise SpecError(
                f"the plan is for {plan.model.name} with {name} {wanted}",
                source=folder,
                key=name,
                value=found,
                fix="serve the model the plan was made for, or plan again for this one",
            )
