"""Batch schedulers: which sequences an engine runs in its next step."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.errors import SpecError
from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import BatchScheduler, Scheduler
from penstock.policy.schedulers.mlfq import Mlfq
from penstock.policy.schedulers.orca import Orca
from penstock.policy.schedulers.priority import Priority
from penstock.policy.schedulers.sarathi import Sarathi
from penstock.policy.schedulers.sequence import Batch, Cohort, Sequence
from penstock.policy.schedulers.static import Static
from penstock.policy.schedulers.vidur import VidurSarathi, VidurVllm
from penstock.policy.schedulers.vllm import VllmV1
from penstock.policy.schedulers.vllm_v0 import PrefillFirst
from penstock.policy.schedulers.vtc import Vtc
from penstock.spec.names import did_you_mean, normalise

__all__ = [
    "SCHEDULERS",
    "Batch",
    "BatchScheduler",
    "BlockManager",
    "Cohort",
    "Scheduler",
    "SchedulerSettings",
    "Sequence",
    "make_scheduler",
    "scheduler_class",
]

SCHEDULERS: Mapping[str, type[Scheduler]] = {
    "vllm": VllmV1,
    "vllm-v0": PrefillFirst,
    "sarathi": Sarathi,
    "orca": Orca,
    "static": Static,
    "priority": Priority,
    "mlfq": Mlfq,
    "vtc": Vtc,
    "vidur-sarathi": VidurSarathi,
    "vidur-vllm": VidurVllm,
}


def scheduler_class(name: str) -> type[Scheduler]:
    """The scheduler called ``name``. Raises ``SpecError`` with the nearest known name."""
    folded = {normalise(known): found for known, found in SCHEDULERS.items()}
    found = folded.get(normalise(name))
    if found is None:
        raise SpecError(
            "unknown scheduler",
            key="scheduler.name",
            value=name,
            fix=did_you_mean(name, SCHEDULERS),
        )
    return found


def make_blocks(settings: SchedulerSettings, num_blocks: int) -> BlockManager:
    """The KV blocks of an engine, with the watermark its scheduler wants."""
    watermark = settings.watermark
    if watermark is None:
        watermark = scheduler_class(settings.name).WATERMARK
    piece = settings.prefix_piece_tokens if settings.enable_prefix_caching else settings.block_size
    return BlockManager(num_blocks, settings.block_size, watermark=watermark, piece_tokens=piece)


def make_scheduler(
    settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
) -> Scheduler:
    """Build the scheduler that ``settings`` name over ``blocks``.

    ``num_stages`` is the pipeline depth: up to so many batches are in flight. Raises
    ``SpecError`` for an unknown name, ``InputError`` for settings that contradict each other.
    """
    return scheduler_class(settings.name)(settings, blocks, num_stages)
