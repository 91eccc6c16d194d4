"""Bodies of the calls that change which models are served."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from penstock.spec.intent import Intent
from penstock.spec.strict import Bytes, Count, Duration, Name, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86400)]


class DeployBody(Strict):
    """One model and what is wanted of it.

    ``precisions`` are those it may be loaded in (default: its own); ``accuracy`` is what is left
    in each, as a share of the unquantised model's. Latency is that of ``batch`` requests of
    ``prompt_tokens`` and ``output_tokens`` together. ``fingerprint`` is a file on the server.
    Sizes and ``replicas`` that are given are kept to.
    """

    model: Name
    checkpoint: str = Field(min_length=1)
    intent: Intent = "min_latency"
    slo_latency: Duration | None = None
    accuracy_floor: Share = 0.0
    precisions: tuple[str, ...] | None = None
    accuracy: dict[str, Share] = Field(default_factory=dict)
    prompt_tokens: Count = 512
    output_tokens: Count = 128
    batch: Count = 1
    kv_memory: Bytes | None = None
    replicas: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    tensor_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    priority: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = 0
    fingerprint: str | None = None
    drain_s: Seconds | None = None


class RemoveBody(Strict):
    """``drain_s``: how long its requests may take to finish. ``force`` ends what is left."""

    name: str
    drain_s: Seconds | None = None
    force: bool = False


class DrainBody(Strict):
    """How a change of the whole pool treats requests that run."""

    drain_s: Seconds | None = None
    force: bool = False
