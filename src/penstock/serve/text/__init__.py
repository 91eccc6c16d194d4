"""Text and tokens: everything between strings of a client and token ids of the runtime."""

from __future__ import annotations

from penstock.serve.text.chat import ChatTemplate
from penstock.serve.text.detokenizer import Detokenizer
from penstock.serve.text.load import TextModel, byte_text, load_text
from penstock.serve.text.stops import StopMatcher
from penstock.serve.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopMatcher",
    "TextModel",
    "Tokenizer",
    "byte_text",
    "load_text",
]
