"""Another server as an engine sees it: token ids in, token ids out, over the OpenAI API.

Servers differ in what they take and tell. ``Remote.look`` tries it once: prompts as token ids, else
as text; token ids of the answer as ``token_ids`` (vLLM, Penstock), as names ``token_id:N`` of log
probabilities (vLLM) or their ``id`` (llama.cpp), else the text is cut into tokens again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import httpx

from penstock.errors import InputError, SpecError
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.told import Listed, listed_tokens
from penstock.serve.protocol import EngineRefused, FinishReason, Overloaded, ServeError
from penstock.serve.text import Tokenizer

LOOK_S = 10.0
_NEUTRAL: Mapping[str, object] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# What is asked of every answer, the best first. Neutral values are stated, since servers may take
# others from the checkpoint's generation_config.json.
_WAYS: tuple[Mapping[str, object], ...] = (
    {**_NEUTRAL, "return_token_ids": True, "return_tokens_as_token_ids": True},
    {**_NEUTRAL, "return_token_ids": True},
    {**_NEUTRAL, "return_tokens_as_token_ids": True, "logprobs": 1},
    _NEUTRAL,
    {},
)
_OPTIONS: Mapping[str, object] = {
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
    "ignore_eos": False,
}
_OF_THE_REQUEST = (400, 413, 422)

Logprobs: TypeAlias = tuple[tuple[float, tuple[tuple[int, float], ...]], ...]
"""As in ``wire.Drawn``."""


class Gone(Exception):  # noqa: N818 - an outcome, which the engine expects
    """The server is not there, or cannot serve now. ``answered``: it said so itself."""

    def __init__(self, why: str, *, answered: bool = False) -> None:
        super().__init__(why)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came at once. ``finish_reason`` is set on the last one."""

    tokens: tuple[int, ...]
    logprobs: Logprobs = ()
    finish_reason: FinishReason | None = None
    stop_token: int | None = None


@dataclass(frozen=True, slots=True)
class Abilities:
    """``ids``: prompts go as token ids. ``extras`` go into every request."""

    model: str = ""
    ids: bool = False
    extras: Mapping[str, object] = field(default_factory=dict)
    max_model_len: int | None = None


class Remote:
    """A client of the server at ``url`` (with or without ``/v1``), which serves ``model``.

    Raises ``SpecError`` for what is no address.
    """

    def __init__(self, url: str, model: str, key: str | None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self.place = _place(self.base)
        self.abilities = Abilities()
        self._tokenizer: Tokenizer | None = None
        # A fresh connection for each request: one that was kept may close as it is used again,
        # which would look like a lost server.
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=LOOK_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            verify=self.base.startswith("https"),
        )

    async def close(self) -> None:
        await self._http.aclose()

    # -- the server ---------------------------------------------------------------------------

    async def poll(self) -> None:
        """Raises ``Gone``, or ``TimeoutError`` where it takes more than ``LOOK_S``."""
        await self._cards()

    async def look(self, tokenizer: Tokenizer) -> None:
        """Find out what the server takes. Raises ``Gone``, or ``InputError`` if it is none."""
        self._tokenizer = tokenizer
        card = await self._card()
        length = card.get("max_model_len")
        words = tokenizer.encode("Hello", add_special_tokens=False)
        accepted: list[tuple[bool, Mapping[str, object]]] = []
        refusal = ""
        for prompt, extras in product((words, "Hello"), _WAYS):
            body = {"model": card["id"], "prompt": prompt, "max_tokens": 1, **extras}
            answer = await self._ask("POST", "/v1/completions", body)
            if answer.status_code in _OF_THE_REQUEST:
                refusal = refusal or _problem(answer.content)
                continue
            way = (prompt is words, extras)
            accepted.append(way)
            if _told(_document(answer)) is not None:
                # One that tells ids is worth more than one that only takes them.
                accepted[0] = way
                break
        if not accepted:
            raise InputError(f"{self.place} refuses the simplest request ({refusal})")
        ids, extras = accepted[0]
        most = length if isinstance(length, int) else None
        self.abilities = Abilities(str(card["id"]), ids, dict(extras), most)

    async def _card(self) -> Mapping[str, Any]:
        cards = await self._cards()
        if not cards:
            raise InputError(f"{self.place} serves no model")
        return next((card for card in cards if card["id"] == self._model), cards[0])

    async def _cards(self) -> list[Mapping[str, Any]]:
        listed = _document(await self._ask("GET", "/v1/models", None)).get("data")
        return [card for card in listed if "id" in card] if isinstance(listed, list) else []

    async def _ask(self, method: str, path: str, body: object) -> httpx.Response:
        try:
            answer = await self._http.request(method, self.base + path, json=body, timeout=LOOK_S)
        except httpx.TimeoutException:
            raise TimeoutError(f"no answer within {LOOK_S:g} s") from None
        except httpx.HTTPError as error:
            raise Gone(_words(error)) from None
        if not answer.is_success and answer.status_code not in _OF_THE_REQUEST:
            raise Gone(f"HTTP {answer.status_code}: {_problem(answer.content)}", answered=True)
        return answer

    # -- one request --------------------------------------------------------------------------

    async def complete(self, live: Live) -> AsyncGenerator[Chunk]:
        """Stream what is left of a request. Raises ``Gone``, or the ``ServeError`` it gets."""
        url, rest = f"{self.base}/v1/completions", b""
        try:
            async with self._http.stream("POST", url, json=self._body(live)) as answer:
                if not answer.is_success:
                    raise _refusal(answer.status_code, _problem(await answer.aread()))
                # Lines end in \n only: JSON may hold other line breaks as they are.
                async for data in answer.aiter_bytes():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        chunk = self._chunk(line, live)
                        if chunk is not None:
                            yield chunk
        except httpx.HTTPError as error:
            raise Gone(_words(error)) from None

    def _body(self, live: Live) -> dict[str, object]:
        params, able = live.request.params, self.abilities
        body: dict[str, object] = {
            "model": able.model,
            "prompt": live.tokens if able.ids else self._text(live.tokens),
            "max_tokens": live.left,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stream": True,
            **able.extras,
        }
        for name, neutral in _OPTIONS.items():
            if getattr(params, name) != neutral:
                body[name] = getattr(params, name)
        if params.min_tokens > live.output_tokens:
            body["min_tokens"] = params.min_tokens - live.output_tokens
        if params.stop_token_ids:
            body["stop_token_ids"] = list(params.stop_token_ids)
        if params.logprobs is not None:
            body["logprobs"] = max(params.logprobs, 1 if "logprobs" in able.extras else 0)
        return body

    def _chunk(self, line: bytes, live: Live) -> Chunk | None:
        """Raises ``Gone`` or ``ServeError`` for an error that comes as an event."""
        data = line[5:].strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            return None
        try:
            document = json.loads(data)
            if "error" in document:
                raise _refusal(_status(document["error"]), _problem(data))
            choices = document.get("choices")
            return self._of_choice(choices[0], live) if choices else None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Gone(f"{data[:80]!r} is no part of a completion", answered=True) from None

    def _of_choice(self, choice: Mapping[str, Any], live: Live) -> Chunk:
        assert self._tokenizer is not None
        listed = listed_tokens(choice.get("logprobs"), self._tokenizer)
        tokens = _ids(choice, listed)
        if tokens is None:
            tokens = self._cut(choice.get("text") or "")
        most = live.request.params.logprobs
        logprobs: Logprobs = ()
        if most is not None and len(listed) == len(tokens):
            logprobs = tuple((one.logprob, one.top[:most]) for one in listed)
        reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
        finish: FinishReason | None = None
        if reason:
            finish = "length" if reason == "length" else "stop"
        return Chunk(tokens, logprobs, finish, stop if isinstance(stop, int) else None)

    # -- text, for servers that take or tell nothing else -------------------------------------

    def _text(self, tokens: list[int]) -> str:
        """The prompt as text. The server adds BOS itself, as this tokenizer does."""
        assert self._tokenizer is not None
        first = self._tokenizer.encode("")
        if first and tokens[: len(first)] == first:
            tokens = tokens[len(first) :]
        return self._tokenizer.decode_long(tokens)

    def _cut(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of an answer: nothing in front, for it begins no text."""
        tokenizer = self._tokenizer
        assert tokenizer is not None
        if not text:
            return ()
        if not tokenizer.byte_level:
            anchor = tokenizer.encode("\n", add_special_tokens=False)
            ids = tokenizer.encode("\n" + text, add_special_tokens=False)
            if ids[: len(anchor)] == anchor:
                return tuple(ids[len(anchor) :])
        return tuple(tokenizer.encode(text, add_special_tokens=False))


def _ids(choice: Mapping[str, Any], listed: tuple[Listed, ...]) -> tuple[int, ...] | None:
    """The ids that a choice tells; None where it tells none."""
    ids = choice.get("token_ids")
    if isinstance(ids, list):
        return tuple(ids)
    found = tuple(one.token for one in listed if one.token is not None)
    return found if listed and len(found) == len(listed) else None


def _told(document: Mapping[str, Any]) -> object:
    """What a whole answer tells of token ids, None if nothing."""
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    return _ids(choices[0], listed_tokens(choices[0].get("logprobs"), None))


def _place(base: str) -> str:
    """The address without user and password. Raises ``SpecError``."""
    try:
        parts = httpx.URL(base)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise SpecError("is no address", key="url", value=base, fix="write it as http://host:port")
    return str(parts.copy_with(username=None, password=None))


def _document(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Gone(f"{answer.url.path} answers something that is not the OpenAI API", answered=True)
    return document


def _refusal(status: int, text: str) -> ServeError | Gone:
    if status == 429:
        return Overloaded(text)
    if status in _OF_THE_REQUEST:
        return EngineRefused(text)
    return Gone(f"HTTP {status}: {text}", answered=True)


def _status(error: object) -> int:
    """The HTTP status of an error that came as an event."""
    if isinstance(error, Mapping):
        if isinstance(error.get("code"), int):
            return int(error["code"])
        if error.get("type") == "invalid_request_error":
            return 400
    return 500


def _problem(content: bytes) -> str:
    """The text of an error document in OpenAI's form, or in any other."""
    try:
        document = json.loads(content)
    except ValueError:
        return content[:200].decode("utf-8", "replace")
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, Mapping):
        error = error.get("message", error)
    return " ".join(str(error)[:300].split())


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
