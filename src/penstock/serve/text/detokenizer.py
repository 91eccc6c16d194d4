"""Text of a growing list of tokens, a piece at a time.

The pieces joined are the text of all tokens. A character whose bytes are not all there yet waits;
where the tokens end inside a character, its bytes give nothing.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from penstock.serve.text.tokenizer import Tokenizer

UNKNOWN = "\ufffd"

# A character has at most four bytes, so at most four tokens: what is still unknown after more
# tokens than that is not UTF-8 and never will be.
_LONGEST_CHARACTER_TOKENS = 4
# Tokens of the prompt before the first piece: vocabularies that mark words by a leading space
# drop it at the start of a text, and the answer continues one.
_CONTEXT_TOKENS = 5


class Detokenizer:
    """``push`` tokens, get the text that is certain; ``finish`` gives what had to wait."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        """``context``: tokens before the first pushed one, such as those of the prompt."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._pieces = (
            _BytePieces(tokenizer)
            if tokenizer.byte_level
            else _ContextPieces(tokenizer, self._kept(context[-_CONTEXT_TOKENS:]))
        )

    def push(self, tokens: Sequence[int]) -> str:
        return self._pieces.push(self._kept(tokens))

    def finish(self) -> str:
        return self._pieces.finish()

    def _kept(self, tokens: Sequence[int]) -> Sequence[int]:
        if not self._skip_special:
            return tokens
        return [token for token in tokens if not self._tokenizer.is_special(token)]


class _BytePieces:
    """Tokens are bytes: UTF-8 decoded as it arrives."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes_of, tokens)))

    def finish(self) -> str:
        return ""


class _ContextPieces:
    """Tokens decode in context: the difference of the text with and without the new ones.

    ``_tokens`` holds the tokens of the last piece, for context, and those that wait.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(context)
        self._known = len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        return "".join(map(self._push_one, tokens))

    def _push_one(self, token: int) -> str:
        self._tokens.append(token)
        before, after = self._texts()
        waiting = len(self._tokens) - self._known
        unfinished = after.endswith(UNKNOWN) and waiting <= _LONGEST_CHARACTER_TOKENS
        if len(after) <= len(before) or unfinished:
            return ""
        self._tokens = self._tokens[self._known :]
        self._known = len(self._tokens)
        return after[len(before) :]

    def finish(self) -> str:
        before, after = self._texts()
        text = after[len(before) :]
        waiting = b"".join(map(self._tokenizer.bytes_of, self._tokens[self._known :]))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(waiting)
        unfinished = bool(decoder.getstate()[0])
        return text.rstrip(UNKNOWN) if unfinished else text

    def _texts(self) -> tuple[str, str]:
        before = self._tokenizer.decode(self._tokens[: self._known], skip_special_tokens=False)
        return before, self._tokenizer.decode(self._tokens, skip_special_tokens=False)
