"""What is asked: lengths, arrivals, classes and their limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import merge
from math import inf, nan
from operator import attrgetter
from random import Random
from typing import Protocol

from penstock.errors import InputError, SpecError


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
    """Upper limits in seconds; None = no limit. A request is good when it meets all of them.

    ``tpot_multiple`` states the limit on TPOT as a multiple of the model's time per token at
    near-zero load. Who knows the cost model turns it into ``tpot_s`` before the run
    (``policy/baseline.py``).
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    tpot_multiple: float | None = None

    def __post_init__(self) -> None:
        if self.tpot_s is not None and self.tpot_multiple is not None:
            raise SpecError(
                "gives a time and a multiple of the baseline", key="tpot", fix="give one of them"
            )


def parse_multiple(text: str) -> float | None:
    """The factor of "1.2x"; None where ``text`` has another form.

    Raises ``SpecError`` unless the factor is finite and above 0.
    """
    if not text.endswith("x"):
        return None
    try:
        factor = float(text[:-1])
    except ValueError:
        factor = nan
    if not 0 < factor < inf:
        raise SpecError(
            "not a positive multiple of the baseline", key="tpot", value=text, fix="write 1.2x"
        )
    return factor


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
    """Arrival times that do not depend on the system: strictly from ``rng``, ascending.

    The stream is lazy: lengths may be drawn from the same ``rng`` between two times.
    """

    def times(self, rng: Random, duration_s: float) -> Iterator[float]: ...


class Trace(Protocol):
    """Explicit requests with ascending arrivals; can be walked again and again."""

    def __iter__(self) -> Iterator[Request]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A constant number of requests in flight: each completion launches the next.

    The first ones start ``interval_s`` apart and each launch follows its cause by that delay.
    """

    concurrency: int
    interval_s: float = 0.1


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
class ModelStream:
    """The requests of one model of several: own arrivals, lengths and classes.

    Names of classes are those of the whole workload, so that they differ between models.
    """

    model: str
    lengths: Lengths
    arrivals: OpenLoopArrivals
    classes: tuple[SLOClass, ...] = ()

    def requests(self, seed: int, duration_s: float) -> Iterator[Request]:
        """Arrivals and lengths in turn, from a generator that no other stream draws from."""
        rng = Random(f"{seed}/{self.model}")
        pick = class_picker(self.classes, f"{seed}/{self.model}")
        for number, time_s in enumerate(self.arrivals.times(rng, duration_s)):
            prompt, output = self.lengths.sample(rng)
            yield Request(number, time_s, prompt, output, pick(), self.model)


@dataclass(frozen=True)
class Workload:
    """Lengths x arrivals x classes, over ``duration_s`` seconds, measured after ``warmup_s``.

    ``trace`` (explicit requests, ascending arrivals) replaces lengths and arrivals; it is a tuple
    or a ``traces.TraceFile``, which streams. ``streams`` (several models) replace them too; then
    ``classes`` are those of all streams.
    """

    name: str
    duration_s: float
    warmup_s: float = 0.0
    lengths: Lengths | None = None
    arrivals: OpenLoopArrivals | ClosedLoop | Saturating | None = None
    trace: Trace = ()
    classes: tuple[SLOClass, ...] = ()
    seed: int = 0
    source: str = ""
    streams: tuple[ModelStream, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that requests name; () where they name none. A list of requests is walked."""
        if self.streams:
            return tuple(stream.model for stream in self.streams)
        named = getattr(self.trace, "models", None)
        if named is None:
            named = dict.fromkeys(request.model for request in self.trace)
        return tuple(sorted(model for model in named if model))

    def requests(self, seed: int | None = None) -> Iterator[Request]:
        """Stream the requests of a trace or of open-loop arrivals, in order of arrival.

        One generator gives arrivals and lengths in turn (the published order of draws), another
        the classes. Raises ``InputError`` where requests depend on completions (closed loop,
        saturating) or something is missing.
        """
        if len(self.trace):
            yield from self.trace
            return
        if self.streams:
            base = self.seed if seed is None else seed
            each = [stream.requests(base, self.duration_s) for stream in self.streams]
            together = merge(*each, key=attrgetter("arrival_s"))
            yield from (replace(request, id=number) for number, request in enumerate(together))
            return
        if self.arrivals is None or self.lengths is None:
            missing = "lengths" if self.lengths is None else "arrivals"
            raise InputError(f"workload {self.name} has no {missing}; give it some, or a trace")
        if isinstance(self.arrivals, ClosedLoop | Saturating):
            raise InputError(
                f"the requests of workload {self.name} depend on completions; "
                "give it open-loop arrivals, such as poisson"
            )
        seed = self.seed if seed is None else seed
        rng = Random(seed)
        pick = class_picker(self.classes, seed)
        for number, time_s in enumerate(self.arrivals.times(rng, self.duration_s)):
            prompt, output = self.lengths.sample(rng)
            yield Request(number, time_s, prompt, output, pick())


def class_picker(classes: tuple[SLOClass, ...], seed: int | str) -> Callable[[], str]:
    """Return a function that draws class names by their shares, apart from all other draws."""
    if not classes:
        return lambda: ""
    rng = Random(f"{seed}/classes")
    names = [entry.name for entry in classes]
    shares = [entry.share for entry in classes]
    return lambda: rng.choices(names, shares)[0]
