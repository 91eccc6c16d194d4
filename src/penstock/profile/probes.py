"""What a profile asks of an engine: prompts of several sizes alone, and batches that decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Probe:
    """``seqs`` requests, ``at_once`` of them in flight (0 = all), of these lengths in the mean.

    ``kind``: "warm-up" (not counted), "prefill" (the first token matters), "decode" (all decode
    together) or "mixed" (prompts come while others decode).
    """

    kind: str
    seqs: int
    prompt_tokens: int
    output_tokens: int
    at_once: int = 0

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(prompt, output) tokens of every request.

        Batches are ragged, as they are in use: attention over equal contexts is faster than over
        equally many tokens of different ones.
        """
        prompts = spread(self.prompt_tokens, self.seqs)
        if self.kind == "mixed":
            return tuple(zip(prompts, reversed(spread(self.output_tokens, self.seqs)), strict=True))
        return tuple((tokens, self.output_tokens) for tokens in prompts)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine takes: tokens of a request, of a chunk and in all, and sequences."""

    max_model_len: int
    chunk_tokens: int
    max_seqs: int
    kv_tokens: int


SPREAD = 0.6
"""Lengths of one probe lie within so much of their mean."""
DECODE_STEPS = 32
"""Steps in which all sequences of a probe decode together."""
_CONTEXTS = (16, 256, 1024)
_PROMPTS_AT_ONCE = 12_288
"""Prompt tokens of one probe: more would take longer to read than they are worth."""
_WARM_UP = 3
_MIXED = (8, 32)
_MIXED_PROMPT = 128
_MIXED_OUTPUT = 40


def spread(mean: int, count: int) -> tuple[int, ...]:
    """``count`` sizes evenly around ``mean``, in an order that jumps between short and long."""
    if count == 1:
        return (mean,)
    sizes = [round(mean * (1 + SPREAD * (2 * i / (count - 1) - 1))) for i in range(count)]
    return tuple(max(1, sizes[i]) for i in sorted(range(count), key=lambda i: i * 0.618 % 1))


def longest(mean: int) -> int:
    """The longest size that ``spread`` gives."""
    return round(mean * (1 + SPREAD))


def probes(
    bounds: Bounds, repeat: int = 5, rounds: int = 1, *, tokens: int = _PROMPTS_AT_ONCE
) -> Iterator[Probe]:
    """Warm-up, then in ``rounds``: prompts of doubling sizes (``repeat`` times in all), batches of
    doubling sizes and contexts, and mixtures.

    A busy moment of the machine then does not fall on one size.
    """
    for _ in range(_WARM_UP):
        yield Probe("warm-up", 1, min(64, bounds.max_model_len // 2), 8)
    for number in range(rounds):
        for _ in range(number * repeat // rounds, (number + 1) * repeat // rounds):
            for size in _prompt_sizes(bounds):
                yield Probe("prefill", 1, size, 2)
        yield from _batches(bounds, tokens)
        yield from _mixtures(bounds)


def _batches(bounds: Bounds, tokens: int) -> Iterator[Probe]:
    for seqs in _doubling(1, bounds.max_seqs):
        for context in _CONTEXTS:
            chunks = ceil(seqs * context / bounds.chunk_tokens)
            output = DECODE_STEPS + chunks + seqs // 4
            widest = context if seqs == 1 else longest(context)
            fits = widest + output <= bounds.max_model_len
            if fits and seqs * (context + output) <= bounds.kv_tokens and seqs * context <= tokens:
                yield Probe("decode", seqs, context, output)


def _mixtures(bounds: Bounds) -> Iterator[Probe]:
    prompt = min(_MIXED_PROMPT, bounds.chunk_tokens // 2, bounds.max_model_len // 4)
    output = min(_MIXED_OUTPUT, bounds.max_model_len // 4)
    for at_once in _MIXED:
        length = longest(prompt) + longest(output)
        fits = length <= bounds.max_model_len and at_once * length <= bounds.kv_tokens
        if at_once <= bounds.max_seqs and fits:
            yield Probe("mixed", 4 * at_once, prompt, output, at_once)


def _prompt_sizes(bounds: Bounds) -> list[int]:
    """Sizes of one chunk and, where requests may be longer, of several."""
    chunk = min(bounds.chunk_tokens, bounds.max_model_len - 2)
    sizes = [*_doubling(4, chunk)]
    most = min(bounds.max_model_len, bounds.kv_tokens) - 2
    return sizes + [chunks * chunk for chunks in (2, 3) if chunks * chunk <= most]


def _doubling(first: int, last: int) -> list[int]:
    """``first``, its doubles below ``last``, and ``last``."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]
