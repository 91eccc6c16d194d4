"""From a plan to the policy objects of its engines: one factory for simulator and runtime.

The life of a request in a fleet of whole engines: ``new_sequence`` makes it; ``enter`` says what
an engine has to do for it; the router of ``engine_routers`` picks among the ``EngineView``s that
fit it. An engine of role ``prefill`` keeps its blocks when the prompt is complete (``hold``) until
a decode engine ``has_room``, has reserved its own, and the transfer has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from math import inf
from typing import Protocol

from penstock.errors import InputError, SpecError
from penstock.plan.plan import Engine, Leg, Plan, Role, Routing
from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager, blocks_for
from penstock.policy.distserve_rules import DistServeRules
from penstock.policy.engine_routing import (
    Admission,
    EngineLoad,
    EngineRouter,
    admit_all,
    make_router,
)
from penstock.policy.handoff import HandoffDecode
from penstock.policy.schedulers import make_blocks, make_scheduler
from penstock.policy.schedulers.base import BatchScheduler, Scheduler
from penstock.policy.schedulers.sequence import Sequence
from penstock.spec.workload import Request, SLOClass

DISTSERVE = "distserve"
"""Name of the scheduler that follows DistServe's simulator; it counts no KV memory, so that only
a simulator may use it."""


def engine_scheduler(engine: Engine, *, num_stages: int | None = None) -> Scheduler:
    """The scheduler of an engine of a plan over its KV blocks, by its role.

    ``num_stages`` (default: the engine's stages) is how many batches may be in flight. Raises
    ``SpecError``, with the engine's name, for settings that cannot work.
    """
    if engine.scheduler is None:
        raise SpecError("needs a scheduler", key=f"engines.{engine.name}", fix="add scheduler: ...")
    stages = len(engine.stages) if num_stages is None else num_stages
    try:
        return role_scheduler(engine.scheduler, engine.role, engine.num_blocks, stages)
    except SpecError as error:
        key = f"engines.{engine.name}.{error.key or 'scheduler'}"
        raise SpecError(error.problem, key=key, value=error.value, fix=error.fix) from None
    except InputError as error:
        raise SpecError(str(error), key=f"engines.{engine.name}") from None


def role_scheduler(
    settings: SchedulerSettings, role: Role, num_blocks: int, num_stages: int
) -> Scheduler:
    """The scheduler of an engine in its role. Raises ``SpecError`` for an unknown name."""
    if settings.name == DISTSERVE:
        return DistServeRules(settings, num_stages)
    if role == "decode":
        blocks = BlockManager(num_blocks, settings.block_size, watermark=settings.watermark or 0.0)
        return HandoffDecode(settings, blocks, num_stages)
    return make_scheduler(settings, make_blocks(settings, num_blocks), num_stages)


@dataclass(frozen=True, slots=True)
class EngineRouters:
    """``first`` picks among engines of role ``prefill`` or ``both``, ``decode`` the receivers."""

    first: EngineRouter
    decode: EngineRouter


def engine_routers(routing: Routing, seed: int = 0) -> EngineRouters:
    """The two routers that a plan names."""
    return EngineRouters(
        make_router(routing.engine_router, seed), make_router(routing.decode_router, seed)
    )


def engine_weights(plan: Plan) -> tuple[float, ...]:
    """Planned flow into each engine, in the order of the plan; 1 each where no flow is planned."""
    return flow_weights([engine.name for engine in plan.engines], plan.legs)


def flow_weights(names: Iterable[str], legs: Iterable[Leg]) -> tuple[float, ...]:
    """Planned flow into each of ``names``; 1 each where there is none at all."""
    into = dict.fromkeys(names, 0.0)
    for leg in legs:
        if leg.dst in into:
            into[leg.dst] += leg.flow_tokens_per_s
    return tuple(into.values()) if any(into.values()) else (1.0,) * len(into)


class DropAbove:
    """Drops a request while every engine that takes prompts uses more KV memory than ``mark``."""

    def __init__(self, mark: float) -> None:
        self._mark = mark

    def __call__(self, seq: Sequence, engines: SequenceOf[EngineLoad]) -> bool:
        return any(engine.kv_use <= self._mark for engine in engines)


def plan_admission(plan: Plan) -> Admission:
    """``drop``: none enters above the KV high-water mark; else requests wait at their engine."""
    if plan.admission == "drop":
        return DropAbove(plan.routing.kv_high_water_mark)
    return admit_all


class EngineView:
    """What routers see of an engine with a scheduler; ``index`` is its place in the fleet."""

    def __init__(self, index: int, scheduler: BatchScheduler, weight: float = 1.0) -> None:
        self.index = index
        self.weight = weight
        self.scheduler = scheduler

    @property
    def outstanding(self) -> int:
        return self.scheduler.outstanding

    @property
    def num_waiting(self) -> int:
        return self.scheduler.num_waiting

    @property
    def kv_use(self) -> float:
        blocks = self.scheduler.blocks
        return blocks.used / blocks.num_blocks

    def cached_tokens(self, seq: Sequence) -> int:
        blocks = self.scheduler.blocks
        return blocks.cached_pieces(seq.hashes) * blocks.piece_tokens


# -- sequences --------------------------------------------------------------------------------


def new_sequence(
    row: int, request: Request, classes: Mapping[str, SLOClass], extra_steps: int = 0
) -> Sequence:
    """A request with the priority and the deadline of its class.

    The deadline is that of the first token, or of the last where the class limits only that one.
    """
    seq = Sequence(
        row,
        request.arrival_s,
        request.prompt_tokens,
        request.output_tokens + extra_steps,
        hashes=request.prefix_hashes,
    )
    if classes:
        seq.client = request.class_name
        entry = classes.get(request.class_name)
        if entry is not None:
            limit = entry.slo.ttft_s if entry.slo.ttft_s is not None else entry.slo.e2e_s
            seq.priority = entry.priority
            seq.deadline_s = inf if limit is None else request.arrival_s + limit
    return seq


def enter(seq: Sequence, role: Role, total_tokens: int) -> None:
    """Make ``seq`` what an engine of ``role`` does of it: its prompt only, or all of it.

    ``total_tokens`` counts prompt and output of the request. The step that completes the prompt
    yields the first token, so an engine of role ``prefill`` is done with one output token.
    """
    seq.total_tokens = seq.prompt_tokens + 1 if role == "prefill" else total_tokens


class Fitting(Protocol):
    """A scheduler or an engine: whether it could ever serve a sequence."""

    def fits(self, seq: Sequence) -> bool: ...


def servable(seq: Sequence, total_tokens: int, engines: Iterable[tuple[Role, Fitting]]) -> bool:
    """Whether empty engines could serve ``seq``: one alone, or its two phases one each."""
    trial = Sequence(seq.row, seq.arrival_s, seq.prompt_tokens, 1)
    able: dict[str, bool] = {}
    for role, scheduler in engines:
        if not able.get(role):
            enter(trial, role, total_tokens)
            able[role] = scheduler.fits(trial)
    return able.get("both", False) or (able.get("prefill", False) and able.get("decode", True))


# -- from prompt to decodes -------------------------------------------------------------------


def hold(scheduler: Scheduler, seq: Sequence) -> int:
    """Keep the blocks of a completed prompt, which its scheduler has just given back.

    Returns how many; ``scheduler.blocks.give`` them when the transfer has ended.
    """
    if isinstance(scheduler, DistServeRules):
        return 0
    blocks = scheduler.blocks
    # Shared pieces of the prompt stay with whoever shares them.
    held = min(blocks_for(seq.computed - 1, blocks.block_size), blocks.free)
    blocks.take(held)
    return held


def has_room(scheduler: Scheduler, seq: Sequence, unbooked_blocks: int = 0) -> bool:
    """Whether a decode engine can take the KV entries of ``seq`` now.

    ``unbooked_blocks`` are in use by steps under way that ``commit`` will book.
    """
    if not isinstance(scheduler, HandoffDecode):
        return True
    return scheduler.fits(seq) and scheduler.can_reserve(seq, unbooked_blocks)


def reserve(scheduler: Scheduler, seq: Sequence) -> bool:
    """Take the blocks of a prompt that is coming; False where the rules count no memory."""
    if not isinstance(scheduler, HandoffDecode):
        return False
    scheduler.reserve(seq)
    return True


def unreserve(scheduler: Scheduler, seq: Sequence) -> None:
    """Give back what ``reserve`` took: the prompt will not come."""
    if isinstance(scheduler, HandoffDecode):
        scheduler.cancel(seq)
