"""The text side of one model: its tokenizer and its chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.serve.text.chat import ChatTemplate
from penstock.serve.text.tokenizer import Tokenizer

_BYTE_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TextModel:
    tokenizer: Tokenizer
    chat: ChatTemplate | None


def load_text(checkpoint: str | Path, *, vocab_size: int | None = None) -> TextModel:
    """Read tokenizer and template of a checkpoint folder; "" is the byte tokenizer of no model.

    Raises ``SpecError``.
    """
    if str(checkpoint) == "":
        return byte_text()
    return TextModel(
        Tokenizer.load(checkpoint, vocab_size=vocab_size), ChatTemplate.load(checkpoint)
    )


def byte_text() -> TextModel:
    """One token per byte and a plain template: text for a server without a model."""
    return TextModel(Tokenizer.of_bytes(), ChatTemplate(_BYTE_TEMPLATE))
