"""A request as the gateway carries it out: one generation per choice of the answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.serve.gateway.bodies import ChatBody, CompletionBody, SamplingBody
from penstock.serve.gateway.errors import InvalidRequest
from penstock.serve.gateway.prompts import (
    Prompt,
    chat_prompt,
    check_choices,
    completion_prompts,
)
from penstock.serve.gateway.settings import GatewaySettings
from penstock.serve.gateway.texts import Texts, encode
from penstock.serve.protocol import (
    GenerationRequest,
    ModelCard,
    RequestTooLong,
    SamplingParams,
)
from penstock.serve.text import TextModel, Tokenizer
from penstock.spec.names import did_you_mean

_COMPLETION_TOKENS = 16
_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Job:
    """``requests`` are in the order of the choices; ``echoes`` stand before their texts."""

    id: str
    created_s: int
    chat: bool
    card: ModelCard
    tokenizer: Tokenizer
    requests: tuple[GenerationRequest, ...]
    echoes: tuple[str, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    include_stop: bool
    return_token_ids: bool
    skip_special_tokens: bool
    stream: bool
    include_usage: bool
    running_usage: bool
    deadline_s: float


async def completion_job(
    body: CompletionBody, headers: Mapping[str, str], texts: Texts, settings: GatewaySettings
) -> Job:
    """Raises ``ApiError`` or ``ServeError`` for what cannot be served."""
    count = body.n or 1
    if body.best_of is not None and body.best_of != count:
        raise InvalidRequest(
            "best_of: is not supported by this server; leave it out or set it to n",
            param="best_of",
            code="unsupported_parameter",
        )
    if body.echo and body.logprobs is not None:
        raise InvalidRequest(
            "echo: is not supported together with logprobs; prompts are not scored",
            param="echo",
            code="unsupported_parameter",
        )
    card, text = await texts.find(body.model)
    prompts = await completion_prompts(body, text.tokenizer, settings.max_choices)
    tokens = body.max_tokens or _COMPLETION_TOKENS
    params = _params(body, tokens, body.logprobs, card)
    return _job(
        "cmpl",
        body,
        headers=headers,
        settings=settings,
        card=card,
        text=text,
        prompts=prompts,
        params=params,
    )


async def chat_job(
    body: ChatBody, headers: Mapping[str, str], texts: Texts, settings: GatewaySettings
) -> Job:
    """Raises ``ApiError`` or ``ServeError`` for what cannot be served."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs: true", param="top_logprobs")
    card, text = await texts.find(body.model)
    prompt = chat_prompt(
        text, card, body.messages, body.add_generation_prompt, body.chat_template_kwargs
    )
    tokens = await encode(text.tokenizer, prompt, add_special_tokens=bool(body.add_special_tokens))
    asked = body.max_completion_tokens or body.max_tokens
    room = max(1, card.max_model_len - len(tokens))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, asked or room, logprobs, card)
    return _job(
        "chatcmpl",
        body,
        headers=headers,
        settings=settings,
        card=card,
        text=text,
        prompts=[Prompt(tuple(tokens))],
        params=params,
    )


def _params(
    body: SamplingBody, max_tokens: int, logprobs: int | None, card: ModelCard
) -> SamplingParams:
    minimum = body.min_tokens or 0
    if minimum > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {minimum} is above max_tokens {max_tokens}", param="min_tokens"
        )
    stop_ids = tuple(body.stop_token_ids or ())
    _check_tokens(stop_ids, card, "stop_token_ids")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=minimum,
        temperature=_given(body.temperature, 1.0),
        top_p=_given(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        min_p=_given(body.min_p, 0.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        seed=body.seed,
        logprobs=logprobs,
        stop_token_ids=stop_ids,
        ignore_eos=bool(body.ignore_eos),
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _job(
    prefix: str,
    body: SamplingBody,
    *,
    headers: Mapping[str, str],
    settings: GatewaySettings,
    card: ModelCard,
    text: TextModel,
    prompts: Sequence[Prompt],
    params: SamplingParams,
) -> Job:
    count = body.n or 1
    check_choices(len(prompts), count, settings.max_choices)
    for prompt in prompts:
        _check_prompt(prompt.tokens, params, card)
    identity = f"{prefix}-{uuid.uuid4().hex}"
    class_name = _class_name(body, headers, settings)
    deadline_s = min(body.deadline_s or settings.request_timeout_s, settings.request_timeout_s)
    requests = tuple(
        GenerationRequest(
            id=f"{identity}-{index * count + i}",
            prompt=prompt.tokens,
            params=_seeded(params, i),
            model=card.name,
            class_name=class_name,
            tpot_s=None if body.tpot_ms is None else body.tpot_ms / 1e3,
            priority=body.priority or 0,
            deadline_s=deadline_s,
        )
        for index, prompt in enumerate(prompts)
        for i in range(count)
    )
    return Job(
        id=identity,
        created_s=int(time.time()),
        chat=isinstance(body, ChatBody),
        card=card,
        tokenizer=text.tokenizer,
        requests=requests,
        echoes=tuple(prompt.echo for prompt in prompts for _ in range(count)),
        prompt_tokens=sum(len(prompt.tokens) for prompt in prompts),
        stops=tuple(body.stop or ()),
        include_stop=bool(body.include_stop_str_in_output),
        return_token_ids=bool(body.return_token_ids),
        skip_special_tokens=body.skip_special_tokens is not False,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        running_usage=bool(
            body.stream_options
            and body.stream_options.include_usage
            and body.stream_options.continuous_usage_stats
        ),
        deadline_s=deadline_s,
    )


def _seeded(params: SamplingParams, choice: int) -> SamplingParams:
    """Choices of one seeded request differ from each other, and not from run to run."""
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=(params.seed + choice + _SEEDS) % (2 * _SEEDS) - _SEEDS)


def _check_prompt(tokens: Sequence[int], params: SamplingParams, card: ModelCard) -> None:
    if not tokens:
        raise InvalidRequest("prompt: has no tokens", param="prompt")
    total = len(tokens) + params.max_tokens
    if total > card.max_model_len:
        raise RequestTooLong(
            f"This model's maximum context length is {card.max_model_len} tokens. However, you "
            f"requested {total} tokens ({len(tokens)} in the prompt, {params.max_tokens} in the "
            "completion). Please reduce one of them."
        )
    _check_tokens(tokens, card, "prompt")


def _check_tokens(tokens: Sequence[int], card: ModelCard, param: str) -> None:
    if tokens and not 0 <= min(tokens) <= max(tokens) < card.vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < card.vocab_size)
        raise InvalidRequest(
            f"{param}: {card.name} has no token {wrong}; ids are below {card.vocab_size}",
            param=param,
        )


def _class_name(body: SamplingBody, headers: Mapping[str, str], settings: GatewaySettings) -> str:
    name = body.slo_class or headers.get("x-slo-class", "")
    known = settings.slo_classes
    if name and known and name not in known:
        raise InvalidRequest(
            f"slo_class: no class {name[:128]!r}; {did_you_mean(name[:128], known)}",
            param="slo_class",
        )
    return name[:128]
