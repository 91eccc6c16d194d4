"""Rotary angles against those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from penstock.serve.model.rope import RotaryTable, rope_from_config
from penstock.spec.models import model_from_config

SCALINGS = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 16.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
        "original_max_position_embeddings": 4096,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_angles_equal_those_of_transformers(scaling: dict[str, float | str]) -> None:
    """Of a model of real size, to float32 accuracy, also where the table must grow."""
    config = LlamaConfig(max_position_embeddings=131072, head_dim=128, rope_parameters=scaling)
    data = config.to_dict()
    shape = model_from_config(data, name="x")
    table = RotaryTable(rope_from_config(data, shape), torch.float32, torch.device("cpu"))
    positions = torch.tensor([0, 1, 77, 4095, 4096, 9001, 16383])
    cos, sin = table.at(positions, 16383)
    want_cos, want_sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    half = cos.shape[-1] // 2
    signed = torch.cat((-sin[:, 0, :half], sin[:, 0, half:]), dim=-1)
    assert torch.allclose(cos[:, 0], want_cos[0], atol=1e-5)
    assert torch.allclose(signed, want_sin[0], atol=1e-5)


def test_dynamic_scaling_turns_each_position_by_the_sequence_that_ends_there() -> None:
    """Within the trained length nothing is scaled; beyond it the base grows."""
    scaling = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(max_position_embeddings=64, head_dim=32, rope_parameters=scaling)
    data = config.to_dict()
    shape = model_from_config(data, name="x")
    table = RotaryTable(rope_from_config(data, shape), torch.float32, torch.device("cpu"))
    for last in (10, 63, 64, 100, 180):
        cos, _ = table.at(torch.tensor([last]), last)
        want, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[last]]))
        assert torch.allclose(cos[:, 0], want[0], atol=1e-4)
