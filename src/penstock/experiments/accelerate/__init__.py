"""Hugging Face Accelerate with a balanced device map, as MaverIQ's artifact ran it."""
