"""What the simulator of roles runs: engines, how they hand over, and who is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.errors import InputError
from penstock.plan.settings import HandoffSettings
from penstock.sim.engines.fleet import EngineSpec, Role


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
