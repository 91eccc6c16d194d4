"""``penstock serve``: a plan on real workers behind the OpenAI API."""

from __future__ import annotations

import asyncio
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import check_writable, duration_of, note, positive
from penstock.cli.serve_many import Wanted, models_of, pool_of

if TYPE_CHECKING:
    from penstock.plan.plan import Plan
    from penstock.plan.pool_plan import PoolPlan
    from penstock.serve.launch import LaunchSettings


class Workers(StrEnum):
    """What runs the workers."""

    ray = "ray"
    processes = "processes"
    inline = "inline"


class Device(StrEnum):
    """Where tensors live."""

    cpu = "cpu"
    cuda = "cuda"


def serve(
    plan: Path | None = typer.Argument(
        None, help="Plan of one model or of several; default: all of --model here."
    ),
    model: list[str] = typer.Option(
        [], "--model", help="Folder of the checkpoint; NAME=DIR for each of several."
    ),
    deploy: bool = typer.Option(
        False, "--deploy", help="Let models come and go ('penstock deploy'); none is needed first."
    ),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = typer.Option(8000, "--port", help="Port to listen on; 0 = any free one."),
    ray: str | None = typer.Option(None, "--ray", help="Address of a Ray cluster, or 'auto'."),
    workers: Workers = typer.Option(Workers.ray, "--workers", help="What runs the workers."),
    kv_memory: str | None = typer.Option(
        None, "--kv-memory", help="KV memory of each worker, such as '256 MiB'."
    ),
    max_model_len: int | None = typer.Option(None, "--max-model-len", help="Longest request."),
    replicas: int = typer.Option(1, "--replicas", help="Engines, without a plan."),
    pipeline: int = typer.Option(
        1, "--pipeline-parallel-size", "--pp", help="Stages of an engine, without a plan."
    ),
    tensor: int = typer.Option(
        1, "--tensor-parallel-size", "--tp", help="Ranks of a stage, without a plan."
    ),
    draft_model: Path | None = typer.Option(
        None, "--draft-model", help="Speculate with this checkpoint, without a plan."
    ),
    speculation: str | None = typer.Option(
        None,
        "--speculation",
        help="chain, adaserve or penstock (default); with --draft-model.",
    ),
    device: Device = typer.Option(Device.cpu, "--device", help="Where the workers compute."),
    dtype: str = typer.Option("auto", "--dtype", help="auto, float32, bfloat16 or float16."),
    threads: int = typer.Option(1, "--threads", help="CPU threads of each worker."),
    workload: str | None = typer.Option(
        None, "--workload", "-w", help="Workload whose SLO classes requests may name."
    ),
    served_model_name: str = typer.Option("", "--served-model-name", help="Default: the folder's."),
    api_key: list[str] = typer.Option([], "--api-key", help="Ask clients for one of these keys."),
    requests_per_minute: float | None = typer.Option(
        None, "--requests-per-minute", help="Limit of each key or address."
    ),
    drain: str = typer.Option("30 s", "--drain", help="What requests may take to finish."),
    record: Path | None = typer.Option(
        None, "--record", help="Write what was served here at the end, as a run."
    ),
    seed: int = typer.Option(0, "--seed", help="Seed of requests that name none."),
) -> None:
    """Serve a plan, or a checkpoint alone, behind the OpenAI API until Ctrl-C.

    Example: penstock serve --model models/tiny
    """
    models, cut = models_of(model), (replicas, pipeline, tensor)
    drafts = _speculation(draft_model, speculation)
    several = deploy or bool(models.named) or _is_pool(plan)
    if several:
        _refuse_for_several(deploy and models.folder is not None, drafts, served_model_name)
    else:
        made = _plan(plan, models.folder, kv_memory, cut, drafts)
        if ray is None and device is Device.cpu:
            _check_memory(made, kv_memory)
    check_writable(record, folder=True)
    need_extra()
    from penstock.serve.coordinator.options import ServeOptions
    from penstock.serve.gateway import GatewaySettings
    from penstock.serve.launch import LaunchSettings
    from penstock.spec.load import load_workload
    from penstock.spec.units import parse_bytes

    positive(requests_per_minute, "--requests-per-minute")
    options = ServeOptions(device=device.value, dtype=dtype, threads=threads, seed=seed)
    pool, fit = None, None
    if several:
        memory = None if kv_memory is None else parse_bytes(kv_memory)
        pool, fit = pool_of(Wanted(plan, models, memory, cut, dtype), options)
    classes = () if workload is None else load_workload(workload).classes
    settings = LaunchSettings(
        workers=workers.value,
        ray_address=ray,
        host=host,
        port=port,
        served_model_name=served_model_name,
        max_model_len=max_model_len,
        drain_s=duration_of(drain, "--drain"),
        options=options,
        gateway=GatewaySettings(
            api_keys=tuple(api_key),
            requests_per_minute=requests_per_minute,
            slo_classes=tuple(entry.name for entry in classes),
        ),
        classes=classes,
        record=record,
        fit=fit,
    )
    _run(made if pool is None else pool, settings)


def _is_pool(plan: Path | None) -> bool:
    from penstock.plan.pool_document import is_pool_document

    return plan is not None and is_pool_document(plan)


def _refuse_for_several(unnamed: bool, speculation: object, served_model_name: str) -> None:
    """Flags that speak of one model only."""
    from penstock.errors import SpecError

    for flag, given in (
        ("--draft-model", speculation is not None),
        ("--served-model-name", bool(served_model_name)),
        ("--model", unnamed),
    ):
        if given:
            raise SpecError(
                "a server of several models has no single one",
                key=flag,
                fix="write --model NAME=DIR" if flag == "--model" else "leave it out",
            )


def _plan(
    plan: Path | None,
    model: Path | None,
    kv_memory: str | None,
    cut: tuple[int, int, int],
    speculation: object,
) -> Plan:
    from penstock.errors import SpecError
    from penstock.plan.document import read_plan
    from penstock.plan.settings import SpeculationSettings
    from penstock.serve.local import LocalShape, fitted, local_plan
    from penstock.spec.units import parse_bytes

    memory = None if kv_memory is None else parse_bytes(kv_memory)
    if plan is not None:
        if cut != (1, 1, 1) or speculation is not None:
            raise SpecError(
                "the plan says how the model is cut and whether it speculates",
                key="--replicas, --pp, --tp, --draft-model",
                fix="leave them out, or leave out the plan",
            )
        return fitted(read_plan(plan), model, memory)
    if model is None:
        raise SpecError("nothing to serve", key="serve", fix="give a plan, or --model DIR")
    for value, flag in zip(cut, ("--replicas", "--pp", "--tp"), strict=True):
        if value < 1:
            raise SpecError("must be at least 1", key=flag, value=value)
    assert speculation is None or isinstance(speculation, SpeculationSettings)
    return local_plan(model, LocalShape(*cut), kv_memory_bytes=memory, speculation=speculation)


def _check_memory(plan: Plan, kv_memory: str | None) -> None:
    """Refuse KV memory that this machine, where all workers run, does not have."""
    from penstock.errors import SpecError
    from penstock.serve.local import local_ranks, machine_memory_bytes
    from penstock.spec.units import parse_bytes

    ranks, here = local_ranks(plan), machine_memory_bytes()
    if kv_memory is not None and ranks * parse_bytes(kv_memory) > here:
        workers = "1 worker" if ranks == 1 else f"{ranks} workers"
        raise SpecError(
            f"this machine has {here / 2**30:.1f} GiB for {workers}",
            key="--kv-memory",
            value=kv_memory,
            fix=f"give each less than {here / ranks / 2**30:.1f} GiB",
        )


def _speculation(draft_model: Path | None, method: str | None) -> object:
    from penstock.errors import SpecError
    from penstock.plan.settings import SpeculationSettings

    if draft_model is None:
        if method is not None:
            raise SpecError("needs a draft", key="--speculation", fix="give --draft-model DIR")
        return None
    return SpeculationSettings(method or "penstock", str(draft_model))  # type: ignore[arg-type]


def need_extra() -> None:
    """Say which extra is missing, in one line."""
    from importlib.util import find_spec

    from penstock.errors import InputError

    missing = [name for name in ("torch", "fastapi", "zmq", "msgspec") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving needs {', '.join(missing)}; install them with pip install 'penstock[serve]'"
        )


def _run(plan: Plan | PoolPlan, settings: LaunchSettings) -> None:
    from penstock.plan.plan import Plan
    from penstock.serve.launch import serve as serve_plan

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    def ready(url: str) -> None:
        if isinstance(plan, Plan):
            engines = ", ".join(engine.name for engine in plan.engines)
            what = f"{plan.model.name} on {engines}"
        else:
            what = ", ".join(entry.name for entry in plan.deployments) or "no model yet"
        note(f"{what}: ready at {url} (Ctrl-C ends)")

    if not asyncio.run(serve_plan(plan, settings, ready)):
        note("penstock: stopped while loading")
        raise typer.Exit(130)
