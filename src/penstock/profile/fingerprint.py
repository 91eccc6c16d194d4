"""The fingerprint of a checkpoint: its first layers measured on this machine.

Workers that hold one and two layers run the same batches in turns, alone and as two ranks; a
pipeline of two workers tells what a hand-over takes. A server of the one-layer cut tells what
serving adds to a step and to a request.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from penstock import __version__
from penstock.cost.fingerprint_file import (
    CutChunk,
    CutRun,
    FingerprintFile,
    Machine,
    Shape,
)
from penstock.cost.fingerprint_times import fit_times
from penstock.errors import InputError, SpecError
from penstock.profile.batches import (
    OUTPUTS,
    Batch,
    Runner,
    Timing,
    kv_tokens,
    measure,
    measure_chunks,
)
from penstock.profile.cuts import cut_checkpoint
from penstock.profile.fingerprint_server import measure_server
from penstock.serve.local import local_accelerator, machine_memory_bytes
from penstock.serve.model.checkpoint import read_checkpoint
from penstock.spec.load import load_model
from penstock.spec.model import ModelSpec

Report = Callable[[str, float], None]
"""(what is done now, share of the whole that is done)."""

DTYPES = ("float32", "bfloat16", "float16")
_SIZES = (1, 2, 4, 8, 16, 32)
_PROMPTS = (16, 128, 1024)
_STEP_TOKENS = 2048
"""Prompt tokens of one batch: more would take longer than they tell."""
_CHUNKS = ((128, 512), (512, 512))


@dataclass(frozen=True, slots=True)
class FingerprintSettings:
    """``dtypes``: () is the one the checkpoint is stored in. ``cuts``: depths that are measured.

    ``whole``: batches that the whole model runs beside the cuts, to see what those are worth.
    """

    dtypes: tuple[str, ...] = ()
    cuts: tuple[int, ...] = (1, 2)
    repeat: int = 5
    threads: int = 1
    server: bool = True
    whole: tuple[Batch, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.cuts)) < 2 or min(self.cuts) < 1:
            raise SpecError("needs two depths of 1 or more", key="cuts", value=list(self.cuts))
        for name in self.dtypes:
            if name not in DTYPES:
                fix = f"use {', '.join(DTYPES)}"
                raise SpecError("unknown dtype", key="--dtype", value=name, fix=fix)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Cuts that are measured in turns, all on so many ranks and stages."""

    tp: int
    pp: int
    cuts: tuple[int, ...]

    def __str__(self) -> str:
        return f"TP{self.tp} PP{self.pp}, {' and '.join(map(str, self.cuts))} layers"


def batches(max_tokens: int) -> list[Batch]:
    """What is measured: batch sizes and prompt lengths up to ``max_tokens`` a sequence."""
    return [
        Batch(size, prompt)
        for size in _SIZES
        for prompt in _PROMPTS
        if prompt + max(OUTPUTS) <= max_tokens and size * prompt <= _STEP_TOKENS
    ]


async def fingerprint(
    folder: Path,
    settings: FingerprintSettings | None = None,
    report: Report = lambda _text, _share: None,
) -> FingerprintFile:
    """Measure the checkpoint in ``folder``.

    Raises ``InputError`` where a worker does not start, and for a model with too few layers.
    """
    settings = settings or FingerprintSettings()
    model = load_model(folder)
    _check_depth(folder, model, settings.cuts)
    kinds, notes = _kinds(model, settings.cuts)
    checkpoint = read_checkpoint(folder)
    stored, server = checkpoint.config.dtype, settings.server
    if server and checkpoint.tokenizer is None:
        server, notes = False, (*notes, "there is no tokenizer: no server was measured")
    dtypes = settings.dtypes or (stored,)
    runs: list[CutRun] = []
    chunks: list[CutChunk] = []
    with tempfile.TemporaryDirectory(prefix="penstock-fingerprint-") as name:
        cuts = _cut_all(folder, model, settings, Path(name))
        total = len(kinds) * len(dtypes) + server
        for i, (dtype, kind) in enumerate((d, k) for d in dtypes for k in kinds):

            def show(text: str, share: float, i: int = i, title: str = f"{dtype}, {kind}") -> None:
                report(f"{title}: {text}", (i + share) / total)

            runners = [
                Runner(f"n{n}", cuts[n], n, kind.tp, kind.pp, dtype, 1, settings.threads)
                for n in kind.cuts
            ]
            if settings.whole:
                n = model.num_hidden_layers
                runners.append(replace(runners[0], name="whole", checkpoint=folder, layers=n))
            found = await _measure_kind(runners, model, settings, show)
            runs += found[0]
            chunks += found[1]
        document = FingerprintFile(
            penstock_fingerprint=1,
            model=model.name,
            stored=stored,
            accelerator=local_accelerator().name,
            source=f"penstock profile --fingerprint {__version__} on this machine",
            shape=shape_of(model),
            machine=machine(settings.threads),
            notes=notes,
            runs=tuple(runs),
            chunks=tuple(chunks),
        )
        if not server:
            return document
        report("a server of one layer", (total - 1) / total)
        own = fit_times(document, dtypes[0], 1)
        added = await measure_server(
            cuts[1], own, dtype=dtypes[0], repeat=settings.repeat, threads=settings.threads
        )
    return document.model_copy(update={"server": added})


def _check_depth(folder: Path, model: ModelSpec, cuts: tuple[int, ...]) -> None:
    if max(cuts) > model.num_hidden_layers:
        raise SpecError(
            f"the checkpoint has {model.num_hidden_layers} layers",
            source=folder,
            key="cuts",
            value=list(cuts),
        )


def shape_of(model: ModelSpec) -> Shape:
    """What estimates need of the whole model."""
    values = 2 * model.num_key_value_heads * model.head_dim
    return Shape(
        layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        layer_parameters=model.layer_parameters(model.num_hidden_layers - 1),
        kv_values=values,
    )


def machine(threads: int) -> Machine:
    """This machine, as far as the system tells."""
    import torch  # noqa: PLC0415 - takes a second, and only measuring needs it

    name = platform.processor() or platform.machine()
    try:
        for row in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if row.startswith("model name"):
                name = row.partition(":")[2].strip()
                break
    except OSError:
        pass
    return Machine(
        name=name,
        cores=os.cpu_count() or 1,
        memory=machine_memory_bytes(),
        threads=threads,
        torch=torch.__version__,
    )


def _kinds(model: ModelSpec, cuts: tuple[int, ...]) -> tuple[list[_Kind], tuple[str, ...]]:
    """Kinds of cuts the model allows, and what is left out."""
    kinds, notes = [_Kind(1, 1, cuts)], []
    heads = (model.num_attention_heads, model.num_key_value_heads, model.intermediate_size)
    if all(value % 2 == 0 for value in heads):
        kinds.append(_Kind(2, 1, cuts))
    else:
        notes.append("two ranks cannot share the heads: TP 2 was not measured")
    depths = tuple(n for n in (2, 3) if n <= model.num_hidden_layers)
    if depths:
        kinds.append(_Kind(1, 2, depths))
    return kinds, tuple(notes)


def _cut_all(
    folder: Path, model: ModelSpec, settings: FingerprintSettings, into: Path
) -> dict[int, Path]:
    """Cuts by their depth; 2 and 3 layers are for pipelines, and 1 for the server."""
    depths = sorted({1, 2, 3, *settings.cuts})
    return {
        n: cut_checkpoint(folder, n, into / str(n) / folder.resolve().name)
        for n in depths
        if n <= model.num_hidden_layers
    }


async def _measure_kind(
    runners: Sequence[Runner], model: ModelSpec, settings: FingerprintSettings, report: Report
) -> tuple[list[CutRun], list[CutChunk]]:
    longest = model.max_position_embeddings
    wanted = batches(longest)
    if not wanted:
        raise InputError(f"{model.name}: {longest} positions are too few to measure")
    chunks = [chunk for chunk in _CHUNKS if sum(chunk) <= longest and runners[0].pp == 1]
    room = max([kv_tokens([*wanted, *settings.whole]), *(sum(chunk) for chunk in chunks)])
    runners = [replace(runner, kv_tokens=room) for runner in runners]

    def show(batch: Batch, share: float) -> None:
        report(f"{batch.size} x {batch.prompt_tokens} tokens", share)

    jobs = {one: settings.whole if one.name == "whole" else wanted for one in runners}
    found = await measure(jobs, settings.repeat, show)
    runs = [
        row for (runner, batch), timing in found.items() for row in _rows(runner, batch, timing)
    ]
    cuts = [one for one in runners if one.name != "whole"]
    seconds = await measure_chunks(cuts, chunks, settings.repeat) if chunks else {}
    return runs, [
        CutChunk(
            dtype=runner.dtype,
            tp=runner.tp,
            pp=runner.pp,
            layers=runner.layers,
            tokens=chunk[0],
            cached_tokens=chunk[1],
            seconds=one,
        )
        for (runner, chunk), one in seconds.items()
    ]


def _rows(runner: Runner, batch: Batch, timing: Timing) -> list[CutRun]:
    """One row for each output length."""
    return [
        CutRun(
            dtype=runner.dtype,
            tp=runner.tp,
            pp=runner.pp,
            layers=runner.layers,
            prompt_tokens=batch.prompt_tokens,
            output_tokens=outputs,
            batch=batch.size,
            prefill=timing.prefill_s,
            latency=timing.latency_s(outputs),
            memory=timing.memory_bytes,
            kv_tokens=runner.kv_tokens,
        )
        for outputs in OUTPUTS
    ]
