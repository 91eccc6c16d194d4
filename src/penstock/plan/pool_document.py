"""Pool plans as YAML documents: many models on one cluster, readable and byte-stable.

Layout (version 1): a comment head, the result, how engines share nodes, how machines are cut,
then one entry a model (its plan without the cluster, defaults left out), then the cluster once.
``docs/formats.md`` describes every key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import SpecError
from penstock.plan.document import format_rows, plan_body_to_dict
from penstock.plan.pool_plan import Deployment, PoolPlan
from penstock.plan.pool_reading import VERSION, limits_to_dict, pool_from_dict, usual_body
from penstock.storage import write_text

__all__ = [
    "format_pool",
    "is_pool_document",
    "pool_from_dict",
    "pool_summary",
    "pool_to_dict",
    "read_pool",
    "write_pool",
]

_KEY = re.compile(r'^[\s{]*"?penstock_pool"?\s*:', re.MULTILINE)
_NOTES = {
    "value": "predicted share of requests within their limits",
    "parts": "machines cut into tensor-parallel groups: machine.0, machine.1, ...",
    "deployments": "engine stages: [node, first layer, layer after the last]",
    "cluster": "what the plan was made for",
}


def pool_to_dict(pool: PoolPlan) -> dict[str, object]:
    """Plain data for ``pool``, in the order of the document.

    Raises ``SpecError`` where the plan of a deployment stands on another cluster.
    """
    from penstock.spec.cluster_file import cluster_to_dict  # noqa: PLC0415 - heavy

    return {
        "penstock_pool": VERSION,
        "written_by": pool.version,
        "planner": pool.planner,
        "value": pool.value,
        "seed": pool.seed,
        "sharing": {"turns": pool.sharing.turns, "admission": pool.sharing.admission},
        "reasons": list(pool.reasons),
        "unplaced": [{"model": one.model, "reason": one.reason} for one in pool.unplaced],
        "parts": [{"machine": part.machine, "sizes": list(part.sizes)} for part in pool.parts],
        "deployments": [_deployment(pool, entry) for entry in pool.deployments],
        "cluster": cluster_to_dict(pool.cluster),
    }


def _deployment(pool: PoolPlan, entry: Deployment) -> dict[str, object]:
    from penstock.spec.model_file import model_to_dict  # noqa: PLC0415 - heavy

    if entry.plan.cluster != pool.nodes:
        raise SpecError("its plan is for another cluster than the pool's", key=entry.name)
    usual = usual_body(pool.version, pool.planner, pool.seed)
    limits = {} if entry.slo is None else {"slo": limits_to_dict(entry.slo)}
    body = {
        key: value for key, value in plan_body_to_dict(entry.plan).items() if value != usual[key]
    }
    return {
        "name": entry.name,
        "precision": str(entry.precision),
        "accuracy": entry.accuracy,
        "priority": entry.priority,
        **limits,
        **body,
        "model": model_to_dict(entry.plan.model),
        "cost": dict(entry.plan.cost),
    }


def format_pool(pool: PoolPlan) -> str:
    """The document of ``pool``: the same plan gives the same bytes."""
    models, machines = len(pool.deployments), len(pool.cluster.nodes)
    engines = sum(len(entry.plan.engines) for entry in pool.deployments)
    lines = [
        f"Penstock pool plan by {pool.planner}: {models} models on {pool.cluster.name}",
        f"{pool.value:.1%} of the requests within their limits, by the planner's own estimate",
        f"{engines} engines on {len(pool.groups)} groups of GPUs of {machines} machines, "
        f"{len(pool.unplaced)} models not placed",
    ]
    head = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    data = pool_to_dict(pool)
    parts = [head]
    for key, value in data.items():
        if key == "deployments" and isinstance(value, list) and value:
            parts.append(f"# {_NOTES[key]}\ndeployments:\n")
            parts += [_indented(format_rows(row, {})) for row in value]
        else:
            parts.append(format_rows({key: value}, _NOTES))
    return "".join(parts)


def _indented(text: str) -> str:
    """A mapping as an entry of a list. Empty lines stay empty: they belong to folded text."""
    lines = text.splitlines()
    first = f"- {lines[0]}\n"
    return first + "".join(f"  {line}\n" if line else "\n" for line in lines[1:])


def write_pool(path: str | Path, pool: PoolPlan) -> None:
    """Write ``format_pool`` in one step. Raises ``StorageError`` when the disk refuses."""
    write_text(Path(path), format_pool(pool))


def read_pool(path: str | Path) -> PoolPlan:
    """Read a pool plan. Raises one ``SpecError`` naming file, key, value and fix."""
    from penstock.spec.files import read_yaml  # noqa: PLC0415 - the only YAML reader

    return pool_from_dict(read_yaml(path), source=str(path))


def is_pool_document(path: str | Path) -> bool:
    """Whether a file calls itself a pool plan. Raises ``SpecError`` where it cannot be read."""
    from penstock.spec.files import read_text  # noqa: PLC0415 - the only reader of specs

    return _KEY.search(read_text(path)) is not None


def pool_summary(pool: PoolPlan) -> Mapping[str, object]:
    """What ``--format json`` prints of a pool plan."""
    return {
        "planner": pool.planner,
        "value": pool.value,
        "seed": pool.seed,
        "cluster": pool.cluster.name,
        "sharing": {"turns": pool.sharing.turns, "admission": pool.sharing.admission},
        "models": [
            {
                "name": entry.name,
                "precision": str(entry.precision),
                "accuracy": entry.accuracy,
                **({} if entry.slo is None else {"slo": limits_to_dict(entry.slo)}),
                "engines": [
                    [
                        {
                            "node": stage.node,
                            "gpus": pool.nodes.node(stage.node).count,
                            "start_layer": stage.start_layer,
                            "end_layer": stage.end_layer,
                        }
                        for stage in engine.stages
                    ]
                    for engine in entry.plan.engines
                ],
            }
            for entry in pool.deployments
        ],
        "unplaced": [{"model": one.model, "reason": one.reason} for one in pool.unplaced],
        "reasons": list(pool.reasons),
    }
