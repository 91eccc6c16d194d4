"""What a profile asks of an engine: prompts of several sizes alone, and batches that decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Probe:
    """``seqs`` requests at once, of ``prompt_tokens`` and ``output_tokens`` each.

    ``kind``: "warm-up" (not counted), "prefill" (the first token matters) or "decode".
    """

    kind: str
    seqs: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine takes: tokens of a request, of a chunk and in all, and sequences."""

    max_model_len: int
    chunk_tokens: int
    max_seqs: int
    kv_tokens: int


DECODE_STEPS = 32
"""Steps in which all sequences of a probe decode together."""
_CONTEXTS = (16, 256, 1024)
_PROMPTS_AT_ONCE = 12_288
"""Prompt tokens of one probe: more would take longer to read than they are worth."""
_WARM_UP = 3


def probes(bounds: Bounds, repeat: int = 5, *, tokens: int = _PROMPTS_AT_ONCE) -> Iterator[Probe]:
    """Warm-up, then prompts of doubling sizes, then batches of doubling sizes and contexts."""
    for _ in range(_WARM_UP):
        yield Probe("warm-up", 1, min(64, bounds.max_model_len // 2), 8)
    # In rounds, so that a busy moment of the machine does not fall on one size.
    for _ in range(repeat):
        for size in _prompt_sizes(bounds):
            yield Probe("prefill", 1, size, 2)
    for seqs in _doubling(1, bounds.max_seqs):
        for context in _CONTEXTS:
            chunks = ceil(seqs * context / bounds.chunk_tokens)
            output = DECODE_STEPS + chunks + seqs // 4
            fits = context + output <= bounds.max_model_len
            if fits and seqs * (context + output) <= bounds.kv_tokens and seqs * context <= tokens:
                yield Probe("decode", seqs, context, output)


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
