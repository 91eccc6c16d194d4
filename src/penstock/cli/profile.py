"""``penstock profile``: measure the engine on this machine and write what it takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, print_json, progress_line

if TYPE_CHECKING:
    from penstock.cost.fingerprint_file import FingerprintFile
    from penstock.cost.step_table import StepTableFile
    from penstock.plan.plan import Plan


def profile(
    model: Path | None = typer.Option(None, "--model", help="Folder of the checkpoint."),
    fingerprint: Path | None = typer.Option(
        None, "--fingerprint", help="Measure only the first layers of the checkpoint in here."
    ),
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
    With --fingerprint, one and two layers tell the whole model; --dtype may then be a list.

    Example: penstock profile --model models/tiny -o profile.yaml
    """
    from penstock.cli.serve import need_extra
    from penstock.errors import InputError, SpecError

    check_writable(output)
    counts = {"--stages": pipeline, "--tp": tensor, "--repeat": repeat, "--threads": threads}
    for flag, value in counts.items():
        if value < 1:
            raise SpecError("must be at least 1", key=flag, value=value)
    if (model is None) == (fingerprint is None):
        raise InputError("give the checkpoint with --model, or with --fingerprint for its cuts")
    need_extra()
    if fingerprint is not None:
        _check_alone(pipeline, tensor, kv_memory, device)
        _profile_cuts(fingerprint, output, (dtype, repeat, threads), output_format)
        return
    assert model is not None

    from penstock.serve.local import LocalShape, local_plan
    from penstock.spec.units import parse_bytes

    memory = None if kv_memory is None else parse_bytes(kv_memory)
    plan = local_plan(model, LocalShape(1, pipeline, tensor), kv_memory_bytes=memory)
    found = _measure(plan, repeat, dtype, device, threads)

    from penstock.profile.document import write_profile

    write_profile(found, output)
    show_profile(found, output_format)
    note(f"wrote {output}")


def _check_alone(pipeline: int, tensor: int, kv_memory: str | None, device: str) -> None:
    """Refuse flags that say nothing of cuts, which are measured on one and two workers."""
    from penstock.errors import SpecError

    given = {"--stages": pipeline != 1, "--tp": tensor != 1, "--kv-memory": kv_memory is not None}
    for flag, is_given in given.items():
        if is_given:
            raise SpecError("says nothing of a fingerprint", key=flag, fix="leave it out")
    if device != "cpu":
        raise SpecError(
            "fingerprints are measured on CPUs only", key="--device", value=device, fix="use cpu"
        )


def _profile_cuts(
    folder: Path, output: Path, how: tuple[str, int, int], output_format: Format
) -> None:
    from penstock.cost.fingerprint_file import write_fingerprint
    from penstock.plan.planner import Progress
    from penstock.profile.fingerprint import FingerprintSettings, fingerprint

    dtype, repeat, threads = how
    dtypes = () if dtype == "auto" else tuple(dict.fromkeys(dtype.replace(" ", "").split(",")))
    settings = FingerprintSettings(dtypes, repeat=repeat, threads=threads)
    with progress_line() as progress:

        def report(text: str, share: float) -> None:
            progress(Progress(text, fraction=share))

        found = asyncio.run(fingerprint(folder, settings, report))
    write_fingerprint(found, output)
    show_fingerprint(found, output_format)
    note(f"wrote {output}")


def show_fingerprint(found: FingerprintFile, output_format: Format) -> None:
    """Print a fingerprint: what a layer and all else take, and everything as JSON."""
    if output_format is Format.json:
        print_json(found.model_dump(exclude_none=True))
        return
    from rich.console import Console
    from rich.table import Table

    from penstock.cost.fingerprint_times import fit_times

    table = Table(title=f"{found.model} on {found.machine.name}", title_justify="left")
    for column in ("dtype", "ranks", "sequences", "layer, ms", "all else, ms"):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype, tp in dict.fromkeys((run.dtype, run.tp) for run in found.runs):
        times = fit_times(found, dtype, tp)
        for size, layer_s, rest_s in zip(times.batches, times.layer_s, times.rest_s, strict=True):
            row = (dtype, str(tp), str(size), f"{layer_s * 1e3:.3f}", f"{rest_s * 1e3:.3f}")
            table.add_row(*row)
        table.add_section()
    console = Console()
    console.print(table)
    console.print(
        f"decode steps by batch size; {found.shape.layers} layers in all; {len(found.runs)} runs"
    )
    if found.server is not None:
        step, request = found.server.step * 1e3, found.server.request * 1e3
        console.print(f"server: {step:.2f} ms a step, {request:.2f} ms a request")


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
