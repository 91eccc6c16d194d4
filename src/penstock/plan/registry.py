"""Every planner by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from penstock.errors import SpecError
from penstock.plan.planner import Planner
from penstock.spec.names import did_you_mean

Factory = Callable[[], Planner]


def planners() -> Mapping[str, Factory]:
    """Name -> factory; a planner's module is loaded when its factory is called."""
    return {
        "penstock": _penstock,
        "helix-milp": _helix_milp,
        "swarm": _swarm,
        "petals": _petals,
        "homogeneous": _homogeneous,
        "separate": lambda: _separate(mix_left_over=False),
        "separate+": lambda: _separate(mix_left_over=True),
    }


def planner(name: str, *, others: Sequence[str] = ()) -> Planner:
    """Return the planner called ``name``; ``SpecError`` with the nearest name if there is none.

    ``helix-milp-gurobi`` is ``helix-milp`` on Gurobi, which has to be installed. ``others`` are
    names that the caller knows besides; the error lists them too.
    """
    known = {**planners(), "helix-milp-gurobi": _helix_milp_on_gurobi}
    if name not in known:
        raise SpecError(
            "unknown planner",
            key="--planner",
            value=name,
            fix=did_you_mean(name, [*known, *others]),
        )
    return known[name]()


# Imports stay inside: the search needs Numba and the MILP needs HiGHS, and each takes a while.


def _penstock() -> Planner:
    from penstock.plan.penstock_planner import PenstockPlanner  # noqa: PLC0415

    return PenstockPlanner()


def _helix_milp() -> Planner:
    from penstock.plan.helix_milp import HelixMilpPlanner  # noqa: PLC0415

    return HelixMilpPlanner()


def _helix_milp_on_gurobi() -> Planner:
    from penstock.plan.helix_milp import HelixMilpPlanner  # noqa: PLC0415
    from penstock.plan.solver import GurobiSolver  # noqa: PLC0415

    return HelixMilpPlanner(solver=GurobiSolver())


def _swarm() -> Planner:
    from penstock.plan.swarm import SwarmPlanner  # noqa: PLC0415

    return SwarmPlanner()


def _petals() -> Planner:
    from penstock.plan.petals import PetalsPlanner  # noqa: PLC0415

    return PetalsPlanner()


def _homogeneous() -> Planner:
    from penstock.plan.homogeneous import HomogeneousPlanner  # noqa: PLC0415

    return HomogeneousPlanner()


def _separate(*, mix_left_over: bool) -> Planner:
    from penstock.plan.separate import SeparatePlanner  # noqa: PLC0415

    return SeparatePlanner(mix_left_over=mix_left_over)
