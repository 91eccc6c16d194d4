"""``penstock bench``: load an OpenAI endpoint with a workload and write what its client saw."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import (
    Format,
    check_run_folder,
    check_writable,
    note,
    positive,
    print_json,
    progress_line,
)

if TYPE_CHECKING:
    from penstock.measure.compare import Comparison
    from penstock.measure.loadgen.bench import BenchSettings
    from penstock.measure.run import Run
    from penstock.spec.workload import Workload


def bench(
    workload: str = typer.Argument(help="Traffic: YAML, trace file or preset."),
    url: str = typer.Option("http://127.0.0.1:8000", "--url", help="Address of the endpoint."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write the run here (folder)."),
    vllm_json: Path | None = typer.Option(
        None, "--vllm-json", help="Write a result as 'vllm bench serve' does."
    ),
    exp: Path | None = typer.Option(None, "--exp", help="Write a result in DistServe's layout."),
    rate: float | None = typer.Option(
        None, "--rate", "--request-rate", help="Requests per second; replaces the workload's."
    ),
    duration: float | None = typer.Option(
        None, "--duration", help="Seconds of traffic, warm-up included."
    ),
    warmup: float | None = typer.Option(None, "--warmup", help="Seconds before the window."),
    max_concurrency: int | None = typer.Option(
        None, "--max-concurrency", help="Closed loop with this many requests in flight."
    ),
    num_requests: int | None = typer.Option(
        None, "--num-requests", "--num-prompts", help="Stop after this many requests."
    ),
    model: str | None = typer.Option(
        None,
        "--model",
        help="Model to ask for everything; default: each request's own, else the first.",
    ),
    api_key: str | None = typer.Option(
        None, "--api-key", envvar="OPENAI_API_KEY", help="Key of the endpoint."
    ),
    temperature: float = typer.Option(0.0, "--temperature", help="0 = greedy."),
    ignore_eos: bool = typer.Option(
        True, "--ignore-eos/--no-ignore-eos", help="Outputs as long as the workload says."
    ),
    timeout: float = typer.Option(600.0, "--timeout", help="Seconds without a byte: failed."),
    plan: Path | None = typer.Option(
        None, "--plan", help="Plan that is served: prints its prediction beside the measurement."
    ),
    profile: Path | None = typer.Option(
        None, "--profile", help="Measured profile for the prediction, with --plan."
    ),
    seed: int | None = typer.Option(None, "--seed", help="Seed; default: the workload's."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Load an OpenAI endpoint with a workload: TTFT, TPOT, throughput, goodput as its client saw.

    Latency counts from the moment a request was due. Ctrl-C keeps what was measured.

    Example: penstock bench azure-conv-online --rate 2 --url http://127.0.0.1:8000 -o measured
    """
    from penstock import api
    from penstock.errors import SpecError
    from penstock.plan.document import read_plan
    from penstock.pools import as_pool

    need_client()
    from penstock.measure.loadgen.bench import BenchSettings

    check_run_folder(output)
    for path in (vllm_json, exp):
        check_writable(path)
    for value, flag in ((rate, "--rate"), (duration, "--duration"), (timeout, "--timeout")):
        positive(value, flag)
    if profile is not None and plan is None:
        raise SpecError("prices a plan", key="--profile", fix="give the plan with --plan")
    if plan is not None:
        # A plan that cannot be read is better known before the load than after it.
        as_pool(plan) or read_plan(plan)
    traffic = api.load_traffic(workload, rate=rate, duration_s=duration, warmup_s=warmup)
    settings = BenchSettings(
        url,
        model=model,
        api_key=api_key,
        temperature=temperature,
        ignore_eos=ignore_eos,
        max_concurrency=max_concurrency,
        num_requests=num_requests,
        timeout_s=timeout,
        seed=seed,
    )
    run = _measure(traffic, settings)
    _write(run, output, vllm_json, exp)
    predicted = None
    if plan is not None:
        predicted = _predict(run, plan, traffic, profile, settings)
    _print(run, predicted, output_format)
    for path in (output, vllm_json, exp):
        if path is not None:
            note(f"wrote {path}")
    if run.header["stopped"]:
        note("stopped before the end: the run holds what was measured until then")
        raise typer.Exit(130)


def need_client() -> None:
    """Say in one line that the HTTP client is missing. Raises ``InputError``."""
    from importlib.util import find_spec

    from penstock.errors import InputError

    if find_spec("httpx") is None:
        raise InputError("loading an endpoint needs httpx; pip install 'penstock[serve]'")


def _measure(traffic: Workload, settings: BenchSettings) -> Run:
    from penstock.measure.loadgen.bench import Standing
    from penstock.measure.loadgen.bench import bench as load
    from penstock.plan.planner import Progress

    with progress_line() as progress:

        def report(now: Standing) -> None:
            text = f"{now.sent} sent, {now.ended} ended, {now.failed} failed, {now.tokens} tokens"
            progress(Progress(text, fraction=now.share))

        async def work() -> Run:
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
            return await load(traffic, settings, stop, report)

        return asyncio.run(work())


def _write(run: Run, output: Path | None, vllm_json: Path | None, exp: Path | None) -> None:
    from penstock.measure.formats import write_distserve_exp, write_vllm_bench
    from penstock.measure.store import write_run

    if output is not None:
        write_run(run, output)
    if vllm_json is not None:
        write_vllm_bench(run, vllm_json)
    if exp is not None:
        write_distserve_exp(run, exp)


def _predict(
    run: Run, plan: Path, traffic: Workload, profile: Path | None, settings: BenchSettings
) -> Comparison:
    """What the simulator says of the requests that were sent, beside what was measured."""
    from penstock import api
    from penstock.measure.loadgen.outcome import sent_workload

    same = sent_workload(run, traffic, settings.max_concurrency)
    simulated = api.simulate(plan, same, profile=profile, seed=settings.seed)
    return api.compare(simulated, run)


def _print(run: Run, predicted: Comparison | None, output_format: Format) -> None:
    from penstock.measure.compare import comparison_to_dict
    from penstock.measure.metrics import summarise, summary_to_dict

    summary = summarise(run)
    if output_format is Format.json:
        document = summary_to_dict(summary)
        if predicted is not None:
            verdicts = comparison_to_dict(predicted)["simulated_against_measured"]
            document = {**document, "simulated_against_measured": verdicts}
        print_json(document)
        return
    from rich.console import Console

    from penstock.report.tables import summary_table, verdict_table

    console = Console()
    console.print(summary_table(summary))
    if predicted is not None:
        console.print(verdict_table(predicted))
    problems = run.header.get("problems")
    if isinstance(problems, list) and problems:
        note(f"some requests were not served: {problems[0]}")
