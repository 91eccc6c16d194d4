"""The runtime without a model."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serve.null import NullGenerator, NullSettings
from penstock.serve.protocol import (
    GenerationRequest,
    Generator,
    Overloaded,
    RequestTooLong,
    SamplingParams,
    TokenDelta,
    UnknownModel,
)


async def deltas(
    generator: Generator, *, prompt: bytes = b"abc", model: str = "null", **params: int
) -> list[TokenDelta]:
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    request = GenerationRequest("r", tuple(prompt), sampling, model=model)
    return [delta async for delta in generator.generate(request)]


@given(prompt=st.binary(min_size=1, max_size=9), count=st.integers(1, 40), step=st.integers(1, 7))
def test_the_answer_is_the_prompt_again(prompt: bytes, count: int, step: int) -> None:
    """As many tokens as asked for, in steps, and a reason on the last delta only."""
    generator = NullGenerator(settings=NullSettings(tokens_per_step=step))
    found = asyncio.run(deltas(generator, prompt=prompt, max_tokens=count))
    tokens = bytes(token for delta in found for token in delta.tokens)
    assert tokens == (prompt * count)[:count]
    assert len(found) == math.ceil(count / step)
    assert [delta.finish_reason for delta in found] == [None] * (len(found) - 1) + ["length"]
    assert generator.running == 0


async def test_all_tokens_are_equally_likely() -> None:
    """Probabilities over the vocabulary sum to one."""
    [delta] = await deltas(NullGenerator(), max_tokens=1, logprobs=260)
    assert sum(math.exp(logprob) for _, logprob in delta.logprobs[0].top) == pytest.approx(1)


async def test_what_cannot_be_served_is_refused() -> None:
    """Before the first token, with the error of the protocol."""
    with pytest.raises(UnknownModel):
        await deltas(NullGenerator(), model="other")
    with pytest.raises(RequestTooLong):
        await deltas(NullGenerator(), max_tokens=40_000)
    with pytest.raises(Overloaded):
        await deltas(NullGenerator(settings=NullSettings(max_running=0)))


async def test_closing_frees_its_place() -> None:
    """Between two tokens."""
    generator = NullGenerator()
    request = GenerationRequest("r", (1, 2), SamplingParams(max_tokens=100), model="null")
    async with aclosing(generator.generate(request)) as stream:
        await anext(stream)
        assert generator.running == 1
    assert generator.running == 0
