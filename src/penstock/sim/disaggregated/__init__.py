"""Engines that share the phases of a request, in virtual time: ``simulate_disaggregated``."""

from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.simulate import Watch, simulate_disaggregated

__all__ = ["RoleFleet", "Watch", "simulate_disaggregated"]
