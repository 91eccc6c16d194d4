"""A random model of transformers, whose tokens workers must give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A random model of 4 layers: its folder and the model of transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=150,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        eos_token_id=None,
        bos_token_id=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.LlamaForCausalLM(config).eval()
        folder = tmp_path_factory.mktemp("llama")
        model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def expected(checkpoint: tuple[str, Any]) -> Callable[[tuple[int, ...], int], list[int]]:
    """Greedy tokens by the whole model, computed anew for every token, without any cache."""
    torch = pytest.importorskip("torch")

    def greedy(prompt: tuple[int, ...], steps: int) -> list[int]:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(steps):
                logits = checkpoint[1](torch.tensor([tokens]), use_cache=False).logits
                tokens.append(int(logits[0, -1].argmax()))
        return tokens[len(prompt) :]

    return greedy
