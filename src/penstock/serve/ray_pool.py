"""Workers as Ray actors: on a cluster by its address, or on an embedded Ray of this machine.

Ray places, starts and watches; steps, hidden states and KV pages never pass through it. A stage
is one actor that runs the loop of a worker process (further ranks are its child processes). Lost
workers are started anew by the coordinator, never by Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from penstock.errors import InputError
from penstock.serve.pool import WorkerSpec
from penstock.serve.socket_pool import End, SocketPool
from penstock.serve.worker.run import Boot, decode_boot, encode_boot, run_worker

LOOPBACK = "127.0.0.1"
NODE_LABEL = "penstock-node"
_CONNECT_S = 5.0


class RayPool(SocketPool):
    """``address`` is ``host:port`` of a cluster's head, or ``auto``; None starts an embedded Ray.

    A worker goes to the Ray node that carries the name of its node in the plan (as a custom
    resource, as label ``penstock-node``, or as host name); where none does, Ray spreads workers.
    """

    def __init__(self, address: str | None = None, *, silence_s: float = 30.0) -> None:
        super().__init__(RayLauncher(address), silence_s=silence_s)


class RayLauncher:
    """See ``socket_pool.Launcher``."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._ours = False
        self._host = LOOPBACK

    @property
    def host(self) -> str:
        return self._host

    async def open(self) -> None:
        ray = _ray()
        if not ray.is_initialized():
            with _own_sigterm():
                self._connect(ray)
            self._ours = True
        if self._address is not None:
            self._host = ray.util.get_node_ip_address()

    def _connect(self, ray: Any) -> None:
        address = self._address
        if address is None:
            ray.init(
                include_dashboard=False,
                logging_level=logging.WARNING,
                _node_ip_address=LOOPBACK,
            )
            return
        _check_address(address)
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"no Ray cluster answers at {address}: {reason[0]}") from error

    async def launch(self, boot: Boot) -> RayHandle:
        ray = _ray()
        spec = boot.spec
        gpus = spec.tensor_parallel_size if spec.device.startswith("cuda") else 0
        node = find_node(ray.nodes(), spec.node)
        _check_gpus(ray.nodes() if node is None else [node], gpus, spec)
        strategy: Any = "SPREAD"
        if node is not None:
            affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            strategy = affinity(node_id=node["NodeID"], soft=False)
        actor = ray.remote(StageActor).options(
            num_cpus=0,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spec.threads)}},
        )
        return RayHandle(actor.remote(), boot)

    async def close(self) -> None:
        if self._ours:
            _ray().shutdown()
            self._ours = False


class StageActor:
    """What Ray runs."""

    def run(self, data: bytes) -> bool:
        """Work until told to stop; False after a fault that was reported."""
        boot = decode_boot(data)
        if boot.host != LOOPBACK:
            boot = replace(boot, host=_ray().util.get_node_ip_address())
        return run_worker(boot)


class RayHandle:
    """An actor and its one call, which lasts as long as the worker."""

    def __init__(self, actor: Any, boot: Boot) -> None:
        self._actor = actor
        self._life = actor.run.remote(encode_boot(boot))

    def kill(self) -> None:
        _ray().kill(self._actor)

    async def ended(self) -> End:
        ray = _ray()
        try:
            whole = await asyncio.wrap_future(self._life.future())
        except ray.exceptions.RayActorError:
            return End("its Ray actor has died")
        except ray.exceptions.RayError as error:
            return End(f"Ray has lost it ({type(error).__name__})")
        self.kill()
        return End("it has ended" if whole else "its actor ended after a fault", spoke=not whole)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our own SIGTERM handling over ``ray.init``, which puts an exit in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: set outside Python, and not to be had back.
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def find_node(nodes: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The living Ray node that carries ``name``, if any (entries as ``ray.nodes()`` gives)."""
    for node in nodes:
        if node["Alive"] and (
            name in node["Resources"]
            or node.get("Labels", {}).get(NODE_LABEL) == name
            or name in (node.get("NodeName"), node.get("NodeManagerHostname"))
        ):
            return node
    return None


def _check_gpus(nodes: Sequence[Mapping[str, Any]], gpus: int, spec: WorkerSpec) -> None:
    """Refuse what Ray would wait for without end."""
    most = max((node["Resources"].get("GPU", 0) for node in nodes if node["Alive"]), default=0)
    if gpus > most:
        raise InputError(
            f"worker {spec.name!r} needs {gpus} GPUs on one node; Ray has {most:g} there"
        )


def _check_address(address: str) -> None:
    """Refuse in seconds what Ray would try for a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        raise InputError(f"a Ray address is host:port of the head node, or auto (got {address!r})")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as connection:
            if "RAY_USE_TLS" not in os.environ and not _speaks_grpc(connection):
                raise ConnectionError("what listens there is not Ray")
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {error.strerror or error}; start one with "
            "'ray start --head', or leave the address out"
        ) from error


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether HTTP/2, which carries gRPC, is answered with its settings (RFC 9113, 3.4)."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = connection.recv(9, socket.MSG_WAITALL)
    return len(head) == 9 and head[3] == 4


def _ray() -> Any:
    """Ray takes half a second to import; it is asked not to report its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Whether Ray uses tokens among its own processes is nothing a user has to act on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    import ray  # noqa: PLC0415 - only this pool needs it
    import ray.util.scheduling_strategies  # noqa: PLC0415 - see above

    return ray
