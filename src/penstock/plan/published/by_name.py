"""The published planners of pools by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from penstock.plan.intent.balancing import STRATEGIES
from penstock.plan.pool.policies import STATIC_POLICIES
from penstock.plan.pool_question import PoolPlanner
from penstock.plan.published.accelerate import AcceleratePlanner
from penstock.plan.published.alpaserve import AlpaServePlanner
from penstock.plan.published.maveriq import MaverIQPlanner

PUBLISHED: Mapping[str, Callable[[], PoolPlanner]] = {
    "alpaserve": AlpaServePlanner,
    **{f"alpaserve-{name}": partial(AlpaServePlanner, name) for name in STATIC_POLICIES},
    "maveriq": MaverIQPlanner,
    **{f"maveriq-{name}": partial(MaverIQPlanner, name) for name in STRATEGIES},
    "accelerate": AcceleratePlanner,
}


def published_planner(name: str) -> PoolPlanner | None:
    """The planner called ``name``, or None."""
    found = PUBLISHED.get(name)
    return None if found is None else found()
