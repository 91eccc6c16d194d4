"""Request bodies: what a client may send, checked strictly.

Names and meanings are those of the OpenAI API and, for the extras, of vLLM. ``null`` means the
default everywhere, as with both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from penstock.spec.strict import Strict

MAX_TOKEN_LOGPROBS = 20
_MAX_STOPS = 32
_MAX_STOP_CHARACTERS = 1000
_MAX_PROMPTS = 1024

# Known to other servers and without effect on the tokens of this one.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Known to other servers, and refused unless the value asks for nothing.
UNSUPPORTED = frozenset(
    {
        "audio",
        "chat_template",
        "continue_final_message",
        "function_call",
        "functions",
        "guided_json",
        "guided_regex",
        "logit_bias",
        "modalities",
        "prediction",
        "prompt_logprobs",
        "reasoning_effort",
        "response_format",
        "structured_outputs",
        "suffix",
        "tool_choice",
        "tools",
        "truncate_prompt_tokens",
        "use_beam_search",
        "web_search_options",
    }
)
ASKS_NOTHING: tuple[object, ...] = (
    None, False, "", "none", "auto", [], {}, {"type": "text"}, ["text"]
)  # fmt: skip


def _prompt(value: object) -> object:
    """A prompt in one of its four forms; checked by hand, since a list may be very long."""
    if isinstance(value, str) or _is_tokens(value):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "must be text, token ids, or a list of one of them")
    if len(value) > _MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"holds more than {_MAX_PROMPTS} prompts")
    if all(isinstance(item, str) for item in value) or all(map(_is_tokens, value)):
        return value
    raise PydanticCustomError("prompt", "must be text, token ids, or a list of one of them")


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _stop(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be text or a list of texts")
    if not all(0 < len(stop) <= _MAX_STOP_CHARACTERS for stop in stops):
        raise PydanticCustomError(
            "stop", f"a stop string has 1 to {_MAX_STOP_CHARACTERS} characters"
        )
    if len(stops) > _MAX_STOPS:
        raise PydanticCustomError("stop", f"holds more than {_MAX_STOPS} stop strings")
    return stops


_TEXT = {"type": "string"}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompt = Annotated[
    Any,
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _TOKENS,
                {"type": "array", "items": _TEXT, "minItems": 1},
                {"type": "array", "items": _TOKENS, "minItems": 1},
            ]
        }
    ),
]
Stop = Annotated[
    Any,
    PlainValidator(lambda value: None if value is None else _stop(value)),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]}),
]
TokenCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
PositiveTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_TOKEN_LOGPROBS)]
ClassName = Annotated[str, Field(max_length=128)]


class Body(Strict):
    """Unknown keys are refused with the nearest known one; text is never taken for a number."""

    model_config = ConfigDict(strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingBody(Body):
    """What completions and chats share."""

    model: str | None = None
    max_tokens: PositiveTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    min_tokens: TokenCount | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenCount], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    slo_class: ClassName | None = None
    tpot_ms: Annotated[float, Field(gt=0, le=1e9)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=1e6)] | None = None


class CompletionBody(SamplingBody):
    prompt: Prompt
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    name: str | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=4096)]


class ChatBody(SamplingBody):
    messages: Messages
    max_completion_tokens: PositiveTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(Body):
    """``prompt`` or ``messages``; a chat goes through the template first."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: Annotated[list[TokenCount], Field(max_length=2_000_000)]
