"""Byte-level vocabularies: each character of a token's name stands for one byte.

The alphabet is the one of GPT-2: printable Latin-1 characters stand for themselves, the other
bytes for characters from U+0100 on, in order.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BYTE_SPECIALS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def _alphabet() -> dict[str, int]:
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    table = {chr(byte): byte for byte in kept}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(moved)})
    return table


BYTE_OF_CHARACTER = _alphabet()


def token_bytes(name: str) -> bytes:
    """Bytes of the token called ``name``; a name outside the alphabet stands for its own text."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in name])
    except KeyError:
        return name.encode()


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without training: token i is byte i, then the four ``BYTE_SPECIALS``."""
    tokenizer = Tokenizer(models.BPE(vocab=dict(BYTE_OF_CHARACTER), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in BYTE_SPECIALS])
    return tokenizer
