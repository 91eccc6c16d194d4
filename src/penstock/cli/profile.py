"""``penstock profile``: measure the engine on this machine and write what it takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, print_json, progress_line

if TYPE_CHECKING:
    from penstock.cost.step_table import StepTableFile
    from penstock.plan.plan import Plan


def profile(
    model: Path = typer.Option(..., "--model", help="Folder of the checkpoint."),
    output: Path = typer.Option(Path("profile.yaml"), "--output", "-o", help="Write it here."),
    pipeline: int = typer.Option(
        1, "--stages", "--pipeline-parallel-size", "--pp", help="Stages of the engine."
    ),
    tensor: int = typer.Option(1, "--tensor-parallel-size", "--tp", help="Ranks of a stage."),
    kv_memory: str | None = typer.Option(
        None, "--kv-memory", help="KV memory of each worker, such as '256 MiB'."
    ),
    repeat: int = typer.Option(5, "--repeat", help="How often each prompt size is measured."),
    dtype: str = typer.Option("auto", "--dtype", help="auto, float32, bfloat16 or float16."),
    device: str = typer.Option("cpu", "--device", help="cpu or cuda."),
    threads: int = typer.Option(1, "--threads", help="CPU threads of each worker."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Measure an engine on this machine: steps, host overhead, links, KV capacity.

    Starts a server of its own. Use the file with 'penstock simulate PLAN --profile FILE'.

    Example: penstock profile --model models/tiny -o profile.yaml
    """
    from penstock.cli.serve import need_extra
    from penstock.errors import SpecError
    from penstock.serve.local import LocalShape, local_plan
    from penstock.spec.units import parse_bytes

    check_writable(output)
    for value, flag in ((pipeline, "--stages"), (tensor, "--tp"), (repeat, "--repeat")):
        if value < 1:
            raise SpecError("must be at least 1", key=flag, value=value)
    need_extra()
    memory = None if kv_memory is None else parse_bytes(kv_memory)
    plan = local_plan(model, LocalShape(1, pipeline, tensor), kv_memory_bytes=memory)
    found = _measure(plan, repeat, dtype, device, threads)

    from penstock.profile.document import write_profile

    write_profile(found, output)
    show_profile(found, output_format)
    note(f"wrote {output}")


def _measure(plan: Plan, repeat: int, dtype: str, device: str, threads: int) -> StepTableFile:
    from penstock.plan.planner import Progress
    from penstock.profile.engine import ProfileSettings, profile_engine

    settings = ProfileSettings(repeat, dtype, device, threads)
    with progress_line() as progress:

        def report(text: str, share: float) -> None:
            progress(Progress(text, fraction=share))

        return asyncio.run(profile_engine(plan, settings, report))


def show_profile(found: StepTableFile, output_format: Format) -> None:
    """Print a profile: its steps as a table, and everything as JSON."""
    if output_format is Format.json:
        print_json(found.model_dump(exclude_none=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.model} on {found.accelerator}", title_justify="left")
    for column in ("step", "sequences", "tokens", "in KV memory", "ms"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for chunk in found.prefill:
        row = ("prefill", "1", str(chunk.tokens), str(chunk.cached_tokens))
        table.add_row(*row, f"{chunk.seconds * 1e3:.2f}")
    table.add_section()
    for point in found.decode:
        row = ("decode", str(point.seqs), str(point.seqs), str(point.context_tokens))
        table.add_row(*row, f"{point.seconds * 1e3:.2f}")
    console = Console()
    console.print(table)
    if found.host is not None:
        each = found.host.per_prompt_token * 1e6
        console.print(
            f"host: {found.host.fixed * 1e3:.2f} ms a request, {each:.2f} us a prompt token"
        )
    for name, link in (("KV transfer", found.kv_transfer), ("hidden states", found.hidden_states)):
        if link is not None:
            speed = link.bandwidth / 1e6
            console.print(f"{name}: {link.latency * 1e3:.2f} ms and {speed:,.0f} MB/s")
    console.print(f"{found.provenance}; {found.error}")
