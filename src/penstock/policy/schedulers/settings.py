"""What can be set about a batch scheduler; names as in vLLM where vLLM has them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from penstock.errors import SpecError


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
