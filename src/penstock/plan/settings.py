"""What a plan sets about its engines: batch scheduler, KV hand-over, speculation.

Names are those of vLLM where vLLM has them. The rules themselves live in ``policy/``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Literal

from penstock.errors import SpecError

SpeculationMethod = Literal["chain", "adaserve", "penstock"]


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Settings of one engine's scheduler; None = the scheduler's own default.

    max_num_seqs                  sequences an engine holds at once
    max_num_batched_tokens        tokens of one step (``sarathi``: the chunk size)
    watermark                     share of the blocks an admission leaves free
    long_prefill_token_threshold  most prompt tokens of one sequence in a step; 0 = no limit
    max_model_len                 what ``orca`` and ``static`` reserve per sequence
    prefix_piece_tokens           tokens of one prompt piece that ``Request.prefix_hashes`` names
    mlfq_levels, mlfq_quantum     queues of ``mlfq`` and output tokens of the first (each next
                                  queue has twice as many)
    """

    name: str = "vllm"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = False
    watermark: float | None = None
    long_prefill_token_threshold: int = 0
    max_model_len: int = 4096
    prefix_piece_tokens: int = 512
    mlfq_levels: int = 6
    mlfq_quantum: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "long_prefill_token_threshold" else 1
            if "int" in str(field.type) and value is not None and value < least:
                raise SpecError(
                    f"must be at least {least}", key=f"scheduler.{field.name}", value=value
                )
        if self.watermark is not None and not 0 <= self.watermark < 1:
            raise SpecError(
                "must be a share of the blocks, 0 <= watermark < 1",
                key="scheduler.watermark",
                value=self.watermark,
            )


HandoffMode = Literal["push", "pull"]


@dataclass(frozen=True, slots=True)
class HandoffSettings:
    """How KV memory moves from a prefill to a decode engine.

    ``bandwidth_bytes_per_s`` (infinity = free) and ``latency_s`` are of the link of one engine;
    an engine sends one request at a time and receives one at a time. ``push``: the prompt's
    engine sends as soon as it has finished and the receiver has room; ``pull``: the receiver
    fetches between two of its steps. ``layer_by_layer`` (push only) sends each layer while the
    next ones are computed, so that only what the prompt's step could not hide is waited for.
    """

    bandwidth_bytes_per_s: float = inf
    latency_s: float = 0.0
    mode: HandoffMode = "push"
    layer_by_layer: bool = False

    def __post_init__(self) -> None:
        if not self.bandwidth_bytes_per_s > 0:
            raise SpecError(
                "must be above 0", key="handoff.bandwidth", value=self.bandwidth_bytes_per_s
            )
        if not 0 <= self.latency_s < inf:
            raise SpecError("must be 0 or more", key="handoff.latency", value=self.latency_s)
        if self.layer_by_layer and self.mode == "pull":
            raise SpecError(
                "layers can only be sent ahead by the engine that computes them",
                key="handoff.mode",
                value=self.mode,
                fix='use mode: "push" or layer_by_layer: false',
            )

    def transfer_s(self, kv_bytes: float, layers: int, prefill_s: float = 0.0) -> float:
        """Seconds from the end of the prompt until the last byte has arrived, links idle.

        ``prefill_s`` is the step that computed the prompt; layer by layer, all but the last of
        ``layers`` can hide in the share of the step that follows them.
        """
        if self.bandwidth_bytes_per_s == inf:
            return self.latency_s
        whole_s = kv_bytes / self.bandwidth_bytes_per_s
        if self.layer_by_layer and layers > 0:
            whole_s = max(whole_s / layers, whole_s - prefill_s * (layers - 1) / layers)
        return self.latency_s + whole_s


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """A draft model beside the target, and how much it drafts.

    method                  ``chain`` (vLLM), ``adaserve`` (EuroSys'26) or ``penstock`` (priced)
    draft_model             preset or folder of a checkpoint; same tokenizer as the target
    num_speculative_tokens  length of a chain
    max_depth, max_width    bounds of a tree
    verify_budget           tokens a verification step may hold, roots included; None = what the
                            cost model says is about as fast as a decode step
    max_num_seqs            requests an engine serves at once
    max_model_len           prompt and output of a request together
    """

    method: SpeculationMethod = "penstock"
    draft_model: str = ""
    num_speculative_tokens: int = 4
    max_depth: int = 8
    max_width: int = 3
    verify_budget: int | None = None
    max_num_seqs: int = 64
    max_model_len: int = 4096

    def __post_init__(self) -> None:
        if self.method not in ("chain", "adaserve", "penstock"):
            raise SpecError(
                "unknown method",
                key="speculation.method",
                value=self.method,
                fix="use chain, adaserve or penstock",
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if "int" in str(field.type) and value is not None and value < 1:
                raise SpecError("must be at least 1", key=f"speculation.{field.name}", value=value)
