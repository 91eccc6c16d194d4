"""The machine at hand as a pool that models come to, and pool plans cut to fit it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from penstock import __version__
from penstock.errors import SpecError
from penstock.plan.parts import Parts
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing
from penstock.serve.local import KV_SHARE, fitted, local_accelerator, machine_memory_bytes
from penstock.serve.many.bodies import DeployBody
from penstock.serve.many.deploy import deployed
from penstock.serve.many.member import Making
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.served import in_precision

MACHINE = "this-machine"
_SEATS = 8
_BYTES_PER_S = 5e9


def local_pool(least_seats: int = 1) -> PoolPlan:
    """This machine without a model: places for ``least_seats`` workers or more, of equal memory."""
    count = max(_SEATS, os.cpu_count() or 1, least_seats)
    memory = machine_memory_bytes()
    accelerator = replace(local_accelerator(), memory_bytes=memory // count)
    machine = Node(
        name=MACHINE,
        accelerator=accelerator,
        count=count,
        machine_type=f"CPUx{count}",
        region="local",
        nic_in_bytes_per_s=_BYTES_PER_S,
        nic_out_bytes_per_s=_BYTES_PER_S,
        disk_bytes_per_s=1e9,
        memory_bytes=memory,
    )
    cluster = Cluster(
        name=MACHINE,
        nodes=(machine,),
        coordinator=Coordinator("local", _BYTES_PER_S, _BYTES_PER_S),
        region_links={("local", "local"): Link(_BYTES_PER_S, 1e-4)},
        pair_links={},
    )
    return PoolPlan(
        cluster,
        (Parts(MACHINE, (1,) * count),),
        (),
        planner="local",
        value=0.0,
        sharing=Sharing(),
        reasons=("made for this machine; nothing was searched",),
        version=__version__,
    )


def with_models(
    checkpoints: Mapping[str, str], shape: tuple[int, int, int], making: Making, **more: object
) -> PoolPlan:
    """This machine with ``checkpoints`` by name, each cut into ``shape``: (replicas, PP, TP)."""
    replicas, pipeline, tensor = shape
    plan = local_pool(len(checkpoints) * replicas * pipeline * tensor)
    for name, folder in checkpoints.items():
        body = DeployBody.model_validate(
            {
                "model": name,
                "checkpoint": folder,
                "replicas": replicas,
                "pipeline_parallel_size": pipeline,
                "tensor_parallel_size": tensor,
                **more,
            }
        )
        plan = deployed(plan, body, making).plan
    return plan


def fit_here(kv_memory_bytes: float | None, workers: int) -> Callable[[PoolPlan], PoolPlan]:
    """Cuts KV memory to what each of ``workers`` may take here, and reads the checkpoints' shapes.

    The share of a worker does not change with later plans: engines that stay, stay as they are.
    """
    each = kv_memory_bytes or KV_SHARE * machine_memory_bytes() / max(1, workers)

    def fit(plan: PoolPlan) -> PoolPlan:
        entries = tuple(_fitted(entry, each) for entry in plan.deployments)
        return replace(plan, deployments=entries)

    return fit


def workers_of(plan: PoolPlan) -> int:
    """Processes that hold the models of ``plan``."""
    return sum(
        plan.nodes.node(stage.node).count
        for entry in plan.deployments
        for engine in entry.plan.engines
        for stage in engine.stages
    )


def with_checkpoints(plan: PoolPlan, folders: Mapping[str, str]) -> PoolPlan:
    """``plan`` with the folders of some models stated."""
    entries = tuple(_at(entry, folders.get(entry.name)) for entry in plan.deployments)
    return replace(plan, deployments=entries)


def _at(entry: Deployment, folder: str | None) -> Deployment:
    return entry if folder is None else replace(entry, plan=replace(entry.plan, checkpoint=folder))


def _fitted(entry: Deployment, each_bytes: float) -> Deployment:
    if not entry.plan.checkpoint:
        raise SpecError(
            "the plan names no checkpoint of this model",
            key=f"{entry.name}.checkpoint",
            fix=f"give one with --model {entry.name}=DIR",
        )
    plan = fitted(entry.plan, None, each_bytes)
    return replace(entry, plan=replace(plan, model=in_precision(plan.model, entry.precision)))
