"""Several models for ``penstock serve``: which, from where, on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.plan.pool_plan import PoolPlan
    from penstock.serve.coordinator.options import ServeOptions


@dataclass(frozen=True, slots=True)
class Models:
    """What ``--model`` named: one folder, or folders by model name."""

    folder: Path | None
    named: Mapping[str, str]


def models_of(values: Sequence[str]) -> Models:
    """Read ``DIR`` or ``NAME=DIR`` (repeatable). Raises ``SpecError`` for a mix of the two."""
    from penstock.errors import SpecError

    named: dict[str, str] = {}
    folders: list[str] = []
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or Path(value).exists():
            folders.append(value)
        elif not name or not folder or name in named:
            problem = "is named twice" if name in named else "must be NAME=DIR"
            raise SpecError(problem, key="--model", value=value)
        else:
            named[name] = folder
    if len(folders) > 1 or (folders and named):
        raise SpecError(
            "several models need names",
            key="--model",
            value=folders[-1],
            fix=f"write --model NAME={folders[-1]}",
        )
    return Models(Path(folders[0]) if folders else None, named)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of a server of several models."""

    plan: Path | None
    models: Models
    kv_memory_bytes: float | None
    cut: tuple[int, int, int]
    dtype: str


def pool_of(
    wanted: Wanted, options: ServeOptions
) -> tuple[PoolPlan, Callable[[PoolPlan], PoolPlan] | None]:
    """The pool to serve, and what cuts it to this machine. Raises ``SpecError``."""
    from penstock.errors import SpecError
    from penstock.plan.pool_document import read_pool
    from penstock.serve.many.local import fit_here, with_checkpoints, with_models, workers_of
    from penstock.serve.many.member import Making

    named = wanted.models.named
    if wanted.plan is None:
        replicas, pipeline, tensor = wanted.cut
        more: dict[str, object] = {}
        if wanted.dtype != "auto":
            more["precisions"] = (wanted.dtype,)
        if wanted.kv_memory_bytes is not None:
            more["kv_memory"] = int(wanted.kv_memory_bytes * pipeline * tensor)
        return with_models(named, (replicas, pipeline, tensor), Making(options), **more), None
    if wanted.cut != (1, 1, 1) or wanted.dtype != "auto":
        raise SpecError(
            "the plan says how models are cut and in which precision",
            key="--replicas, --pp, --tp, --dtype",
            fix="leave them out, or leave out the plan",
        )
    plan = read_pool(wanted.plan)
    if wanted.models.folder is not None:
        raise SpecError(
            "the plan holds several models",
            key="--model",
            value=str(wanted.models.folder),
            fix="write --model NAME=DIR for each",
        )
    for name in named:
        if name not in plan.index:
            known = ", ".join(plan.index)
            raise SpecError("the plan has no such model", key="--model", value=name, fix=known)
    plan = with_checkpoints(plan, named)
    return plan, fit_here(wanted.kv_memory_bytes, workers_of(plan))
