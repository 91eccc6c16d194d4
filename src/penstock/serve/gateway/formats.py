"""Answers as bytes: whole documents, and the chunks of a stream.

The bytes around the text of a chunk are built once for a request; only the text is encoded for
each chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

import penstock
from penstock.serve.gateway.choice import Piece
from penstock.serve.gateway.job import Job
from penstock.serve.gateway.logprobs import (
    TextOffsets,
    chat_logprobs,
    completion_logprobs,
)
from penstock.serve.protocol import TokenLogprobs

FINGERPRINT = f"penstock-{penstock.__version__}"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


@dataclass(slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def document(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class WholeChoice:
    """All pieces of one choice, joined."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.logprobs.extend(piece.logprobs)
        self.token_ids.extend(piece.token_ids)
        self.finish_reason = piece.finish_reason
        self.stop_reason = piece.stop_reason


class Chunks:
    """Chunks of one stream, as server-sent events."""

    def __init__(self, job: Job) -> None:
        self._job = job
        head = _head(job, "chat.completion.chunk" if job.chat else "text_completion")
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if job.include_usage else b"]}\n\n"
        self._text_key = b',"delta":{"content":' if job.chat else b',"text":'
        self._text_end = b'},"logprobs":' if job.chat else b',"logprobs":'
        self._wants_logprobs = job.requests[0].params.logprobs is not None
        self._offsets = [_offsets(job, index) for index in range(len(job.requests))]

    def opening(self) -> bytes:
        """What comes before the first token: the role of a chat, the echo of a completion."""
        events = []
        for index, echo in enumerate(self._job.echoes):
            if self._job.chat:
                events.append(
                    b'%s{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
                    b'"finish_reason":null}%s' % (self._head, index, self._tail)
                )
            elif echo:
                events.append(self.chunk(index, Piece(echo, 0), None))
        return b"".join(events)

    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> bytes:
        """``usage`` so far goes along where the client asked for it in every chunk."""
        tail = self._tail
        if usage is not None and self._job.running_usage:
            tail = b'],"usage":%s}\n\n' % _encode(usage.document())
        end = b',"finish_reason":null}'
        if piece.finish_reason:
            end = b',"finish_reason":%s,"stop_reason":%s}' % (
                _encode(piece.finish_reason),
                _encode(piece.stop_reason),
            )
        if self._job.return_token_ids:
            end = b',"token_ids":%s%s' % (_encode(piece.token_ids), end)
        return b'%s{"index":%d%s%s%s%s%s%s' % (
            self._head,
            index,
            self._text_key,
            _encode(piece.text),
            self._text_end,
            self._logprobs(index, piece) if self._wants_logprobs and piece.tokens else b"null",
            end,
            tail,
        )

    def _logprobs(self, index: int, piece: Piece) -> bytes:
        tokenizer = self._job.tokenizer
        if self._job.chat:
            return _encode(chat_logprobs(tokenizer, piece.logprobs))
        return _encode(completion_logprobs(tokenizer, piece.logprobs, self._offsets[index]))

    def closing(self, usage: Usage) -> bytes:
        if not self._job.include_usage:
            return DONE
        tail = b'],"usage":%s}\n\n' % _encode(usage.document())
        return self._head + tail + DONE


def whole_answer(job: Job, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
    """The document of a request that does not stream."""
    document = _head(job, "chat.completion" if job.chat else "text_completion")
    make = _chat_choice if job.chat else _completion_choice
    document["choices"] = [make(job, index, choice) for index, choice in enumerate(choices)]
    document["usage"] = usage.document()
    return _encode(document)


def _head(job: Job, kind: str) -> dict[str, object]:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created_s,
        "model": job.card.name,
        "system_fingerprint": FINGERPRINT,
    }


def _offsets(job: Job, index: int) -> TextOffsets:
    return TextOffsets(
        job.tokenizer, len(job.echoes[index]), skip_special_tokens=job.skip_special_tokens
    )


def _completion_choice(job: Job, index: int, choice: WholeChoice) -> dict[str, object]:
    echo = job.echoes[index]
    logprobs = None
    if job.requests[index].params.logprobs is not None:
        logprobs = completion_logprobs(job.tokenizer, choice.logprobs, _offsets(job, index))
    return {
        "index": index,
        "text": echo + "".join(choice.text),
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        **_shown_ids(job, choice),
    }


def _chat_choice(job: Job, index: int, choice: WholeChoice) -> dict[str, object]:
    logprobs = None
    if job.requests[index].params.logprobs is not None:
        logprobs = chat_logprobs(job.tokenizer, choice.logprobs)
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        **_shown_ids(job, choice),
    }


def _shown_ids(job: Job, choice: WholeChoice) -> dict[str, object]:
    return {"token_ids": choice.token_ids} if job.return_token_ids else {}
