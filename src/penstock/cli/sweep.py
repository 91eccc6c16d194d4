"""``penstock sweep``: the cheapest fleet for a model, a rate and its limits."""

from __future__ import annotations

from collections.abc import Sequence
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

if TYPE_CHECKING:
    from penstock.plan.goodput.fleet import Sweep, Tried
    from penstock.spec.hardware import Accelerator
    from penstock.spec.workload import SLO, Workload


# Vidur-Search (MLSys 2024): the 99th percentile of the scheduling delay is under 5 s.
VIDUR_QUEUE_S = 5.0
VIDUR_ATTAINMENT = 0.99


def sweep(
    model: str = typer.Argument(help="Model: preset, config.json or YAML."),
    workload: str = typer.Argument("azure-conv-online", help="Traffic: YAML, trace or preset."),
    rate: float = typer.Option(..., "--rate", "--request-rate", help="Requests per second."),
    gpu: list[str] = typer.Option(
        ..., "--gpu", help="GPU type on offer, with a limit if there is one: L40S or H100:16."
    ),
    ttft: str | None = typer.Option(None, "--ttft", help="Limit of the first token: '500 ms'."),
    tpot: str | None = typer.Option(None, "--tpot", help="Limit per further token: '50 ms'."),
    attainment: float = typer.Option(
        0.9, "--attainment", help="Share of the requests that must meet all limits."
    ),
    vidur: bool = typer.Option(
        False,
        "--vidur-criterion",
        help="Instead of limits: 99 % of the requests are scheduled within 5 s (Vidur-Search).",
    ),
    tensor_parallel_size: list[int] = typer.Option(
        [1, 2, 4, 8], "--tensor-parallel-size", "--tp", help="Sizes to try."
    ),
    pipeline_parallel_size: list[int] = typer.Option(
        [1, 2], "--pipeline-parallel-size", "--pp", help="Sizes to try."
    ),
    scheduler: list[str] = typer.Option(["vllm"], "--scheduler", help="Schedulers to try."),
    chunk: list[int] = typer.Option(
        [512, 2048], "--max-num-batched-tokens", "--chunk", help="Chunk sizes to try."
    ),
    disaggregated: bool = typer.Option(
        True, help="Also try prefill and decode on different engines."
    ),
    mixed: bool = typer.Option(True, help="Also try mixtures of two kinds of engines."),
    kv_bandwidth: str = typer.Option(
        "25 GB/s", "--kv-bandwidth", help="Link of an engine for KV memory between engines."
    ),
    seeds: int = typer.Option(3, "--seeds", help="Runs of each whole fleet."),
    resume: Path | None = typer.Option(
        None, "--resume", help="Keep probes in this file, and go on from it."
    ),
    html: Path | None = typer.Option(None, "--html", help="Write a one-page report here."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Find the cheapest fleet that meets TTFT and TPOT limits at a rate.

    Example: penstock sweep llama-3.1-70b --rate 20 --ttft '500 ms' --tpot '50 ms'
    --gpu H100 --gpu L40S --html fleet.html
    """
    from penstock.cost.step_roofline import StepRoofline
    from penstock.errors import SpecError
    from penstock.plan.goodput.fleet import Question, cheapest_fleet
    from penstock.plan.settings import HandoffSettings
    from penstock.policy.schedulers import scheduler_class
    from penstock.sim.disaggregated.probes import FleetProbes
    from penstock.spec.load import load_model, load_workload
    from penstock.spec.units import parse_bandwidth
    from penstock.spec.workload import SLO

    for path in (html, resume):
        check_writable(path)
    positive(rate, "--rate")
    if seeds < 1:
        raise SpecError("must be at least 1", key="--seeds", value=seeds)
    for sizes, flag in (
        (tensor_parallel_size, "--tp"),
        (pipeline_parallel_size, "--pp"),
        (chunk, "--chunk"),
    ):
        if min(sizes) < 1:
            raise SpecError("must be at least 1", key=flag, value=min(sizes))
    for name in scheduler:
        scheduler_class(name)
    traffic = load_workload(workload)
    if vidur and (ttft is not None or tpot is not None):
        raise SpecError("replaces --ttft and --tpot", key="--vidur-criterion", fix="give one")
    limits = SLO() if vidur else _limits(ttft, tpot, traffic)
    max_queue_s = VIDUR_QUEUE_S if vidur else None
    if vidur:
        attainment = VIDUR_ATTAINMENT
    cost = StepRoofline(load_model(model))
    prompt, output = _means(traffic)
    question = Question(
        cost,
        limits,
        rate,
        prompt,
        output,
        tuple(_offer(text) for text in gpu),
        attainment,
        tuple(range(seeds)),
        tuple(tensor_parallel_size),
        tuple(pipeline_parallel_size),
        tuple(scheduler),
        tuple(chunk),
        disaggregated,
        mixed,
        max_queue_s=max_queue_s,
    )
    handoff = HandoffSettings(parse_bandwidth(kv_bandwidth), 1e-4)
    probes = FleetProbes(cost, traffic, limits, attainment, handoff, memory=resume)
    probes.max_queue_s = max_queue_s
    known = probes.remember()
    if known:
        note(f"{known} probes are known from {resume}")
    with progress_line() as progress:
        found = cheapest_fleet(question, probes, progress)
    if html is not None:
        from penstock.report.sweep_page import write_sweep_page

        write_sweep_page(html, found)
        note(f"wrote {html}")
    if output_format is Format.json:
        print_json(_document(found))
    else:
        _print(found, probes.runs)
    if found.interrupted:
        raise KeyboardInterrupt


def _offer(text: str) -> tuple[Accelerator, int | None]:
    from penstock.errors import SpecError
    from penstock.spec.catalogue import catalogue

    name, _, count = text.partition(":")
    if count and (not count.isdigit() or int(count) < 1):
        raise SpecError("must be NAME or NAME:COUNT", key="--gpu", value=text, fix="try H100:16")
    return catalogue().get(name), int(count) if count else None


def _limits(ttft: str | None, tpot: str | None, traffic: Workload) -> SLO:
    from penstock.errors import SpecError
    from penstock.spec.units import parse_duration
    from penstock.spec.workload import SLO

    if ttft is not None or tpot is not None:
        return SLO(
            None if ttft is None else parse_duration(ttft, positive=True),
            None if tpot is None else parse_duration(tpot, positive=True),
        )
    if len(traffic.classes) == 1:
        return traffic.classes[0].slo
    raise SpecError(
        "no limit is given", key="slo", fix="give --ttft, --tpot or both (such as --ttft '500 ms')"
    )


def _means(traffic: Workload) -> tuple[float, float]:
    if traffic.lengths is not None:
        return traffic.lengths.mean_prompt_tokens, traffic.lengths.mean_output_tokens
    requests = list(traffic.trace)
    count = max(1, len(requests))
    prompts = sum(request.prompt_tokens for request in requests)
    return prompts / count, sum(request.output_tokens for request in requests) / count


def _fleet(one: Tried) -> dict[str, object]:
    return {
        "fleet": str(one.fleet),
        "gpus": one.fleet.gpus_by_type(),
        "price_per_hour": one.fleet.price_per_hour,
        "attainment": one.attainment,
        "half_width": one.half_width,
        "ttft_p99_s": one.probe.ttft_p99_s,
        "tpot_p99_s": one.probe.tpot_p99_s,
        "passed": one.passed,
        "binding": one.binding,
    }


def _document(found: Sweep) -> dict[str, object]:
    return {
        "best": None if found.best is None else _fleet(found.best),
        "front": [_fleet(one) for one in found.front],
        "tried": [_fleet(one) for one in found.tried],
        "engines": [
            {
                "engine": str(one.choice),
                "rate_per_s": one.rate_per_s,
                "binding": one.binding,
                "reason": one.reason,
            }
            for one in found.capacities
        ],
        "not_searched": found.not_searched,
    }


def _print(found: Sweep, runs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("fleet", "GPUs", "$/h", "good", "p99 TTFT", "p99 TPOT", "verdict"):
        table.add_column(name, justify="left" if name in {"fleet", "verdict"} else "right")
    for one in _first(found.tried):
        table.add_row(
            str(one.fleet),
            str(one.fleet.num_gpus),
            f"{one.fleet.price_per_hour:.2f}",
            f"{100 * one.attainment:.1f} %",
            f"{1e3 * one.probe.ttft_p99_s:.0f} ms",
            f"{1e3 * one.probe.tpot_p99_s:.0f} ms",
            "passes" if one.passed else f"misses {one.binding}",
        )
    console = Console()
    console.print(table)
    if found.best is not None:
        best = found.best
        console.print(
            f"cheapest: {best.fleet} for ${best.fleet.price_per_hour:.2f}/h; {best.binding} binds",
            highlight=False,
        )
    for line in found.not_searched:
        console.print(f"- not searched: {line}", markup=False, highlight=False)
    note(f"{runs} simulations")


def _first(tried: Sequence[Tried], most: int = 20) -> Sequence[Tried]:
    return tried[:most]
