"""Plan, simulate and serve large language models on the GPUs you really have."""

__version__ = "0.1.0"
