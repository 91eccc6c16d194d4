"""One pool of workers behind several runtimes, each of which sees its own workers only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.serve.pool import WorkerPool, WorkerSpec
from penstock.serve.wire import ToCoordinator, ToWorker


class SharedPool:
    """Hands out shares of ``pool``. Workers of all shares have different names."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.owners: dict[str, PoolShare] = {}
        pool.listen(self._message, self._died)

    def share(self) -> PoolShare:
        """A pool of its own for one runtime."""
        return PoolShare(self)

    async def close(self) -> None:
        await self.pool.close()

    def _message(self, message: ToCoordinator) -> None:
        owner = self.owners.get(message.worker)
        if owner is not None:
            owner.message(message)

    def _died(self, worker: str, why: str) -> None:
        owner = self.owners.get(worker)
        if owner is not None:
            owner.died(worker, why)


class PoolShare:
    """A ``WorkerPool``: the workers of one runtime among those of others."""

    def __init__(self, whole: SharedPool) -> None:
        self._whole = whole
        self.message: Callable[[ToCoordinator], None] = lambda _message: None
        self.died: Callable[[str, str], None] = lambda _worker, _why: None

    def listen(
        self, message: Callable[[ToCoordinator], None], died: Callable[[str, str], None]
    ) -> None:
        self.message, self.died = message, died

    async def start(self, spec: WorkerSpec) -> None:
        owner = self._whole.owners.setdefault(spec.name, self)
        assert owner is self, f"two runtimes have a worker called {spec.name}"
        await self._whole.pool.start(spec)

    def send(self, worker: str, message: ToWorker) -> None:
        self._whole.pool.send(worker, message)

    async def stop(self, worker: str) -> None:
        await self._whole.pool.stop(worker)
        self._whole.owners.pop(worker, None)

    async def close(self) -> None:
        """End the workers of this share; the others go on."""
        mine = [name for name, owner in self._whole.owners.items() if owner is self]
        await asyncio.gather(*map(self.stop, mine))
