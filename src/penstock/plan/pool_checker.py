"""An independent check of pool plans: plain scans, no code shared with the searches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import inf

from penstock.plan.engine_checker import RELATIVE, check_engine_plan
from penstock.plan.pool_plan import Deployment, PoolPlan

GIB = 2**30


def check_pool(pool: PoolPlan) -> list[str]:
    """Violations of a pool plan, in words; an empty list means that it holds."""
    return [*_models(pool), *_parts(pool), *_seats(pool), *_memory(pool)]


def _models(pool: PoolPlan) -> Iterator[str]:
    """Every deployment is a plan of whole engines that holds by itself, on the pool's nodes."""
    names = [entry.name for entry in pool.deployments] + [one.model for one in pool.unplaced]
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"model {name} is named twice"
    if not 0 <= pool.value <= 1:
        yield f"the plan's value is {pool.value}, not a share"
    for entry in pool.deployments:
        yield from _limits(entry)
        if entry.plan.cluster != pool.nodes:
            yield f"model {entry.name}: its plan is for another cluster than the pool's"
        elif not entry.plan.whole_engines or not entry.plan.engines:
            yield f"model {entry.name} has no engine that serves requests alone"
        else:
            yield from (f"model {entry.name}: {line}" for line in check_engine_plan(entry.plan))


def _limits(entry: Deployment) -> Iterator[str]:
    """Limits are times above 0, and there is one where limits are stated."""
    slo = entry.slo
    if slo is None:
        return
    if slo.tpot_multiple is not None:
        yield f"model {entry.name}: a multiple of the baseline is no limit of a pool"
    stated = [slo.ttft_s, slo.tpot_s, slo.itl_s, slo.e2e_s]
    times = [limit for limit in stated if limit is not None]
    if not times and slo.tpot_multiple is None:
        yield f"model {entry.name}: its slo states no limit"
    for limit in times:
        if not 0 < limit < inf:
            yield f"model {entry.name}: a limit of {limit} s"


def _parts(pool: PoolPlan) -> Iterator[str]:
    """No GPU is in two nodes, and every machine is cut into as many as it has."""
    owner: dict[tuple[str, int], str] = {}
    for node in pool.nodes.nodes:
        gpus = pool.gpus_of(node.name)
        if len(gpus) != node.count:
            yield f"node {node.name} counts {node.count} GPUs, but {len(gpus)} are its own"
        for gpu in sorted(gpus):
            if gpu in owner:
                yield f"GPU {gpu[1]} of {gpu[0]} is in {owner[gpu]} and in {node.name}"
            owner[gpu] = node.name
    for machine in pool.cluster.nodes:
        held = sum(1 for name, _ in owner if name == machine.name)
        if held != machine.count:
            yield f"machine {machine.name} has {machine.count} GPUs, its parts hold {held}"


def _seats(pool: PoolPlan) -> Iterator[str]:
    """Two engines stand on the same nodes in the same order, or on none in common."""
    seats: list[tuple[str, tuple[str, ...]]] = [
        (f"{entry.name}/{engine.name}", tuple(stage.node for stage in engine.stages))
        for entry in pool.deployments
        for engine in entry.plan.engines
    ]
    for i, (name, nodes) in enumerate(seats):
        for other, theirs in seats[:i]:
            if nodes != theirs and set(nodes) & set(theirs):
                yield f"engine {name} overlaps {other} in part"


def _memory(pool: PoolPlan) -> Iterator[str]:
    """Weights and KV memory of all engines of a node fit its GPUs together."""
    weights: dict[str, float] = defaultdict(float)
    cache: dict[str, float] = defaultdict(float)
    for entry in pool.deployments:
        model = entry.plan.model
        for engine in entry.plan.engines:
            for stage in engine.stages:
                weights[stage.node] += model.slice_weight_bytes(stage.start_layer, stage.end_layer)
                share = stage.num_layers / engine.num_layers
                entries = engine.kv_capacity_layer_tokens * share
                cache[stage.node] += entries * model.kv_bytes_per_token_per_layer
    for name, held in weights.items():
        node = pool.nodes.node(name)
        room = node.count * node.accelerator.memory_bytes
        if held + cache[name] > room * (1 + RELATIVE):
            yield (
                f"node {name}: weights of {held / GIB:.1f} GiB and KV memory of "
                f"{cache[name] / GIB:.1f} GiB, together over {room / GIB:.1f} GiB"
            )
