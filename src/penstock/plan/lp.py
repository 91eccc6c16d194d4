"""HiGHS as the planner's own bounds and constructors use it: quiet, one thread, deterministic."""

from __future__ import annotations

from typing import Any

import highspy


def silent_solver() -> Any:
    """Return an empty HiGHS model that prints nothing and uses one thread."""
    solver: Any = highspy.Highs
    lp = solver()
    lp.setOptionValue("output_flag", False)
    lp.setOptionValue("threads", 1)
    return lp
