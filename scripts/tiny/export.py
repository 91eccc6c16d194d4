"""Checkpoint folders as Hugging Face tools and Penstock read them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .tokens import BEGIN, CHAT_TEMPLATE, END, SPECIAL


def write_checkpoint(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write configuration, weights in bfloat16 and tokenizer; tied weights are stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.hidden_size // config.num_attention_heads,
            "max_position_embeddings": config.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.token_to_id(BEGIN),
            "eos_token_id": tokenizer.token_to_id(END),
            "pad_token_id": tokenizer.token_to_id(END),
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
    )
    weights = {
        name: weight.to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, tokenizer, config.max_position_embeddings)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    named = {"bos_token": BEGIN, "eos_token": END, "pad_token": END}
    others = [token for token in SPECIAL if token not in {BEGIN, END}]
    _write(folder / "special_tokens_map.json", {**named, "additional_special_tokens": others})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "additional_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_tokens,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": end,
            "do_sample": False,
        },
    )


def _write(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
