"""How the published end-to-end runs were launched, where the result tables do not say it.

Settings as the public launch scripts of InferenceX state them (SemiAnalysisAI/InferenceX,
``benchmarks/``, 2025-07 to 2026-04). They are inputs of a simulation, not figures to fit. The
scripts changed over time and rows do not name theirs: that vLLM kept an fp8 cache on Blackwell and
the model's own on Hopper is what the measured queues say.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.spec.model import Dtype


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one deployment.

    kv_dtype                format of the KV cache; None = the model's own
    budget_tokens           prompt tokens of one step
    gpu_memory_utilization  share of memory for weights, activations and KV
    held_steps              decode steps a request waits, on average, before the scheduler takes it
    """

    kv_dtype: Dtype | None = None
    budget_tokens: int = 8192
    gpu_memory_utilization: float = 0.9
    held_steps: float = 0.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What a row says of its deployment."""

    family: str
    system: str
    engine: str
    weights: str
    tensor_parallel_size: int
    concurrency: int
    input_tokens: int
    output_tokens: int


def recipe(launch: Launch) -> Recipe:
    """Settings by engine; groups that other labs measured keep the engine's defaults."""
    blackwell = launch.system.startswith(("b2", "b3", "gb"))
    kv: Dtype | None = "fp8" if blackwell else None
    if launch.family.startswith("qwen3"):
        return Recipe()
    if launch.engine == "trtllm":
        # batch_wait_timeout_iters: small prompts wait for company.
        short = launch.input_tokens == launch.output_tokens == 1024
        held = 20.0 if short and launch.tensor_parallel_size < 8 else 0.0
        return Recipe(kv, 16384, held_steps=held)
    if launch.engine == "sglang":
        # scheduler-recv-interval: new requests are looked for every 10 or 30 steps.
        polls = launch.family.startswith("deepseek") and blackwell
        held = (5.0 if launch.concurrency < 16 else 15.0) if polls else 0.0
        tight = polls and launch.weights == "fp8" and launch.tensor_parallel_size == 4
        budget = 8192 if tight else 16384 if launch.weights == "fp4" else 32768
        return Recipe(kv, budget, 0.95 if tight else 0.9, held)
    roomy = launch.family.startswith("minimax") and launch.weights == "fp8" and blackwell
    return Recipe(kv, gpu_memory_utilization=0.95 if roomy else 0.9)
