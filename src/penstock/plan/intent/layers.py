"""Layers onto fragmented memory: balanced as far as it fits, uneven where a stage fills up.

MaverIQ goes round the stages and adds a layer wherever one fits. The result has a closed form:
each stage gets min(its room, a common level), the level rising until all layers are placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError

FloatArray = NDArray[np.float64]
# A layer that misses by less than a byte in a gigabyte fits: sums of floats are not exact.
_HAIR = 1e-9


@dataclass(frozen=True, slots=True)
class LayerMap:
    """``layers[s]`` layers run on ``groups[s]`` (GPU indices of one tensor-parallel group).

    ``stage_bytes[s]`` is what every GPU of stage s holds.
    """

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    stage_bytes: tuple[float, ...]

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(gpu for group in self.groups for gpu in group)


def check_free(free_bytes: Sequence[float]) -> FloatArray:
    """Free bytes of every GPU as an array. Raises ``SpecError`` unless finite and not negative."""
    free = np.asarray(free_bytes, dtype=np.float64)
    if free.ndim != 1 or not len(free):
        raise SpecError("must name at least one GPU", key="free_bytes")
    if not np.all(np.isfinite(free)) or free.min() < 0:
        raise SpecError(
            "must be finite and 0 or more", key="free_bytes", value=[float(f) for f in free]
        )
    return free


def stage_rooms(
    free_bytes: Sequence[float], tensor: int, pipeline: int, layer_bytes: float
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Layers that fit each stage, and its GPUs: those with most room, in blocks of ``tensor``.

    Taking the emptiest GPUs in order makes the fullest GPU of every block as empty as it can be,
    so that no other choice of GPUs and blocks fits more layers. Equal GPUs keep their order.
    """
    free = check_free(free_bytes)
    order = np.argsort(-free, kind="stable")[: tensor * pipeline]
    blocks = order.reshape(pipeline, tensor)
    room = np.floor(free[blocks].min(axis=1) / layer_bytes + _HAIR).astype(int)
    groups = tuple(tuple(int(gpu) for gpu in block) for block in blocks)
    return tuple(int(n) for n in room), groups


def fill(rooms: Sequence[int], layers: int) -> tuple[int, ...] | None:
    """Layers per stage, as even as the rooms allow; None where they do not fit.

    Every stage needs a layer. Left-over layers of the last round go to the first stages that
    still have room, as going round would give them.
    """
    if layers < len(rooms) or sum(rooms) < layers or min(rooms) < 1:
        return None
    placed = [0] * len(rooms)
    open_stages = list(range(len(rooms)))
    left = layers
    while left:
        share = max(1, left // len(open_stages))
        step = min(share, *(rooms[s] - placed[s] for s in open_stages))
        for s in open_stages:
            given = min(step, left)
            placed[s] += given
            left -= given
        open_stages = [s for s in open_stages if placed[s] < rooms[s]]
    return tuple(placed)


def place_layers(
    free_bytes: Sequence[float], tensor: int, pipeline: int, layers: int, layer_bytes: float
) -> LayerMap | None:
    """The layer map of a configuration, or None where it does not fit.

    ``layer_bytes`` is a layer's memory on each GPU of its group. Raises ``SpecError``.
    """
    for key, value in (("tensor", tensor), ("pipeline", pipeline), ("layers", layers)):
        if value < 1:
            raise SpecError("must be at least 1", key=key, value=value)
    if not 0 < layer_bytes < np.inf:
        raise SpecError("must be finite and above 0", key="layer_bytes", value=layer_bytes)
    if tensor * pipeline > len(free_bytes):
        return None
    rooms, groups = stage_rooms(free_bytes, tensor, pipeline, layer_bytes)
    found = fill(rooms, layers)
    if found is None:
        return None
    return LayerMap(found, groups, tuple(n * layer_bytes for n in found))
