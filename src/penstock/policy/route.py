"""The path of one request: which engines run which layers, over which legs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hop:
    """Layers ``[start_layer, end_layer)`` on one engine (index into ``Plan.engines``)."""

    engine: int
    start_layer: int
    end_layer: int

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.start_layer


@dataclass(frozen=True, slots=True)
class Route:
    """Hops in order and the legs around them.

    ``legs`` index ``Plan.legs``. A complete route has one leg more than hops: the first comes
    from the coordinator, the last returns to it. Routers that choose hop by hop start with an
    empty route.
    """

    hops: tuple[Hop, ...] = ()
    legs: tuple[int, ...] = ()
