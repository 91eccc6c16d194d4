"""Non-negative regression on relative errors, robust to outliers; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_ROUNDS = 15
_SWEEPS = 400
# Relative errors below this weigh alike.
_FLOOR = 0.02


def fit_relative(rows: FloatArray, values: FloatArray) -> FloatArray:
    """Coefficients of 0 or more that make ``rows @ x / values`` near 1.

    Iteratively reweighted least squares: between least squares (errors below 2 %) and least
    absolute errors (above). ``rows`` has shape (samples, terms); ``values`` are above 0.
    """
    relative = rows / values[:, None]
    weights = np.ones(len(values))
    found = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        found = non_negative(relative * weights[:, None], weights)
        error = np.abs(relative @ found - 1)
        weights = 1 / np.sqrt(np.maximum(error, _FLOOR))
    return found


def non_negative(rows: FloatArray, values: FloatArray, sweeps: int = _SWEEPS) -> FloatArray:
    """Least squares with coefficients of 0 or more, by coordinate descent on scaled columns."""
    scale = np.sqrt((rows * rows).sum(axis=0))
    scale[scale == 0] = 1.0
    scaled = rows / scale
    gram, target = scaled.T @ scaled, scaled.T @ values
    found = np.zeros(len(target))
    used = [i for i in range(len(target)) if gram[i, i] > 0]
    for _ in range(sweeps):
        for i in used:
            found[i] = max(0.0, found[i] + (target[i] - gram[i] @ found) / gram[i, i])
    result: FloatArray = found / scale
    return result
