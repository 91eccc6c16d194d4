"""A pool whose workers are the nodes of a Ray cluster; Ray itself is loaded when it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from penstock.errors import InputError

LOCAL = "local"


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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises many kinds, RuntimeError and its own among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--ray: no Ray cluster answers at {address} ({reason}); start one with "
            "'ray start --head', or give --ray local"
        ) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=2)(_call)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield RayPool(remote, max(1, int(resources.get("CPU", 1))))
    finally:
        ray.shutdown()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
