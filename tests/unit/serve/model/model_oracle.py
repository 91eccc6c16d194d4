"""Small random checkpoints written by transformers, and its greedy tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from model_pipeline import VOCAB

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}

# One entry per behaviour: (class of transformers, changes to the small shape).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "llama-dynamic": ("Llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 11}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt-untied": (
        "OPT",
        {"ffn_dim": 96, "word_embed_proj_dim": 64, "tie_word_embeddings": False},
    ),
}


def save(variant: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Write a random checkpoint into ``folder`` and return the model of transformers."""
    family, own = VARIANTS[variant]
    shape = {**_SMALL, **own, **changes}
    if family == "OPT":
        shape.pop("num_key_value_heads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{family}Config")(**shape)
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Default norms and biases, ones and zeros, would hide a mistake.
                middle = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
                parameter.normal_(middle, 0.12)
        model.save_pretrained(folder)
    return model


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The next ``count`` tokens by ``generate`` of transformers."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.generation_config.eos_token_id = None
        out = model.generate(
            torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
