"""An OpenAI endpoint: what it serves, what it understands, and one streamed completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx

from penstock.errors import InputError
from penstock.measure.loadgen.events import Stream, StreamProblem, message_of
from penstock.measure.loadgen.prompts import SAMPLE

_LOOK_S = 30.0


class Refused(Exception):  # noqa: N818 - an answer
    """The server answered a request with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server takes. ``vocabulary``: token ids to draw prompts from; () = send text.

    ``counts``: it has ``/tokenize``. ``extras`` go into every request.
    """

    model: str
    vocabulary: tuple[int, ...]
    counts: bool
    extras: Mapping[str, object]
    max_model_len: int | None = None


class Endpoint:
    """A client of one server. ``url`` with or without ``/v1``."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        if "://" not in base:
            base = f"http://{base}"
        self.url = base
        try:
            parts = httpx.URL(base)
        except httpx.InvalidURL:
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            raise InputError(f"--url: {url!r} is no address; write it as http://host:port")
        self._client = httpx.AsyncClient(
            base_url=base,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=_LOOK_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def close(self) -> None:
        await self._client.aclose()

    # -- what it is ---------------------------------------------------------------------------

    async def look(self, model: str | None, wanted: Mapping[str, object]) -> Abilities:
        """Find out what the server takes; ``wanted`` are the options of every request.

        Raises ``InputError`` where it cannot be reached, wants another key, or does not serve
        ``model``.
        """
        card = await self._card(model)
        name = str(card["id"])
        tokens = await self._tokens(name)
        length = card.get("max_model_len")
        counting = {"include_usage": True, "continuous_usage_stats": True}
        options: list[dict[str, object]] = [
            {"ignore_eos": True, "stream_options": counting},
            {"ignore_eos": True, "stream_options": {"include_usage": True}},
            {"stream_options": {"include_usage": True}},
            {},
        ]
        if not wanted.get("ignore_eos"):
            options = [{k: v for k, v in o.items() if k != "ignore_eos"} for o in options]
        plain = {key: value for key, value in wanted.items() if key != "ignore_eos"}
        prompts: list[list[int] | str] = [list(tokens[:8])] if tokens else []
        problem = ""
        for prompt, option in product([*prompts, "Hello"], options):
            extras = {**plain, **option}
            try:
                await self.complete(
                    {"model": name, "prompt": prompt, "max_tokens": 1, **extras}, {}, lambda: 0.0
                )
            except Refused as error:
                if error.status not in (400, 422):
                    raise InputError(f"{self.url}: {error}") from None
                problem = problem or str(error)
                continue
            except (httpx.HTTPError, StreamProblem) as error:
                raise InputError(f"{self.url}: {_words(error)}") from None
            used = tokens if isinstance(prompt, list) else ()
            most = length if isinstance(length, int) else None
            return Abilities(name, tuple(used), bool(tokens), extras, most)
        raise InputError(f"{self.url}: /v1/completions refuses the simplest request ({problem})")

    async def require(self, models: Sequence[str]) -> None:
        """Raises ``InputError`` naming every one of ``models`` that the server does not serve."""
        served = [str(card["id"]) for card in await self._cards()]
        missing = ", ".join(repr(name) for name in models if name not in served)
        if missing:
            raise InputError(
                f"{self.url}: does not serve {missing}, which the workload asks for; it serves "
                f"{', '.join(served)}; rename them in the workload, or use --model for all requests"
            )

    async def _card(self, model: str | None) -> Mapping[str, object]:
        """The entry of ``model`` in ``/v1/models``; of the first one where none is named."""
        cards = await self._cards()
        if model is None:
            return dict(cards[0])
        for card in cards:
            if card["id"] == model:
                return dict(card)
        known = ", ".join(str(card["id"]) for card in cards)
        raise InputError(f"{self.url}: does not serve {model!r}; use --model {known}")

    async def _cards(self) -> Sequence[Mapping[str, object]]:
        document = await self._ask("GET", "/v1/models", None)
        entries = document.get("data")
        cards = [entry for entry in entries if "id" in entry] if isinstance(entries, list) else []
        if not cards:
            raise InputError(f"{self.url}: serves no model; check the address")
        return cards

    async def _tokens(self, model: str) -> Sequence[int]:
        """Token ids of common words; () without ``/tokenize``."""
        try:
            body = {"model": model, "prompt": SAMPLE, "add_special_tokens": False}
            response = await self._client.post("/tokenize", json=body, timeout=_LOOK_S)
            found = response.json().get("tokens") if response.is_success else ()
        except (httpx.HTTPError, ValueError, AttributeError):
            return ()
        if not isinstance(found, list):
            return ()
        return tuple(token for token in found if isinstance(token, int))

    async def count(self, model: str, text: str) -> int:
        """Tokens of ``text`` as a prompt."""
        document = await self._ask("POST", "/tokenize", {"model": model, "prompt": text})
        count = document.get("count")
        if not isinstance(count, int):
            raise InputError(f"{self.url}: /tokenize gives no count")
        return count

    async def _ask(self, method: str, path: str, body: object) -> Mapping[str, Any]:
        try:
            response = await self._client.request(method, path, json=body, timeout=_LOOK_S)
        except httpx.HTTPError as error:
            raise InputError(f"{self.url}: {_words(error)}; is the server up?") from None
        if response.status_code in (401, 403):
            raise InputError(f"{self.url}: wants another key (401); give it with --api-key")
        try:
            document = response.json()
        except ValueError:
            document = None
        if not response.is_success or not isinstance(document, dict):
            raise InputError(
                f"{self.url}{path}: answers {response.status_code}; "
                "is this the address of an OpenAI endpoint?"
            )
        return document

    # -- one request --------------------------------------------------------------------------

    async def complete(
        self,
        body: Mapping[str, object] | bytes,
        headers: Mapping[str, str],
        clock: Callable[[], float],
        stream: Stream | None = None,
    ) -> Stream:
        """Stream one completion into ``stream``, which keeps what came before an error.

        Raises ``Refused``, ``StreamProblem`` and ``httpx.HTTPError``.
        """
        found = Stream() if stream is None else stream
        data = body if isinstance(body, bytes) else encode(body)
        async with self._client.stream(
            "POST",
            "/v1/completions",
            content=data,
            headers={"Content-Type": "application/json", **headers},
        ) as response:
            if not response.is_success:
                raise Refused(response.status_code, _problem(await response.aread()))
            async for piece in response.aiter_raw():
                found.feed(piece, clock())
        if not found.done:
            raise StreamProblem("the stream ended before its end")
        return found


def encode(body: Mapping[str, object]) -> bytes:
    """The bytes of a streamed request."""
    return json.dumps({**body, "stream": True}).encode()


def _problem(content: bytes) -> str:
    try:
        document = json.loads(content)
    except ValueError:
        return content[:200].decode("utf-8", "replace")
    return message_of(document) if isinstance(document, dict) else str(document)[:200]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
