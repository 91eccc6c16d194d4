"""The driver in virtual time: it moves time, tokens and bytes; ``penstock.policy`` decides."""

from penstock.sim.options import Granularity, SimulationOptions
from penstock.sim.simulate import simulate

__all__ = ["Granularity", "SimulationOptions", "simulate"]
