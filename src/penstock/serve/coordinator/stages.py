"""The workers of an engine, one a stage: their names, and what each of them is to hold."""

from __future__ import annotations

from penstock.plan.plan import Engine
from penstock.serve.coordinator.build import Build
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Hop

SPARE_PAGES = 8
"""KV pages of each layer beyond those of the plan."""


def worker_name(engine: Engine, stage: int) -> str:
    """The name of the worker of one stage."""
    return engine.name if len(engine.stages) == 1 else f"{engine.name}/{stage}"


def hops_of(engine: Engine) -> tuple[Hop, ...]:
    """The way of a step through ``engine``."""
    return tuple(
        Hop(worker_name(engine, i), stage.start_layer, stage.end_layer)
        for i, stage in enumerate(engine.stages)
    )


def worker_specs(
    driver: EngineDriver, build: Build, options: ServeOptions, first_transfer: int
) -> tuple[WorkerSpec, ...]:
    """What the workers of ``driver`` are started with, in the order of the stages.

    KV transfers are numbered from ``first_transfer`` on.
    """
    return tuple(
        _worker_spec(driver, i, build, options, first_transfer) for i in range(len(driver.stages))
    )


def _worker_spec(
    driver: EngineDriver, stage: int, build: Build, options: ServeOptions, first_transfer: int
) -> WorkerSpec:
    engine = driver.engine
    hop, node = driver.stages[stage], engine.stages[stage].node
    assert engine.scheduler is not None
    pages_per_block = -(-engine.scheduler.block_size // options.page_size)
    layers = hop.end_layer - hop.start_layer
    return WorkerSpec(
        name=hop.worker,
        node=node,
        checkpoint=build.checkpoint,
        start_layer=hop.start_layer,
        end_layer=hop.end_layer,
        num_layers=build.model.num_hidden_layers,
        num_pages=(engine.num_blocks * pages_per_block + SPARE_PAGES) * layers,
        page_size=options.page_size,
        tensor_parallel_size=build.cluster.node(node).count,
        dtype=build.dtype,
        device=options.device,
        threads=options.threads,
        executor=options.executor,
        piece_tokens=driver.scheduler.blocks.piece_tokens,
        first_transfer=first_transfer,
        speculation=engine.speculation,
        kv_bytes_per_token_per_layer=build.model.kv_bytes_per_token_per_layer,
    )
