"""The one result schema, written by ``simulate``, ``serve`` and ``bench`` alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.measure.tokens import TokenTimes

__all__ = [
    "STATUS",
    "LinkTotals",
    "NodeSeries",
    "NodeTotals",
    "RequestTable",
    "Run",
    "RunEvent",
    "Status",
    "TokenTimes",
]

Status = Literal["finished", "running", "queued", "rejected", "dropped", "failed"]
STATUS: tuple[Status, ...] = ("finished", "running", "queued", "rejected", "dropped", "failed")


@dataclass(frozen=True)
class RequestTable:
    """One row per request, in arrival order (``[r]`` each).

    Times are seconds on the run's clock; NaN = did not happen. ``status`` indexes ``STATUS``,
    ``model_index`` the run's ``model_names``; None where there is one model.
    """

    id: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    admitted_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    generated_tokens: NDArray[np.int64]
    status: NDArray[np.int8]
    preemptions: NDArray[np.int32]
    class_index: NDArray[np.int16]
    route_index: NDArray[np.int32]
    model_index: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class NodeSeries:
    """What each node did over time; ``[b, n]`` arrays over b equal buckets of ``bucket_s``.

    ``busy`` and ``kv_use`` are fractions, ``queued`` is the mean number of waiting iterations.
    """

    names: tuple[str, ...]
    bucket_s: float
    start_s: float
    busy: NDArray[np.float64]
    kv_use: NDArray[np.float64]
    queued: NDArray[np.float64]


@dataclass(frozen=True)
class NodeTotals:
    """Sums per node over the whole run (``[n]`` each)."""

    names: tuple[str, ...]
    busy_s: NDArray[np.float64]
    batches: NDArray[np.int64]
    prefill_tokens: NDArray[np.int64]
    decode_tokens: NDArray[np.int64]
    peak_kv_fraction: NDArray[np.float64]
    prompt_residence_s: NDArray[np.float64]
    prompt_visits: NDArray[np.int64]


@dataclass(frozen=True)
class LinkTotals:
    src: tuple[str, ...]
    dst: tuple[str, ...]
    busy_s: NDArray[np.float64]
    bytes: NDArray[np.float64]


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to the system: a failure, a recovery, a re-plan."""

    time_s: float
    kind: str
    detail: str


@dataclass(frozen=True)
class Run:
    """A run and everything needed to say where it came from.

    ``header`` holds version, seed, kind (simulated | measured), granularity, and the documents
    of plan, workload and cost model; it has no wall-clock time, so equal inputs give equal bytes.
    ``window_s`` is the measured window. ``first_iteration_is_token``: the prompt iteration yields
    the first output token (the usual meaning); False in Helix's published semantics, where a
    request of o output tokens runs o decode iterations after its prompt. ``model_names`` is ()
    where there is one model.
    """

    name: str
    header: Mapping[str, object]
    window_s: tuple[float, float]
    requests: RequestTable
    tokens: TokenTimes
    nodes: NodeTotals | None = None
    node_series: NodeSeries | None = None
    links: LinkTotals | None = None
    events: tuple[RunEvent, ...] = ()
    routes: tuple[tuple[str, ...], ...] = ()
    class_names: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    first_iteration_is_token: bool = True
    counters: Mapping[str, int] = field(default_factory=dict)
