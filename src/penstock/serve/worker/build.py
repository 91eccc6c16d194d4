"""A worker from its spec."""

from __future__ import annotations

from penstock.serve.pool import WorkerSpec
from penstock.serve.worker.core import Worker
from penstock.serve.worker.executor import Executor, NodeTimer, Send
from penstock.serve.worker.null_executor import NullExecutor
from penstock.serve.worker.paths import NodePaths
from penstock.serve.worker.steps import StageSteps


def build_executor(spec: WorkerSpec, timer: NodeTimer | None = None) -> Executor:
    """Load what ``spec`` asks for. Raises ``InputError`` where it cannot be loaded."""
    if spec.executor == "null":
        return NullExecutor(spec, timer)
    # Torch takes a second to import; null workers do without.
    if spec.speculation is not None:
        from penstock.serve.worker.speculative_executor import (  # noqa: PLC0415
            SpeculativeExecutor,
        )

        return SpeculativeExecutor.load(spec)
    if spec.tensor_parallel_size > 1:
        from penstock.serve.worker.ranks import ShardedExecutor  # noqa: PLC0415

        return ShardedExecutor.load(spec)
    from penstock.serve.worker.torch_executor import TorchExecutor  # noqa: PLC0415

    return TorchExecutor.load(spec)


def build_worker(spec: WorkerSpec, executor: Executor, send: Send) -> Worker:
    """A node of paths or a stage of an engine, as ``spec`` says."""
    duty = NodePaths if spec.batches else StageSteps
    return Worker(spec, executor, duty(spec, executor, send), send)
