"""Settings of published runs that their result tables leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.cost.step_coefficients import bundled_step_coefficients
from penstock.cost.step_fit_engine import Deployment, light_ttft_s, steady_tpot_s, ttft_reason
from penstock.cost.step_fit_recipes import Launch, Recipe, recipe
from penstock.cost.steps import EngineShape
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

LLAMA = Launch("llama-3.1-70b", "b200_sxm", "trtllm", "fp8", 4, 16, 1024, 1024)
DEEPSEEK = Launch("deepseek-v3-arch", "b200_sxm", "sglang", "fp8", 8, 4, 1024, 1024)


@pytest.mark.parametrize(
    ("launch", "wanted"),
    [
        (LLAMA, Recipe("fp8", 16384, held_steps=20)),
        (replace(LLAMA, tensor_parallel_size=8), Recipe("fp8", 16384)),
        (replace(LLAMA, output_tokens=8192), Recipe("fp8", 16384)),
        (replace(LLAMA, engine="vllm", system="h100_sxm"), Recipe()),
        (DEEPSEEK, Recipe("fp8", 32768, held_steps=5)),
        (replace(DEEPSEEK, concurrency=64), Recipe("fp8", 32768, held_steps=15)),
        (replace(DEEPSEEK, tensor_parallel_size=4), Recipe("fp8", 8192, 0.95, 5)),
        (replace(DEEPSEEK, system="h200_sxm"), Recipe(None, 32768)),
        (replace(DEEPSEEK, family="qwen3-235b-a22b-fp8", system="h200_sxm"), Recipe()),
    ],
)
def test_settings_follow_the_launch_scripts(launch: Launch, wanted: Recipe) -> None:
    """Waiting belongs to TensorRT-LLM's short prompts and to SGLang's polling on Blackwell; the KV
    cache is fp8 on Blackwell."""
    assert recipe(launch) == wanted


def test_held_requests_wait_that_many_decode_steps() -> None:
    """A recipe that holds requests adds its steps to TTFT and leaves TPOT alone."""
    at_once = Deployment(
        group="g",
        family="llama-3.1-70b",
        engine="trtllm",
        model=load_model("llama3.1-70b"),
        shape=EngineShape(catalogue().get("B200"), 8),
        concurrency=8,
        input_tokens=1000,
        output_tokens=1000,
        ttft_s=1.0,
        tpot_s=1.0,
    )
    held = replace(at_once, recipe=Recipe(held_steps=20))
    known = bundled_step_coefficients()
    assert steady_tpot_s(held, known) == steady_tpot_s(at_once, known)
    ttft_s = [light_ttft_s(point, known) for point in (at_once, held)]
    assert ttft_s[0] is not None
    assert ttft_s[1] is not None
    tpot_s = steady_tpot_s(at_once, known)
    assert tpot_s is not None
    # Nine requests in ten meet a busy engine, whose decode steps make up most of TPOT.
    assert 0.8 * 18 * tpot_s < ttft_s[1] - ttft_s[0] <= 18 * tpot_s
    assert ttft_reason(at_once) is None
    assert ttft_reason(replace(at_once, concurrency=64)) is not None
