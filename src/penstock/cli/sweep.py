"""``penstock sweep``: the cheapest fleet for a rate and its limits, or the most of some GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, positive, print_json, progress_line

if TYPE_CHECKING:
    from penstock.cli.sweep_question import Asked
    from penstock.plan.goodput.question import Sweep
    from penstock.sim.disaggregated.probe_memory import ProbeMemory
    from penstock.sim.disaggregated.probes import FleetProbes


def sweep(
    model: str = typer.Argument(help="Model: preset, config.json or YAML."),
    workload: str = typer.Argument("azure-conv-online", help="Traffic: YAML, trace or preset."),
    goal: str = typer.Option(
        "cheapest", "--goal", help="cheapest (for --rate) or goodput (most of the GPUs on offer)."
    ),
    rate: float | None = typer.Option(
        None, "--rate", "--request-rate", help="Requests per second."
    ),
    gpu: list[str] = typer.Option(
        [], "--gpu", help="GPU type on offer: L40S, with its count H100:16, its price H100@2.49."
    ),
    cluster: str | None = typer.Option(
        None, "--cluster", help="Offer the GPUs of a cluster (file or preset) at its prices."
    ),
    price: list[str] = typer.Option(
        [], "--price", help="Dollars per hour of one GPU: H100=2.49. Default: list prices."
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
    weights: list[str] = typer.Option(
        [], "--weights", help="Weight formats to try, such as bf16 and fp8. Default: the model's."
    ),
    speculate: bool = typer.Option(
        False, "--speculate", help="Also try speculative decoding; needs the next two."
    ),
    draft_model: str | None = typer.Option(None, "--draft-model", help="Model that drafts."),
    acceptance: str | None = typer.Option(
        None, "--acceptance", help="Chance that a draft token is accepted, or a file of a curve."
    ),
    draft_tokens: list[int] = typer.Option(
        [4], "--num-speculative-tokens", help="Lengths of chains to try; by load is always tried."
    ),
    disaggregated: bool = typer.Option(
        True, help="Also try prefill and decode on different engines."
    ),
    mixed: bool = typer.Option(True, help="Also try mixtures of two kinds of engines."),
    kv_bandwidth: str = typer.Option(
        "25 GB/s", "--kv-bandwidth", help="Link of an engine for KV memory between engines."
    ),
    seeds: int = typer.Option(3, "--seeds", help="Runs of each whole fleet."),
    processes: int | None = typer.Option(
        None, "--processes", help="Processes for probes; default: all cores, at most 8."
    ),
    ray: str | None = typer.Option(
        None, "--ray", help="Run probes on this Ray cluster: its address, auto, or local."
    ),
    resume: Path | None = typer.Option(
        None, "--resume", help="Keep probes in this file, and go on from it."
    ),
    plan: Path | None = typer.Option(None, "--plan", help="Write the winner as a plan here."),
    html: Path | None = typer.Option(None, "--html", help="Write a one-page report here."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Find the cheapest fleet that meets TTFT and TPOT limits at a rate.

    Example: penstock sweep llama-3.1-70b --rate 20 --ttft '500 ms' --tpot '50 ms'
    --gpu H100 --gpu L40S --html fleet.html
    """
    from penstock.cli.sweep_question import Limits, Shapes, Speculation, ask

    for path in (html, resume, plan):
        check_writable(path)
    positive(rate, "--rate")
    _at_least_one(processes, "--processes")
    _at_least_one(seeds, "--seeds")
    for sizes, flag in (
        (tensor_parallel_size, "--tp"),
        (pipeline_parallel_size, "--pp"),
        (chunk, "--chunk"),
        (draft_tokens, "--num-speculative-tokens"),
    ):
        _at_least_one(min(sizes), flag)
    asked = ask(
        model,
        workload,
        goal,
        rate,
        gpus=(gpu, cluster, price),
        limits=Limits(ttft, tpot, attainment, vidur),
        shapes=Shapes(
            tensor_parallel_size, pipeline_parallel_size, scheduler, chunk, disaggregated, mixed
        ),
        weights=weights,
        speculation=Speculation(speculate, draft_model, acceptance, draft_tokens),
        kv_bandwidth=kv_bandwidth,
        seeds=seeds,
    )
    found, runs = _search(asked, resume, processes, ray)
    _write(asked, found, html, plan)
    if output_format is Format.json:
        from penstock.report.sweep_text import sweep_to_dict

        print_json(sweep_to_dict(found))
    else:
        from rich.console import Console

        from penstock.report.sweep_text import print_sweep

        print_sweep(Console(), found)
        note(f"{runs} simulations")
    if found.interrupted:
        raise KeyboardInterrupt


def _at_least_one(value: int | None, flag: str) -> None:
    from penstock.errors import SpecError

    if value is not None and value < 1:
        raise SpecError("must be at least 1", key=flag, value=value, fix="give 1")


def _search(
    asked: Asked, resume: Path | None, processes: int | None, ray: str | None
) -> tuple[Sweep, int]:
    from penstock.plan.goodput.search import search_fleets
    from penstock.sim.disaggregated.probe_memory import ProbeMemory

    memory = None if resume is None else ProbeMemory(resume, asked.about)
    if memory is not None and len(memory):
        note(f"{len(memory)} probes are known from {resume}")
    with _probes(asked, memory, processes, ray) as probes, progress_line() as progress:
        found = search_fleets(asked.question, probes, progress)
    return found, probes.runs


@contextmanager
def _probes(
    asked: Asked, memory: ProbeMemory | None, processes: int | None, ray: str | None
) -> Iterator[FleetProbes]:
    """Probes in this process, over several, or on a Ray cluster."""
    from penstock import api
    from penstock.errors import SpecError
    from penstock.evaluate import worker_pool
    from penstock.ray_pool import ray_pool
    from penstock.sim.disaggregated.probes import FleetProbes

    if ray is not None:
        if processes is not None:
            raise SpecError("replaces --processes", key="--ray", value=ray, fix="give one of them")
        with ray_pool(ray) as remote:
            # Two calls a core: the next one is there when a worker has ended its own.
            yield FleetProbes(asked.setting, memory, remote.submit, 2 * remote.width)
        return
    width = processes or min(api.MAX_PROCESSES, api.available_cores())
    with worker_pool(width) as pool:
        yield FleetProbes(asked.setting, memory, None if pool is None else pool.submit, width)


def _write(asked: Asked, found: Sweep, html: Path | None, plan: Path | None) -> None:
    if html is not None:
        from penstock.report.sweep_page import write_sweep_page

        write_sweep_page(html, found)
        note(f"wrote {html}")
    if plan is not None and found.best is not None:
        from penstock.cli.sweep_question import winner_plan
        from penstock.plan.document import write_plan

        write_plan(winner_plan(asked, found), plan)
        note(f"wrote {plan}")
