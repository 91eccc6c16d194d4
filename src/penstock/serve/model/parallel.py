"""Tensor parallelism inside a stage: what the layers ask of their peers."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist


class TensorParallel(Protocol):
    """Ranks ``0 .. size - 1`` that hold shards of the same layers and run the same steps."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum ``x`` over all ranks; may change ``x``."""
        ...

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Join the ``x`` of all ranks along the last dimension, in rank order."""
        ...


class SingleRank:
    """A stage on one device."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ProcessGroup:
    """A stage over the processes of a ``torch.distributed`` group (gloo on CPU, NCCL on CUDA).

    ``group`` None is the default group. The caller has initialised it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self._group)
        return torch.cat(parts, dim=-1)
