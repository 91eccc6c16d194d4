"""A pool whose workers are the nodes of a Ray cluster; Ray itself is loaded when it is used."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from penstock.errors import InputError

LOCAL = "local"
CONNECT_S = 5.0


@dataclass(frozen=True)
class RayPool:
    """``submit`` as in ``concurrent.futures``; ``width`` calls can run at once."""

    remote: Any
    width: int

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = self.remote.remote(function, *arguments).future()
        return future


@contextmanager
def ray_pool(address: str) -> Iterator[RayPool]:
    """Connect to the cluster at ``address`` (``auto``: the one on this machine; ``local``: start
    one here) and leave it at the end.

    Every node needs the same Penstock. Raises ``InputError`` where Ray is missing or nobody
    answers.
    """
    try:
        import ray  # noqa: PLC0415 - of the extra [serve]
    except ImportError:
        fix = "install it with: pip install 'penstock[serve]'"
        raise InputError(f"--ray needs Ray; {fix}") from None
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises many kinds, RuntimeError and its own among them
        raise _unreachable(address, str(error).strip() or type(error).__name__) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=2)(_call)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield RayPool(remote, max(1, int(resources.get("CPU", 1))))
    finally:
        ray.shutdown()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _check_reachable(address: str) -> None:
    """Ask for a connection first: Ray itself would retry for minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray: {address} is no address; give HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"--ray: no Ray cluster answers at {address} ({reason.splitlines()[0]}); start one with "
        "'ray start --head', or give --ray local"
    )
