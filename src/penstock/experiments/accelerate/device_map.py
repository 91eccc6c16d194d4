"""A balanced device map: whole blocks in order, each GPU filled to an even share.

The rule is that of ``device_map="balanced"``: the share is the model over the GPUs plus 1.25
times its largest block; every GPU but the last holds at most that, the last what is left. Blocks
that fit no more go to host memory, with all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import Infeasible, SpecError

HOST = -1
_BUFFER = 1.25


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """``gpu_of[i]`` holds block i (``HOST``: host memory); ``used_bytes`` has one entry a GPU."""

    gpu_of: tuple[int, ...]
    used_bytes: tuple[float, ...]
    host_bytes: float

    @property
    def gpus(self) -> tuple[int, ...]:
        """GPUs with at least one block, in order."""
        return tuple(sorted(set(self.gpu_of) - {HOST}))


def balanced_map(
    block_bytes: Sequence[float], free_bytes: Sequence[float], *, offload: bool = False
) -> DeviceMap:
    """Place blocks (embedding, layers, head) in order.

    Raises ``Infeasible`` where they do not fit and ``offload`` is not allowed, ``SpecError`` for
    sizes that mean nothing.
    """
    if not block_bytes or min(block_bytes) < 0:
        raise SpecError("needs blocks of 0 bytes or more", key="block_bytes")
    if not free_bytes or min(free_bytes) < 0:
        raise SpecError("needs GPUs with 0 bytes or more", key="free_bytes")
    share = sum(block_bytes) / len(free_bytes) + _BUFFER * max(block_bytes)
    limits = [min(free, share) for free in free_bytes[:-1]] + [free_bytes[-1]]
    used = [0.0] * len(free_bytes)
    gpu_of = []
    gpu, host = 0, 0.0
    for index, size in enumerate(block_bytes):
        while gpu < len(limits) and used[gpu] + size > limits[gpu]:
            gpu += 1
        if gpu == len(limits) and offload:
            host += size
            gpu_of.append(HOST)
            continue
        if gpu == len(limits):
            raise Infeasible(
                f"block {index} of {len(block_bytes)} does not fit on {len(free_bytes)} GPUs",
                binding="memory",
                fix="allow offloading, or use more GPUs",
            )
        used[gpu] += size
        gpu_of.append(gpu)
    return DeviceMap(tuple(gpu_of), tuple(used), host)
