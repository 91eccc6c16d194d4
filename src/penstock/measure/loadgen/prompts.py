"""Prompts of exact token counts, out of tokens and words that the server's tokenizer knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

from penstock.spec.workload import Request

PIECE_TOKENS = 512
"""Tokens that one prefix hash of a trace stands for (Mooncake's block)."""
SAMPLE = (
    "the time of a day in which water ran down the old stone channel and people came to see how "
    "it turned the wheel while some of them wrote what they saw on paper and others counted every "
    "sack of flour that left for the town before night was over and nobody had asked for more"
)

Count = Callable[[str], Awaitable[int]]


class TokenPrompts:
    """Prompts as token ids drawn from ``vocabulary``; equal seeds give equal prompts.

    Equal prefix hashes give equal first pieces, so that caches hit as the trace says.
    """

    def __init__(self, vocabulary: Sequence[int], seed: int) -> None:
        self._vocabulary = sorted(set(vocabulary))
        self._seed = seed

    def make(self, request: Request) -> list[int]:
        """``request.prompt_tokens`` token ids."""
        tokens: list[int] = []
        for piece in request.prefix_hashes:
            if len(tokens) + PIECE_TOKENS > request.prompt_tokens:
                break
            rng = Random(f"{self._seed}/piece/{piece}")
            tokens += rng.choices(self._vocabulary, k=PIECE_TOKENS)
        rng = Random(f"{self._seed}/{request.id}")
        return tokens + rng.choices(self._vocabulary, k=request.prompt_tokens - len(tokens))


@dataclass(frozen=True, slots=True)
class Words:
    """``units`` are one token each when joined by ``joiner``; ``extra`` tokens come on top."""

    units: tuple[str, ...]
    joiner: str = " "
    extra: int = 0


ROUGHLY = Words(tuple(sorted(set(SAMPLE.split()))))
"""For servers that cannot count: a common word is about one token."""


class TextPrompts:
    """Prompts as text, for servers that take no token ids; equal seeds give equal prompts."""

    def __init__(self, words: Words, seed: int) -> None:
        self._words = words
        self._seed = seed

    def make(self, request: Request) -> str:
        """Text of ``request.prompt_tokens`` tokens, as far as the words are one token each."""
        rng = Random(f"{self._seed}/{request.id}")
        size = max(1, request.prompt_tokens - self._words.extra)
        return self._words.joiner.join(rng.choices(self._words.units, k=size))


async def one_token_words(count: Count) -> Words:
    """Words (or, under a byte tokenizer, letters) that add exactly one token to a text."""
    anchor = "water"
    alone = await count(anchor)
    units = [word for word in ROUGHLY.units if await count(f"{anchor} {word}") == alone + 1]
    joiner = " "
    if not units:
        joiner = ""
        units = [one for one in ascii_lowercase if await count(anchor + one) == alone + 1]
    if not units:
        return ROUGHLY
    return Words(tuple(units), joiner, await count(joiner.join(units)) - len(units))
