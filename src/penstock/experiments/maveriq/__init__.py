"""MaverIQ: estimator, configuration choice, traces and serving runs."""
