"""From a plan to a server: workers, runtime, gateway; and the orderly end of all three."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from penstock.errors import InputError, SpecError
from penstock.measure.fleet import measured_entries
from penstock.plan.plan import Plan
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.gateway import GatewayServer, GatewaySettings, make_app
from penstock.serve.many.member import Making
from penstock.serve.many.runtime import ManyRuntime
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import ModelCard
from penstock.serve.text import load_text
from penstock.spec.workload import SLOClass

WorkersName = Literal["ray", "processes", "inline"]


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """How a plan is brought up. ``drain_s``: what requests may take to finish at the end."""

    workers: WorkersName = "ray"
    ray_address: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str = ""
    max_model_len: int | None = None
    drain_s: float = 30.0
    options: ServeOptions = field(default_factory=ServeOptions)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    classes: tuple[SLOClass, ...] = ()
    record: Path | None = None
    fit: Callable[[PoolPlan], PoolPlan] | None = None
    """Cuts plans of several models to what this machine holds."""


def make_pool(settings: LaunchSettings) -> WorkerPool:
    """The pool that ``settings`` name. Modules are imported only where they are used."""
    if settings.workers == "inline":
        from penstock.serve.inline import InlinePool  # noqa: PLC0415

        return InlinePool()
    if settings.workers == "processes":
        from penstock.serve.processes import ProcessPool  # noqa: PLC0415

        return ProcessPool()
    from penstock.serve.ray_pool import RayPool  # noqa: PLC0415

    return RayPool(settings.ray_address)


def model_card(plan: Plan, settings: LaunchSettings) -> ModelCard:
    """What is served, and up to which length."""
    longest = plan.model.max_position_embeddings
    length = settings.max_model_len or longest
    if length > longest:
        raise SpecError(
            f"the model knows {longest} positions only",
            key="--max-model-len",
            value=length,
            fix=f"use at most {longest}",
        )
    name = settings.served_model_name or Path(plan.checkpoint).name or plan.model.name
    return ModelCard(name, length, plan.model.vocab_size, plan.checkpoint)


@asynccontextmanager
async def server_of(
    plan: Plan | PoolPlan, settings: LaunchSettings
) -> AsyncIterator[Runtime | ManyRuntime]:
    """Yield the runtime of one model or of several with its workers up; end them afterwards."""
    making = runtime_of if isinstance(plan, Plan) else many_of
    async with making(plan, settings) as runtime:  # type: ignore[arg-type]
        yield runtime


@asynccontextmanager
async def many_of(plan: PoolPlan, settings: LaunchSettings) -> AsyncIterator[ManyRuntime]:
    """Yield the runtime of several models with its workers up; end them all afterwards.

    Raises ``InputError`` for what cannot be loaded, before anything is left behind.
    """
    options = replace(settings.options, record=settings.record is not None)
    runtime = ManyRuntime(
        plan,
        make_pool(settings),
        Making(options, settings.classes, settings.max_model_len),
        fit=settings.fit or (lambda plan: plan),
    )
    try:
        await runtime.start()
        yield runtime
    finally:
        await runtime.close()


@asynccontextmanager
async def runtime_of(plan: Plan, settings: LaunchSettings) -> AsyncIterator[Runtime]:
    """Yield the runtime of ``plan`` with its workers up; end them all afterwards.

    Raises ``InputError`` for what cannot be loaded, before anything is left behind.
    """
    eos: tuple[int, ...] = ()
    if settings.options.executor == "torch" and not all(engine.url for engine in plan.engines):
        from penstock.serve.model import read_checkpoint  # noqa: PLC0415 - imports torch

        eos = read_checkpoint(plan.checkpoint).eos_token_ids
    pool = make_pool(settings)
    options = replace(settings.options, record=settings.record is not None)
    runtime = Runtime(
        plan, pool, model_card(plan, settings), options, eos=eos, classes=settings.classes
    )
    try:
        await runtime.start()
        yield runtime
    finally:
        await runtime.close()


async def serve(
    plan: Plan | PoolPlan,
    settings: LaunchSettings,
    ready: Callable[[str], None] = lambda _url: None,
) -> bool:
    """Serve until SIGINT or SIGTERM, then drain and end everything. ``ready`` gets the URL.

    A second signal ends requests at once. Returns False where the first one came while loading.
    """
    listener = _listen(settings.host, settings.port)
    stopping, hurry, up = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    def is_up(url: str) -> None:
        up.set()
        ready(url)

    serving = asyncio.ensure_future(_serve(plan, settings, listener, (stopping, hurry), is_up))
    watching = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    if not serving.done() and not up.is_set():
        # Still loading: there is nothing to drain.
        serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    return up.is_set()


async def _serve(
    plan: Plan | PoolPlan,
    settings: LaunchSettings,
    listener: socket.socket,
    signals: tuple[asyncio.Event, asyncio.Event],
    up: Callable[[str], None],
) -> None:
    stopping, hurry = signals
    with listener:
        # What is wrong with the tokenizer is told before weights are loaded.
        for one in [plan] if isinstance(plan, Plan) else [e.plan for e in plan.deployments]:
            load_text(one.checkpoint, vocab_size=one.model.vocab_size)
        async with server_of(plan, settings) as runtime:
            app = make_app(runtime, settings.gateway)
            server = GatewayServer(
                app, host=settings.host, port=settings.port, drain_s=int(settings.drain_s)
            )
            # Signals are ours: the workers outlive the last answer.
            serving = asyncio.ensure_future(server.serve_unsignalled([listener]))
            host, port = listener.getsockname()[:2]
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            up(f"http://{host}:{port}")
            stopped = asyncio.ensure_future(stopping.wait())
            await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            hurrying = asyncio.ensure_future(_hurry(hurry, server, runtime))
            await serving
            stopped.cancel()
            await runtime.drain(settings.drain_s)
            hurrying.cancel()
            if settings.record is not None:
                classes = settings.classes
                if isinstance(runtime, ManyRuntime):
                    classes = runtime.making.classes
                write_record(runtime, settings.record, classes)


async def _hurry(
    hurry: asyncio.Event, server: GatewayServer, runtime: Runtime | ManyRuntime
) -> None:
    await hurry.wait()
    server.force_exit = True
    await runtime.end_requests()


def write_record(
    runtime: Runtime | ManyRuntime, folder: Path, classes: Sequence[SLOClass] = ()
) -> None:
    """Write what was served as one run, in the schema that ``simulate`` writes."""
    from penstock.measure.store import write_run  # noqa: PLC0415

    write_run(runtime.run("measured", {"classes": measured_entries(classes)}), folder)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``InputError`` where the port is taken."""
    if not 0 <= port <= 65535:
        raise SpecError("must be 0 to 65535", key="--port", value=port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, event loops switch Nagle's algorithm off: tokens leave at once.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
    listener.setblocking(False)
    return listener
