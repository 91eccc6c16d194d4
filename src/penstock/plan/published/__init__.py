"""AlpaServe, MaverIQ and Accelerate as planners of pools (``plan.pool_question.PoolPlanner``)."""
