"""What a cost model answers: seconds of a layer, bytes of memory, and the source of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec

Source = Literal["measured", "fitted", "datasheet", "assumed", "extrapolated"]

LayerTimer = Callable[[int, int, int], float]
"""(prefill tokens, decode sequences, decode context tokens) of a batch -> seconds of one layer."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a family of numbers comes from. ``error`` is the fit error, as text, when fitted."""

    kind: Source
    source: str
    error: str = ""
    domain: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch a node runs at once. Prefill and decode are limited apart."""

    max_prefill_seqs: int
    max_prefill_tokens: int
    max_decode_seqs: int
    max_decode_context_tokens: int


class CostModel(Protocol):
    """Seconds and bytes for one model on any node of the catalogue."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def provenance(self) -> tuple[Provenance, ...]: ...

    def source_of(self, node: Node) -> Provenance:
        """Where the figures of ``node`` come from."""
        ...

    def layer_timer(self, node: Node) -> LayerTimer:
        """Return the timing function of one layer on ``node`` (hot path: called once per batch).

        Raises ``SpecError`` when the model has no figures for the node.
        """
        ...

    def planning_timer(self, node: Node) -> LayerTimer:
        """Return ``layer_timer`` without the exceptions a source applies only at run time."""
        ...

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes a node loads and holds per layer."""
        ...

    def max_layers(self, node: Node) -> int:
        """Most layers a plan should give ``node`` (weights take about half of its memory)."""
        ...

    def hard_max_layers(self, node: Node) -> int:
        """Most layers the memory of ``node`` holds beside the KV cache of one long sequence."""
        ...

    def kv_capacity_layer_tokens(self, node: Node, layers: int) -> int:
        """KV memory left beside ``layers`` layers, counted in (token, layer) entries."""
        ...

    def batch_limits(self, node: Node, layers: int) -> BatchLimits: ...

    def to_dict(self) -> dict[str, object]:
        """Return what ``penstock.cost.load.cost_model`` needs to rebuild this model."""
        ...
