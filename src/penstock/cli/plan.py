"""``penstock plan``: where each layer goes, and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import (
    Format,
    check_writable,
    note,
    positive,
    print_json,
    progress_line,
)
from penstock.errors import SpecError

if TYPE_CHECKING:
    from penstock.plan.plan import Plan


def plan(
    cluster: str = typer.Argument(help="Cluster: YAML file, Helix ini or preset (single24)."),
    model: str = typer.Argument(
        help="Model: config.json, its folder, YAML or preset; or a YAML file of many models."
    ),
    traffic: str | None = typer.Argument(
        None, metavar="[WORKLOAD]", help="The same as --workload.", show_default=False
    ),
    workload: str | None = typer.Option(
        None, "--workload", "-w", help="Traffic: YAML, trace file or preset (azure-conv-offline)."
    ),
    planner: str | None = typer.Option(
        None,
        "--planner",
        "-p",
        help="penstock (default), helix-milp, swarm, petals, homogeneous, separate or separate+; "
        "whole engines: goodput, distserve-high, distserve-low or vidur-search; many models: "
        "joint (default), alpaserve, maveriq or accelerate.",
    ),
    objective: str | None = typer.Option(
        None, "--objective", help="maxflow, throughput (default) or goodput."
    ),
    profiles: Path | None = typer.Option(
        None, "--profiles", help="Folder of measured per-layer tables; default: fitted roofline."
    ),
    prune: int | None = typer.Option(
        None, "--prune", help="Keep only the N fastest links of each node (Helix: 12)."
    ),
    partial_inference: bool = typer.Option(
        True,
        "--partial-inference/--no-partial-inference",
        help="Let a request enter a node in the middle of its layers.",
    ),
    rate: float | None = typer.Option(
        None, "--rate", "--request-rate", help="Requests per second; replaces the workload's."
    ),
    attainment: float | None = typer.Option(
        None,
        "--attainment",
        help="Whole engines: share of requests that must meet their limits (0.9).",
    ),
    time_limit: float | None = typer.Option(
        None, "--time-limit", help="Stop the search after this many seconds and keep the best."
    ),
    processes: int | None = typer.Option(
        None, "--processes", help="Processes to search with; default: all cores, at most 8."
    ),
    current: Path | None = typer.Option(
        None, "--current", help="Many models: the plan in use, to be kept as far as it serves."
    ),
    move_budget: str | None = typer.Option(
        None, "--move-budget", help='Many models: weights that may be loaded, such as "40 GiB".'
    ),
    seed: int = typer.Option(0, "--seed", help="Same inputs and seed, same plan."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write the plan here (YAML)."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Place the layers of a model on a cluster, and say how good the plan is.

    Example: penstock plan single24 llama2-70b --planner penstock -o plan.yaml

    Many models: penstock plan cluster.yaml models.yaml workload.yaml -o pool.yaml
    """
    from penstock import api
    from penstock.cli.plan_many import plan_many
    from penstock.plan.document import plan_summary, write_plan
    from penstock.spec.served_file import is_served_file

    check_writable(output)
    positive(time_limit, "--time-limit")
    positive(rate, "--rate")
    if traffic is not None and workload is not None:
        raise SpecError("is given twice", key="--workload", value=workload, fix="give it once")
    workload = workload or traffic
    if is_file(model) and is_served_file(model):
        refuse(
            "is for one model",
            {
                "--objective": objective,
                "--profiles": profiles,
                "--prune": prune,
                "--no-partial-inference": None if partial_inference else True,
                "--attainment": attainment,
                "--processes": processes,
            },
        )
        plan_many(
            (cluster, model, workload),
            planner=planner or "joint",
            current=current,
            move_budget=move_budget,
            rate=rate,
            time_limit_s=time_limit,
            seed=seed,
            output=output,
            output_format=output_format,
        )
        return
    refuse("is for many models", {"--current": current, "--move-budget": move_budget})
    started = time.perf_counter()
    with progress_line() as progress:
        result = api.plan(
            cluster,
            model,
            workload,
            planner=planner or "penstock",
            objective=objective,
            profiles=profiles,
            prune=prune,
            partial_inference=partial_inference,
            rate=rate,
            attainment=0.9 if attainment is None else attainment,
            time_limit_s=time_limit,
            processes=processes,
            seed=seed,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    if output is not None:
        write_plan(result, output)
    if output_format is Format.json:
        print_json({**plan_summary(result), "seconds": round(seconds, 3)})
        return
    _print(result, seconds)
    if output is not None:
        default = api.DEFAULT_ENGINE_WORKLOAD if result.whole_engines else api.DEFAULT_WORKLOAD
        note(f"wrote {output}; next: penstock simulate {output} {workload or default}")


def is_file(model: str) -> bool:
    """Whether ``model`` is a file that may list several; presets and folders are not."""
    return Path(model).suffix.lower() in (".yaml", ".yml", ".json") and Path(model).is_file()


def refuse(problem: str, flags: Mapping[str, object]) -> None:
    """Raise ``SpecError`` for the first flag that was given."""
    for flag, value in flags.items():
        if value is not None:
            raise SpecError(problem, key=flag, value=str(value), fix="leave it out")


def _print(result: Plan, seconds: float) -> None:
    from rich.console import Console

    from penstock.report.tables import plan_table

    console = Console()
    console.print(plan_table(result))
    unit = {
        "maxflow": "tokens/s of max flow",
        "throughput": "decode tokens/s (simulated)",
        "goodput": "good requests/s (simulated)",
    }[result.objective]
    console.print(f"{result.planner}: {result.value:,.2f} {unit}, found in {seconds:.1f} s")
    if result.max_flow_bound_tokens_per_s is not None:
        console.print(
            f"max flow {result.max_flow_tokens_per_s:,.2f} tokens/s, "
            f"bound {result.max_flow_bound_tokens_per_s:,.2f}"
            + (" (proved optimal)" if result.proved_optimal else "")
        )
    for reason in result.reasons:
        console.print(f"- {reason}")
    for unused in result.unused:
        console.print(f"- {unused.node} is unused: {unused.reason}")
