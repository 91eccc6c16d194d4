"""Tokenizers and templates of the models that are served, each read once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from penstock.errors import SpecError
from penstock.serve.gateway.errors import InvalidRequest
from penstock.serve.protocol import Generator, ModelCard, Unavailable, UnknownModel
from penstock.serve.text import TextModel, Tokenizer, load_text
from penstock.spec.names import did_you_mean

_log = logging.getLogger("penstock.gateway")

# Longer texts are encoded beside the event loop: some 10 ms of work and more.
_LONG_TEXT_CHARACTERS = 20_000


class Texts:
    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._known: dict[ModelCard, TextModel] = {}

    def preload(self, cards: Iterable[ModelCard]) -> None:
        """Read those of ``cards``; raises ``SpecError``."""
        for card in cards:
            self._known[card] = load_text(card.checkpoint, vocab_size=card.vocab_size)

    async def find(self, name: str | None) -> tuple[ModelCard, TextModel]:
        """The model called ``name``, or the only one there is."""
        cards = {card.name: card for card in self._generator.models()}
        if name is None:
            if len(cards) != 1:
                raise InvalidRequest(
                    f"model: say which one; known: {', '.join(cards)}", param="model"
                )
            name = next(iter(cards))
        card = cards.get(name)
        if card is None:
            raise UnknownModel(f"model: no model {name[:200]!r}; {did_you_mean(name[:200], cards)}")
        text = self._known.get(card)
        if text is None:
            text = await _load(card)
            served = set(cards.values())
            self._known = {old: kept for old, kept in self._known.items() if old in served}
            self._known[card] = text
        return card, text


async def _load(card: ModelCard) -> TextModel:
    try:
        return await asyncio.to_thread(load_text, card.checkpoint, vocab_size=card.vocab_size)
    except SpecError as error:
        # The operator's mistake, with paths of this machine in it: not for the client.
        _log.error("the text side of a model cannot be read: %s", error)
        raise Unavailable(
            f"model: {card.name} has no tokenizer; the server's log says why"
        ) from None


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of ``text`` without holding up other requests."""
    [tokens] = await encode_many(tokenizer, [text], add_special_tokens=add_special_tokens)
    return tokens


async def encode_many(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of each text without holding up other requests."""
    if sum(map(len, texts)) > _LONG_TEXT_CHARACTERS:
        return await asyncio.to_thread(
            tokenizer.encode_many, texts, add_special_tokens=add_special_tokens
        )
    return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
