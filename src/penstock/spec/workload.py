"""What is asked: lengths, arrivals, classes and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrives. ``class_name`` and ``model`` are "" when there is only one."""

    id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str = ""
    model: str = ""
    prefix_hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SLO:
    """Upper limits in seconds; None = no limit. A request is good when it meets all of them."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class SLOClass:
    name: str
    slo: SLO
    share: float = 1.0
    priority: int = 0


class Lengths(Protocol):
    """Draws (prompt tokens, output tokens) pairs."""

    def sample(self, rng: Random) -> tuple[int, int]: ...

    @property
    def mean_prompt_tokens(self) -> float: ...

    @property
    def mean_output_tokens(self) -> float: ...


class OpenLoopArrivals(Protocol):
    """Arrival times that do not depend on the system: strictly from ``rng``, ascending."""

    def times(self, rng: Random, duration_s: float) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A constant number of requests in flight: each completion launches the next."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Saturating:
    """As many requests as KV memory takes: feed while expected use is at or under the mark.

    Helix offline mode (artifact spec section 5): ``initial`` requests 0.1 s apart, then one
    more at each prompt completion and each completion while use <= ``feed_mark``.
    """

    initial: int = 20
    feed_mark: float = 0.8
    interval_s: float = 0.1


@dataclass(frozen=True)
class Workload:
    """Lengths x arrivals x classes, over ``duration_s`` seconds, measured after ``warmup_s``.

    ``trace`` (explicit requests, ascending arrivals) replaces lengths and arrivals.
    """

    name: str
    duration_s: float
    warmup_s: float = 0.0
    lengths: Lengths | None = None
    arrivals: OpenLoopArrivals | ClosedLoop | Saturating | None = None
    trace: tuple[Request, ...] = ()
    classes: tuple[SLOClass, ...] = ()
    seed: int = 0
    source: str = ""
