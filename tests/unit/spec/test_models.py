"""Models: published totals, names people use, and the many spellings of config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.models import model_from_config, preset, presets, read_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def model(**changes: Any) -> ModelSpec:
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    return model_from_config(config, name="m")


@pytest.mark.parametrize("name", list(presets()))
def test_parameters_match_the_published_total(name: str) -> None:
    """The arithmetic of every preset is within 1 % of what its makers publish."""
    entry = presets()[name]
    assert entry.spec.parameters == pytest.approx(entry.published_parameters, rel=0.01)
    assert entry.spec.source.startswith("huggingface.co/")


def test_every_promised_model_is_there() -> None:
    """The bundled list covers the families people serve."""
    promised = """llama-30b llama2-7b llama2-13b llama2-70b llama3.2-1b llama3.2-3b llama3.1-8b
        llama3.1-70b llama3.1-405b qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b qwen2.5-14b
        qwen2.5-32b qwen2.5-72b qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b qwen3-14b qwen3-32b
        qwen3-30b-a3b qwen3-235b-a22b mistral-7b mixtral-8x7b mixtral-8x22b opt-125m opt-1.3b
        opt-2.7b opt-6.7b opt-13b opt-30b opt-66b opt-175b falcon-7b falcon-40b gpt-j-6b
        deepseek-v3"""
    assert [name for name in promised.split() if name not in presets()] == []
    assert len(presets()) >= 60


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("llama2-70b", "llama2-70b"),
        ("llama-2-70b", "llama2-70b"),
        ("llama2_70b", "llama2-70b"),
        ("meta-llama/Llama-2-70b-hf", "llama2-70b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama2-70b"),
        ("llama-30b", "llama-30b"),
        ("llama1-30b", "llama-30b"),
        ("llama1_30b", "llama-30b"),
        ("Llama-3.1-70B", "llama3.1-70b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1-8b"),
        ("DeepSeek-R1", "deepseek-v3"),
    ],
)
def test_names_ignore_case_and_separators(spelling: str, name: str) -> None:
    """People write one model in many ways; all of them find it."""
    found = preset(spelling)
    assert found is not None
    assert found.name == name


def test_kv_bytes_by_hand() -> None:
    """Llama-2 70B caches 2 x 8 heads x 128 x 2 bytes a layer; DeepSeek-V3 its 576-wide latent."""
    llama, deepseek = preset("llama2-70b"), preset("deepseek-v3")
    assert llama is not None
    assert deepseek is not None
    assert llama.kv_bytes_per_token_per_layer == 4096
    assert deepseek.kv_bytes_per_token_per_layer == 576 * 2


def test_active_parameters_of_experts() -> None:
    """Mixtral 8x7B uses 12.9 B of its parameters for a token, Qwen3-30B-A3B 3.3 B."""
    for name, billions in (("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.3), ("deepseek-v3", 37.0)):
        spec = preset(name)
        assert spec is not None
        active = spec.embedding_parameters + sum(
            spec.layer_parameters(i, active=True) for i in range(spec.num_hidden_layers)
        )
        assert active / 1e9 == pytest.approx(billions, rel=0.03)


def test_old_names_of_the_same_numbers() -> None:
    """GPT-J's n_embd and Falcon's multi_query mean what the newer names mean."""
    gptj = model_from_config(
        {"model_type": "gptj", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100},
        name="j",
    )
    assert (gptj.hidden_size, gptj.intermediate_size, gptj.gated_mlp) == (64, 256, False)
    falcon: dict[str, Any] = {
        "model_type": "falcon",
        "hidden_size": 64,
        "n_head": 8,
        "n_layer": 2,
        "vocab_size": 100,
    }
    assert model_from_config({**falcon, "multi_query": True}, name="f").num_key_value_heads == 1
    grouped = {**falcon, "new_decoder_architecture": True, "num_kv_heads": 2}
    assert model_from_config(grouped, name="f").num_key_value_heads == 2
    assert model_from_config({**falcon, "multi_query": False}, name="f").num_key_value_heads == 8


def test_nested_text_config_is_unwrapped() -> None:
    """Multimodal models hold their language model in text_config; the dtype may stay outside."""
    outer = {"architectures": ["X"], "torch_dtype": "bfloat16", "text_config": dict(LLAMA)}
    outer["text_config"].pop("torch_dtype")
    spec = model_from_config(outer, name="m")
    assert (spec.num_hidden_layers, spec.dtype) == (32, "bf16")


@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "int4"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
    ],
)
def test_quantisation(quantisation: dict[str, Any], expected: str) -> None:
    """Weights are counted in the dtype they are stored in, activations stay as they were."""
    spec = model(quantization_config=quantisation)
    assert (spec.weight_dtype, spec.dtype) == (expected, "bf16")


def test_windows() -> None:
    """A window counts only where every layer has it and it is switched on."""
    assert model(sliding_window=4096).sliding_window == 4096
    assert model(sliding_window=4096, use_sliding_window=False).sliding_window is None
    mixed = ["full_attention", "sliding_attention"]
    assert model(sliding_window=4096, layer_types=mixed).sliding_window is None


def test_expert_layers_by_step_and_list() -> None:
    """decoder_sparse_step and mlp_only_layers say which layers are dense."""
    spec = model(
        num_hidden_layers=4,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
    )
    assert spec.moe is not None
    assert [spec.moe.holds(i) for i in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 33}, "num_key_value_heads"),
        ({"torch_dtype": "float7"}, "torch_dtype"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ],
)
def test_bad_configs_name_the_key(changes: dict[str, Any], key: str) -> None:
    """A config that makes no sense is refused with the key at fault."""
    with pytest.raises(SpecError) as caught:
        model(**changes)
    assert caught.value.key == key


def test_a_folder_is_read_with_its_quantisation_file(tmp_path: Path) -> None:
    """A checkpoint folder works like its config.json, and hf_quant_config.json counts."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    quant = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quant))
    spec = read_config(tmp_path)
    assert (spec.weight_dtype, spec.kv_dtype, spec.name) == ("fp8", "fp8", tmp_path.name)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    """A cut-off file is one line with file and line number."""
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 1,\n"num')
    with pytest.raises(SpecError, match=r"config\.json:2: not valid JSON"):
        read_config(path)
