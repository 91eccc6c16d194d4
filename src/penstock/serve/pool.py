"""The seam between coordinator and workers: start them, talk to them, learn that they died.

Implementations: ``inline.py`` (same process and event loop, for tests and null engines),
``processes.py`` (a process per rank, ZeroMQ between them), ``ray_pool.py`` (Ray actors that run
the same worker loop).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.cost.base import BatchLimits
from penstock.plan.settings import SpeculationSettings
from penstock.serve.wire import ToCoordinator, ToWorker

ExecutorName = Literal["torch", "null"]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One stage, and what its worker needs to build itself.

    ``num_pages`` counts KV pages of ``page_size`` tokens x 1 layer; cached prompt pieces hold
    ``piece_tokens``. ``batches``: the worker is a node of per-request paths and forms batches
    itself, under ``limits``, with iterations entering at ``entry_layers``; otherwise it runs steps
    as they come. ``speculation`` names the draft model beside the target (stages that hold all
    layers only). ``node`` is where to place it. Iterations of sequences below ``first_seq``, and
    KV transfers below ``first_transfer``, belong to an earlier life of the worker and are dropped.
    """

    name: str
    node: str
    checkpoint: str
    start_layer: int
    end_layer: int
    num_layers: int
    num_pages: int
    page_size: int = 16
    piece_tokens: int = 512
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 1
    executor: ExecutorName = "torch"
    batches: bool = False
    limits: BatchLimits | None = None
    entry_layers: tuple[int, ...] = ()
    first_seq: int = 0
    first_transfer: int = 0
    speculation: SpeculationSettings | None = None
    kv_bytes_per_token_per_layer: int = 0


class WorkerPool(Protocol):
    """All methods are called on the coordinator's event loop, and callbacks run there."""

    def listen(
        self, message: Callable[[ToCoordinator], None], died: Callable[[str, str], None]
    ) -> None:
        """Call ``message`` for each message, ``died(worker, why)`` once when a worker is gone.

        What a worker reports of its own fault (``Failed``) comes as ``died``.
        """
        ...

    async def start(self, spec: WorkerSpec) -> None:
        """Start a worker, or start it anew under its old name; returns when it is ready.

        Raises ``penstock.errors.InputError`` where it cannot be built (weights, memory).
        """
        ...

    def send(self, worker: str, message: ToWorker) -> None:
        """Queue ``message``; what is sent to a dead worker is dropped."""
        ...

    async def stop(self, worker: str) -> None:
        """End a worker; no ``died`` follows."""
        ...

    async def close(self) -> None:
        """End all workers and leave no process behind."""
        ...
