"""Engines with batch schedulers in virtual time: ``simulate_engines``."""

from penstock.sim.engines.fleet import EngineFleet, EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.simulate import simulate_engines

__all__ = ["EngineFleet", "EngineOptions", "EngineSpec", "simulate_engines"]
