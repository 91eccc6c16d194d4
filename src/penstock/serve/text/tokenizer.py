"""The tokenizer of a checkpoint: ``tokenizer.json`` as Hugging Face writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from penstock.errors import SpecError
from penstock.serve.text.byte_level import byte_tokenizer, token_bytes

FILE = "tokenizer.json"

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Text to token ids and back.

    ``byte_level``: every token is a fixed string of bytes, so that text is the decoded
    concatenation of them. Other vocabularies (SentencePiece, WordPiece) decode in context.
    """

    def __init__(self, inner: Any, *, decoder: object, special: Iterable[int]) -> None:
        # Limits that were set for training are none of a server's business.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._special = frozenset(special)
        kinds = _decoder_kinds(decoder)
        self.byte_level = kinds == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in kinds
        self._bytes: dict[int, bytes] = {}
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        """One more than the highest token id."""

    @classmethod
    def load(cls, folder: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
        """Read ``folder/tokenizer.json``.

        Raises ``SpecError`` where the file is missing or wrong, or names tokens that a model of
        ``vocab_size`` tokens does not have.
        """
        path = Path(folder) / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SpecError(
                "the checkpoint has no tokenizer",
                source=path,
                fix=f"save {FILE} beside config.json",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot be read: {error}", source=path) from None
        try:
            document = json.loads(text)
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust library raises bare Exception
            raise SpecError(f"is not a tokenizer: {error}", source=path) from None
        added = document.get("added_tokens") or []
        special = [token["id"] for token in added if token.get("special")]
        tokenizer = cls(inner, decoder=document.get("decoder"), special=special)
        if vocab_size is not None and tokenizer.size > vocab_size:
            raise SpecError(
                f"holds token ids up to {tokenizer.size - 1}, the model has {vocab_size} tokens",
                source=path,
                fix="use the tokenizer that the model was trained with",
            )
        return tokenizer

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """The tokenizer of no checkpoint: one token per byte of UTF-8."""
        inner = byte_tokenizer()
        added = inner.get_added_tokens_decoder().items()
        special = [token for token, entry in added if entry.special]
        return cls(inner, decoder={"type": "ByteLevel"}, special=special)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; with ``add_special_tokens`` also BOS or EOS where it has them."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_many(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of each text; other threads run meanwhile."""
        encodings = self._inner.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; ids without a token give nothing."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def decode_long(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` with special tokens; other threads run meanwhile."""
        texts: list[str] = self._inner.decode_batch([list(ids)], skip_special_tokens=False)
        return texts[0]

    def is_special(self, token: int) -> bool:
        return token in self._special

    def name(self, token: int) -> str:
        """The token as the vocabulary spells it, "" for an id without one."""
        name: str | None = self._inner.id_to_token(token)
        return name or ""

    def bytes_of(self, token: int) -> bytes:
        """The bytes that ``token`` stands for, b"" for an id without a token."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def _find_bytes(self, token: int) -> bytes:
        name = self.name(token)
        if self.byte_level:
            return token_bytes(name)
        match = _BYTE_FALLBACK.fullmatch(name) if self._byte_fallback else None
        if match:
            return bytes([int(match[1], 16)])
        return name.replace("\u2581", " ").encode()


def _decoder_kinds(decoder: object) -> list[str]:
    """Names of the steps of a decoder of ``tokenizer.json``."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [kind for step in decoder.get("decoders", []) for kind in _decoder_kinds(step)]
    return [str(decoder.get("type"))]
