"""Prompts of a request: texts, token ids and chats become token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.serve.gateway.bodies import CompletionBody, Message
from penstock.serve.gateway.errors import InvalidRequest
from penstock.serve.gateway.texts import encode_many
from penstock.serve.protocol import ModelCard
from penstock.serve.text import TextModel, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """``echo``: the text to show before the answer."""

    tokens: tuple[int, ...]
    echo: str = ""


async def completion_prompts(
    body: CompletionBody, tokenizer: Tokenizer, max_choices: int
) -> list[Prompt]:
    """The prompts of a completion, in any of their four forms."""
    given: Any = body.prompt
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    prompts = [given] if one else given
    check_choices(len(prompts), body.n or 1, max_choices)
    if prompts and isinstance(prompts[0], str):
        special = body.add_special_tokens is not False
        encoded = await encode_many(tokenizer, prompts, add_special_tokens=special)
        echoes = prompts
    else:
        encoded = prompts
        echoes = [_echo(tokenizer, tokens) if body.echo else "" for tokens in prompts]
    return [
        Prompt(tuple(tokens), echo if body.echo else "")
        for tokens, echo in zip(encoded, echoes, strict=True)
    ]


def chat_prompt(
    text: TextModel,
    card: ModelCard,
    messages: Sequence[Message],
    add_generation_prompt: bool | None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Messages through the model's template; parts of a message are joined by line breaks."""
    if text.chat is None:
        raise InvalidRequest(
            f"{card.name} has no chat template; use /v1/completions", param="messages"
        )
    plain = [_plain(message) for message in messages]
    wanted = add_generation_prompt is not False
    return text.chat.render(plain, add_generation_prompt=wanted, variables=variables)


def check_choices(prompts: int, count: int, most: int) -> None:
    """Each prompt is answered ``count`` times; raises ``ApiError`` above ``most`` in all."""
    if prompts == 0:
        raise InvalidRequest("prompt: has no tokens", param="prompt")
    if prompts * count > most:
        raise InvalidRequest(
            f"n: {prompts} prompts x {count} are more than {most} choices", param="n"
        )


def _plain(message: Message) -> dict[str, str]:
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    plain = {"role": message.role, "content": content}
    return plain if message.name is None else {**plain, "name": message.name}


def _echo(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    known = [token for token in tokens if 0 <= token < tokenizer.size]
    return tokenizer.decode(known, skip_special_tokens=True)
