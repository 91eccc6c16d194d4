"""Published experiments, run again: published figure, ours, tolerance, verdict."""
