"""Checkpoints of two families, trained here in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SAMPLE = ["the quick brown fox jumps over the lazy dog", "Grüße aus Köln, 你好 世界"] * 4


@pytest.fixture(scope="session")
def byte_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, as of Llama 3, Qwen or GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return _save(tokenizer, tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="session")
def piece_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece vocabulary with byte fallback, as of Llama 2 or Mistral."""
    letters = [chr(c) for c in range(0x21, 0x7F)] + ["\u2581"]
    words = ["\u2581the", "\u2581quick", "ow", "\u2581b", "er", "\u2581\u2581"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *letters, *words])}
    vocabulary |= {piece: len(vocabulary) + i for i, piece in enumerate(["th", "\u2581q"])}
    merges = [("o", "w"), ("e", "r"), ("\u2581", "b"), ("\u2581", "\u2581"), ("\u2581", "q")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return _save(tokenizer, tmp_path_factory.mktemp("pieces"))


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
