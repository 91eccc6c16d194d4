"""``penstock calibrate``: fit a profile to a live endpoint, from its client's side alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from penstock.cli.common import Format, check_writable, note, positive, progress_line


def calibrate(
    url: str = typer.Option("http://127.0.0.1:8000", "--url", help="Address of the endpoint."),
    model: str = typer.Option(
        ..., "--model", help="What the endpoint serves: preset, config.json or its folder."
    ),
    accelerator: str = typer.Option(..., "--accelerator", help="What it runs on, such as L40S."),
    output: Path = typer.Option(Path("profile.yaml"), "--output", "-o", help="Write it here."),
    served_model_name: str | None = typer.Option(
        None, "--served-model-name", help="Its name at the endpoint; default: the first."
    ),
    seconds: float = typer.Option(300.0, "--seconds", help="Time to spend; 600 at most."),
    max_concurrency: int = typer.Option(64, "--max-concurrency", help="Largest batch to ask for."),
    chunk: int = typer.Option(
        512, "--max-num-batched-tokens", help="Tokens of a prefill chunk, as the server was set."
    ),
    tensor: int = typer.Option(1, "--tensor-parallel-size", "--tp", help="GPUs of a stage."),
    pipeline: int = typer.Option(1, "--pipeline-parallel-size", "--pp", help="Stages."),
    api_key: str | None = typer.Option(
        None, "--api-key", envvar="OPENAI_API_KEY", help="Key of the endpoint."
    ),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Fit step times to a live endpoint: TTFT by prompt length, TPOT by concurrency and context.

    The endpoint should serve nobody else meanwhile.

    Example: penstock calibrate --url http://gpu:8000 --model llama3.1-8b --accelerator L40S
    """
    from penstock.cli.bench import need_client
    from penstock.cli.profile import show_profile
    from penstock.errors import SpecError

    need_client()
    from penstock.plan.planner import Progress
    from penstock.profile.calibrate import CalibrateSettings, calibrate_endpoint
    from penstock.profile.document import write_profile
    from penstock.spec.load import load_model

    check_writable(output)
    positive(seconds, "--seconds")
    if seconds > 600:
        raise SpecError("must be at most 600", key="--seconds", value=seconds)
    for value, flag in (
        (max_concurrency, "--max-concurrency"),
        (chunk, "--max-num-batched-tokens"),
        (tensor, "--tp"),
        (pipeline, "--pp"),
    ):
        if value < 1:
            raise SpecError("must be at least 1", key=flag, value=value)
    settings = CalibrateSettings(
        url,
        load_model(Path(model) if Path(model).exists() else model),
        accelerator,
        served_model_name=served_model_name,
        api_key=api_key,
        seconds=seconds,
        max_concurrency=max_concurrency,
        chunk_tokens=chunk,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
    )
    with progress_line() as progress:
        found = asyncio.run(
            calibrate_endpoint(
                settings, lambda text, share: progress(Progress(text, fraction=share))
            )
        )
    write_profile(found, output)
    show_profile(found, output_format)
    note(f"wrote {output}")
