"""What a worker stands on: an executor that computes, and a way to send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from penstock.cost.base import LayerTimer
from penstock.policy.batching import Part
from penstock.serve.wire import Command, Decoding, Drawn, Message, Verified

Buffer = bytes | bytearray | memoryview
"""Raw bytes of tensors. Whoever hands one out does not write to it again."""


class Send(Protocol):
    """Hand ``message`` and its buffer over for ``to``; returns at once."""

    def __call__(self, to: str, message: Message, buffer: Buffer | None = None) -> None: ...


NodeTimer = Callable[[Sequence[Part], int], float]
"""(parts of a batch, tokens that reached the node since its last batch) -> seconds."""


def node_timer(layer_timer: LayerTimer) -> NodeTimer:
    """Seconds of a batch from those of one layer."""

    def seconds(parts: Sequence[Part], _arrived_tokens: int) -> float:
        return sum(
            layers * layer_timer(prefill, decodes, context)
            for layers, prefill, decodes, context in parts
        )

    return seconds


class WorkerFault(Exception):  # noqa: N818 - ends the worker
    """A message asks for what the worker cannot do: coordinator and worker disagree."""


class TransferRefused(Exception):  # noqa: N818 - an answer, not a fault
    """KV entries that came from another worker cannot be used."""


class NoRoom(TransferRefused):
    """There are no pages for them until something else is freed."""


class Job(NamedTuple):
    """``tokens`` of a sequence after ``context`` cached ones, through ``[start, end)`` layers."""

    seq: int
    context: int
    tokens: tuple[int, ...]
    start_layer: int
    end_layer: int
    draw: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One step of a worker.

    ``hidden`` holds the rows ``[tokens, hidden_size]`` of jobs that start after layer 0, in order,
    in one or more pieces; empty where nothing computes. ``null_s`` (whole engines), ``parts`` and
    ``arrived_tokens`` (nodes of paths) are what a null executor times.
    """

    jobs: Sequence[Job]
    hidden: Sequence[Buffer] = ()
    null_s: float = 0.0
    parts: Sequence[Part] = ()
    arrived_tokens: int = 0
    decoding: Decoding | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """``hidden`` ``[tokens, hidden_size]`` of all jobs in order, and the tokens drawn.

    ``busy_s`` are the seconds the step took, of which ``wait_s`` are still to pass.
    """

    hidden: Buffer | None
    drawn: tuple[Drawn, ...]
    busy_s: float
    wait_s: float = 0.0
    verified: Verified | None = None


class PageCount(NamedTuple):
    """KV pages held by sequences alone, by prompt pieces (shared or not), and by nobody."""

    used: int
    cached: int
    free: int


class Executor(Protocol):
    """The KV memory of one stage and what computes on it. Steps come one at a time."""

    @property
    def layout(self) -> str:
        """What two workers must agree on to exchange KV pages."""
        ...

    def apply(self, command: Command) -> None:
        """Carry out ``command``; ``Free`` of an unknown sequence does nothing."""
        ...

    def run(self, work: Work) -> Outcome: ...

    def pages_missing(self, jobs: Sequence[Job]) -> int:
        """How many more pages than are free ``jobs`` need (0 or less: they fit)."""
        ...

    def pages(self) -> PageCount:
        """Count the pages. Raises ``AssertionError`` where they do not add up."""
        ...

    def export_layer(self, seq: int, layer: int, tokens: int) -> Buffer:
        """The pages of ``layer`` that hold the first ``tokens`` entries of ``seq``."""
        ...

    def load_layer(self, seq: int, layer: int, tokens: int, content: Buffer) -> None:
        """Write what ``export_layer`` gave elsewhere.

        Raises ``TransferRefused``, or ``NoRoom`` where it may be tried again.
        """
        ...

    def close(self) -> None:
        """Let go of what other processes share in."""
        ...
