"""FLOPs and bytes of a layer against hand figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cost_fleet import LLAMA2_70B, LLAMA_30B, accelerator

from penstock.cost.arithmetic import (
    activation_bytes,
    all_reduce_bytes,
    layer_work,
    matrix_flops_per_s,
)
from penstock.spec.model import LatentAttention, MixtureOfExperts, ModelSpec

MIXTRAL = ModelSpec(
    "mixtral", 32, 4096, 32, 8, 128, 14336, 32000, 32768, moe=MixtureOfExperts(8, 2, 14336)
)


def test_dense_layer_by_hand() -> None:
    """LLaMA-2 70B: 855,638,016 weights a layer, two bytes and two FLOPs each."""
    work = layer_work(LLAMA2_70B)
    assert work.weight_bytes_read(1) == pytest.approx(2 * 855_638_016)
    assert work.weight_bytes_read(500) == pytest.approx(2 * 855_638_016)
    assert work.flops_per_token == 2 * 855_638_016
    assert work.flops_per_pair == 4 * 64 * 128
    assert work.kv_bytes_per_token == 2 * 8 * 128 * 2
    assert work.hidden_bytes_per_token == 16384
    assert layer_work(LLAMA_30B).kv_bytes_per_token == 2 * 6656 * 2


def test_experts_are_read_as_tokens_touch_them() -> None:
    """One token reads 2 of 8 experts, two tokens 3.5 on average, many read all."""
    work = layer_work(MIXTRAL)
    expert = 3 * 4096 * 14336 * 2
    rest = (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8) * 2
    assert work.weight_bytes_read(1) == pytest.approx(rest + 2 * expert)
    assert work.weight_bytes_read(2) == pytest.approx(rest + 3.5 * expert)
    assert work.weight_bytes_read(1000) == pytest.approx(rest + 8 * expert)
    assert work.flops_per_token == pytest.approx(rest + 2 * expert)


def test_latent_attention_reads_the_latent() -> None:
    """DeepSeek-V3 caches 576 values a token and scores in the latent space."""
    model = ModelSpec(
        "deepseek", 61, 7168, 128, 128, 128, 18432, 129280, 4096,
        mla=LatentAttention(512, 1536, 64, 128, 128),
    )  # fmt: skip
    work = layer_work(model)
    assert work.kv_bytes_per_token == 576 * 2
    assert work.flops_per_pair == 2 * 128 * (576 + 512)


def test_a_stated_layer_size_replaces_the_count() -> None:
    """An override scales what is read and leaves the FLOPs."""
    work = layer_work(replace(LLAMA2_70B, layer_weight_bytes_override=1_530_000_000))
    assert work.weight_bytes_read(3) == pytest.approx(1.53e9)
    assert work.flops_per_token == 2 * 855_638_016


def test_quantised_weights_shrink_bytes_only() -> None:
    """int4 weights read a quarter of the bytes and compute in the activation dtype."""
    int4 = replace(LLAMA2_70B, weight_dtype="int4")
    assert layer_work(int4).weight_bytes_read(1) == pytest.approx(855_638_016 / 2)
    assert matrix_flops_per_s(accelerator("A100"), int4) == 312e12


def test_peak_falls_back_where_a_dtype_is_not_accelerated() -> None:
    """bf16 models run in fp16 on a T4, as engines run them."""
    assert matrix_flops_per_s(accelerator("T4"), replace(LLAMA2_70B, dtype="bf16")) == 65e12


def test_ring_all_reduce_and_activations() -> None:
    """Two members send the buffer once, many nearly twice; activations follow the MLP width."""
    assert all_reduce_bytes(100, 2) == 100
    assert all_reduce_bytes(100, 8) == 175
    assert activation_bytes(LLAMA2_70B, 10) == 10 * (2 * 28672 + 4 * 8192) * 2
    assert activation_bytes(MIXTRAL, 1) == (2 * 2 * 14336 + 4 * 4096) * 2
