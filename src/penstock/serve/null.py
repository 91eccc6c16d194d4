"""A runtime without a model: tokens at a set rate, for measuring the gateway and for tests.

The answer to a prompt is the prompt again, over and over. All tokens are equally likely, and the
log probabilities say so.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from penstock.errors import InputError
from penstock.serve.protocol import (
    EngineStatus,
    GenerationRequest,
    ModelCard,
    Overloaded,
    RequestTooLong,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
    UnknownModel,
)

BYTE_MODEL = ModelCard("null", max_model_len=32_768, vocab_size=260, checkpoint="")


@dataclass(frozen=True, slots=True)
class NullSettings:
    """``first_token_s`` then one token every ``token_s``; ``tokens_per_step`` come at once.

    ``max_running``: more requests than that at a time are refused as overload.
    """

    first_token_s: float = 0.0
    token_s: float = 0.0
    tokens_per_step: int = 1
    max_running: int = 100_000


class NullGenerator:
    """``Generator`` that computes nothing. One engine, called ``null``."""

    def __init__(
        self, cards: tuple[ModelCard, ...] = (BYTE_MODEL,), settings: NullSettings = NullSettings()
    ) -> None:
        self._cards = cards
        self._settings = settings
        self._sums: Counter[str] = Counter()
        self.running = 0

    def models(self) -> tuple[ModelCard, ...]:
        return self._cards

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        card = self._card(request)
        settings, params = self._settings, request.params
        if self.running >= settings.max_running:
            raise Overloaded(f"{self.running} requests are running")
        self.running += 1
        self._sums["prompt_tokens"] += len(request.prompt)
        try:
            await asyncio.sleep(settings.first_token_s)
            sent = 0
            while sent < params.max_tokens:
                if sent:
                    await asyncio.sleep(settings.token_s * settings.tokens_per_step)
                count = min(settings.tokens_per_step, params.max_tokens - sent)
                delta = _step(request, sent, count, card.vocab_size)
                sent += len(delta.tokens)
                self._sums["generation_tokens"] += len(delta.tokens)
                yield delta
                if delta.finish_reason:
                    return
        finally:
            self.running -= 1

    def _card(self, request: GenerationRequest) -> ModelCard:
        card = next((card for card in self._cards if card.name == request.model), None)
        if card is None:
            raise UnknownModel(f"no model {request.model!r}")
        if len(request.prompt) + request.params.max_tokens > card.max_model_len:
            raise RequestTooLong(f"{card.name} holds {card.max_model_len} tokens")
        return card

    def engines(self) -> tuple[EngineStatus, ...]:
        return (
            EngineStatus(
                name="null",
                role="both",
                model=self._cards[0].name,
                nodes=("localhost",),
                start_layer=0,
                end_layer=1,
                alive=True,
                draining=False,
                running=self.running,
                waiting=0,
                kv_use=0.0,
                prompt_tokens=self._sums["prompt_tokens"],
                generation_tokens=self._sums["generation_tokens"],
                preemptions=0,
                busy_share=0.0,
            ),
        )

    def ready(self) -> bool:
        return True

    def counters(self) -> Mapping[str, float]:
        return {}

    def model_counters(self) -> Mapping[str, Mapping[str, float]]:
        only = self._cards[0].name if len(self._cards) == 1 else ""
        return {only: self.counters()}

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        raise InputError(f"{action}: a server without a model has no pool to change")


def _step(request: GenerationRequest, sent: int, count: int, vocab_size: int) -> TokenDelta:
    """Tokens ``sent`` to ``sent + count`` of the answer, cut at a stop token."""
    params, prompt = request.params, request.prompt
    tokens: list[int] = []
    for position in range(sent, sent + count):
        token = prompt[position % len(prompt)]
        if token in params.stop_token_ids and position >= params.min_tokens:
            return TokenDelta(
                tuple(tokens),
                _logprobs(tokens, params, vocab_size),
                finish_reason="stop",
                stop_token=token,
            )
        tokens.append(token)
    return TokenDelta(
        tuple(tokens),
        _logprobs(tokens, params, vocab_size),
        finish_reason="length" if sent + count >= params.max_tokens else None,
    )


def _logprobs(
    tokens: list[int], params: SamplingParams, vocab_size: int
) -> tuple[TokenLogprobs, ...]:
    if params.logprobs is None:
        return ()
    each = -math.log(vocab_size)
    best = tuple((token, each) for token in range(min(params.logprobs, vocab_size)))
    return tuple(TokenLogprobs(token, each, best) for token in tokens)
