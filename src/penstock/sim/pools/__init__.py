"""Several models on shared nodes in virtual time: ``simulate_pool``."""

from penstock.sim.pools.options import PoolOptions, Replan
from penstock.sim.pools.simulate import simulate_pool

__all__ = ["PoolOptions", "Replan", "simulate_pool"]
