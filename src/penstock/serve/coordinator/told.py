"""Log probabilities as servers list them, with the token ids that can be known from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penstock.serve.text import Tokenizer

_PREFIX = "token_id:"


class Listed(NamedTuple):
    """One token of an answer; ``token`` is None where only its text is told."""

    token: int | None
    logprob: float
    top: tuple[tuple[int, float], ...]


def listed_tokens(logprobs: object, tokenizer: Tokenizer | None) -> tuple[Listed, ...]:
    """The tokens of a choice's ``logprobs``: as OpenAI lists them, or as llama.cpp does.

    With a ``tokenizer``, the likeliest tokens (``top``) that are named by their text are looked up;
    those whose text is not one token are left out.
    """
    if not isinstance(logprobs, Mapping):
        return ()
    content = logprobs.get("content")
    if isinstance(content, Sequence):
        return tuple(_of_entry(entry) for entry in content)
    names = logprobs.get("tokens") or ()
    values = logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [{}] * len(names)
    return tuple(
        Listed(_id(name), float(value or 0.0), _top(top or {}, tokenizer))
        for name, value, top in zip(names, values, tops, strict=False)
    )


def _of_entry(entry: Mapping[str, Any]) -> Listed:
    top = entry.get("top_logprobs") or ()
    known = ((one.get("id"), float(one["logprob"])) for one in top)
    return Listed(
        entry.get("id"),
        float(entry["logprob"]),
        tuple((token, value) for token, value in known if token is not None),
    )


def _top(named: Mapping[str, float], tokenizer: Tokenizer | None) -> tuple[tuple[int, float], ...]:
    found = []
    for name, value in named.items():
        token = _id(name)
        if token is None and tokenizer is not None:
            ids = tokenizer.encode(name, add_special_tokens=False)
            token = ids[0] if len(ids) == 1 else None
        if token is not None:
            found.append((token, float(value)))
    return tuple(sorted(found, key=lambda one: -one[1]))


def _id(name: str) -> int | None:
    number = name.removeprefix(_PREFIX)
    return int(number) if name.startswith(_PREFIX) and number.isdecimal() else None
