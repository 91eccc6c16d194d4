"""Log probabilities in the two forms of the OpenAI API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from penstock.serve.protocol import TokenLogprobs
from penstock.serve.text import Tokenizer


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Text of a token alone; bytes that are no character as ``bytes:\\xe2\\x82``."""
    raw = tokenizer.bytes_of(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextOffsets:
    """Where each token begins in the text of a choice, in characters."""

    def __init__(self, tokenizer: Tokenizer, start: int, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._at = start
        self._skip_special = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token: int) -> int:
        """Where ``token`` begins; the one after it begins behind its text."""
        at = self._at
        if not (self._skip_special and self._tokenizer.is_special(token)):
            self._at += len(self._decoder.decode(self._tokenizer.bytes_of(token)))
        return at


def completion_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], offsets: TextOffsets
) -> dict[str, object]:
    """Parallel lists; the chosen token is always among ``top_logprobs``."""
    return {
        "tokens": [token_text(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            {
                token_text(tokenizer, token): logprob
                for token, logprob in (*entry.top, (entry.token, entry.logprob))
            }
            for entry in entries
        ],
        "text_offset": [offsets.next(entry.token) for entry in entries],
    }


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, object]:
    return {
        "content": [
            {
                **_chat_token(tokenizer, entry.token, entry.logprob),
                "top_logprobs": [
                    _chat_token(tokenizer, token, logprob) for token, logprob in entry.top
                ],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, object]:
    raw = tokenizer.bytes_of(token)
    return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
