"""``penstock plan`` for many models: which model stands where, in which precision, how often."""

from __future__ import annotations

import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.common import Format, note, print_json, progress_line
from penstock.errors import SpecError

if TYPE_CHECKING:
    from penstock.plan.pool_plan import PoolPlan


def plan_many(
    inputs: tuple[str, str, str | None],
    *,
    planner: str,
    current: Path | None,
    move_budget: str | None,
    rate: float | None,
    time_limit_s: float | None,
    seed: int,
    output: Path | None,
    output_format: Format,
) -> None:
    """Plan for ``inputs`` (cluster, models, workload), print the plan and write it."""
    from penstock import api
    from penstock.plan.pool_document import pool_summary, write_pool

    cluster, models, workload = inputs
    if workload is None:
        raise SpecError(
            "is needed to plan for many models", key="--workload", fix="give their traffic"
        )
    started = time.perf_counter()
    with progress_line() as progress:
        pool = api.plan_pool(
            cluster,
            models,
            workload,
            planner=planner,
            current=current,
            move_budget_bytes=_budget(move_budget, current),
            rate=rate,
            time_limit_s=time_limit_s,
            seed=seed,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    if output is not None:
        write_pool(output, pool)
    if output_format is Format.json:
        print_json({**pool_summary(pool), "seconds": round(seconds, 3)})
        return
    _print(pool, seconds)
    if output is not None:
        note(f"wrote {output}; next: penstock simulate {output} {workload}")


def _budget(move_budget: str | None, current: Path | None) -> float:
    from penstock.spec.units import parse_bytes

    if move_budget is None:
        return inf
    if current is None:
        raise SpecError(
            "is what may be loaded beyond --current",
            key="--move-budget",
            value=move_budget,
            fix="give --current, or leave it out",
        )
    try:
        return float(parse_bytes(move_budget, positive=False))
    except SpecError as error:
        raise error.at("--move-budget") from None


def _print(pool: PoolPlan, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(pool.deployments)} models on {pool.cluster.name}")
    for heading in ("nodes", "GPUs", "model", "precision", "KV tokens"):
        table.add_column(heading, justify="right" if heading in ("GPUs", "KV tokens") else "left")
    for nodes, held in pool.groups.items():
        gpus = sum(pool.nodes.node(node).count for node in nodes)
        for row, (model, engine) in enumerate(held):
            tokens = engine.kv_capacity_layer_tokens // engine.num_layers
            where = (" + ".join(nodes), str(gpus)) if row == 0 else ("", "")
            table.add_row(*where, model, str(pool.deployment(model).precision), f"{tokens:,}")
    console = Console()
    console.print(table)
    console.print(
        f"{pool.planner}: {100 * pool.value:.2f} % of requests within their limits, "
        f"found in {seconds:.1f} s"
    )
    for reason in pool.reasons:
        console.print(f"- {reason}")
    for one in pool.unplaced:
        console.print(f"- {one.model} is not placed: {one.reason}")
