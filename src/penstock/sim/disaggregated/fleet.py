"""What the simulator of roles runs: engines, how they hand over, and who is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.errors import InputError
from penstock.plan.settings import HandoffSettings, SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.distserve_rules import DistServeRules
from penstock.policy.handoff import HandoffDecode
from penstock.policy.schedulers import make_blocks, make_scheduler
from penstock.policy.schedulers.base import Scheduler
from penstock.sim.engines.fleet import EngineSpec, Role

DISTSERVE = "distserve"
"""Name of the scheduler that follows DistServe's simulator; it counts no KV memory."""


@dataclass(frozen=True, slots=True)
class RoleFleet:
    """Engines with roles. Prompts go to engines of role ``prefill`` or ``both``.

    ``prefill_router`` and ``decode_router`` are names of ``policy.engine_routing.ROUTERS``.
    ``extra_decode_steps`` are run per request beyond those its tokens need (1 in DistServe's
    simulator, which does not count the token that the prompt yields).
    """

    engines: tuple[EngineSpec, ...]
    handoff: HandoffSettings = field(default_factory=HandoffSettings)
    prefill_router: str = "least-outstanding"
    decode_router: str = "least-outstanding"
    extra_decode_steps: int = 0

    def __post_init__(self) -> None:
        names = [engine.name for engine in self.engines]
        if len(set(names)) < len(names):
            raise InputError(f"engine names must differ (got {', '.join(names)})")
        roles = {engine.role for engine in self.engines}
        check_roles(roles)

    @property
    def num_accelerators(self) -> int:
        return sum(engine.shape.num_accelerators for engine in self.engines)


def check_roles(roles: Sequence[Role] | set[Role]) -> None:
    """Raise ``InputError`` for roles that leave a phase of the requests to nobody."""
    if not roles:
        raise InputError("a fleet needs at least one engine")
    if "prefill" in roles and "decode" not in roles:
        raise InputError('nobody decodes: give an engine the role "decode"')
    if "decode" in roles and "prefill" not in roles:
        raise InputError('nobody computes prompts for the engines that decode: add role "prefill"')


def role_scheduler(
    settings: SchedulerSettings, role: Role, num_blocks: int, num_stages: int
) -> Scheduler:
    """The scheduler of an engine in its role. Raises ``SpecError`` for an unknown name."""
    if settings.name == DISTSERVE:
        return DistServeRules(settings, num_stages)
    if role == "decode":
        blocks = BlockManager(num_blocks, settings.block_size, watermark=settings.watermark or 0.0)
        return HandoffDecode(settings, blocks, num_stages)
    blocks = make_blocks(settings, num_blocks)
    return make_scheduler(settings, blocks, num_stages)
