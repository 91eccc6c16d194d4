"""Server-sent events of one completion: which tokens came when.

A chunk may carry several tokens; they all get its arrival time. Counts come, in this order, from
token ids, from log probabilities, from the running usage of the chunk, else one token per chunk
with text. Where the usage at the end names more tokens than were seen, nobody knows the chunks of
the rest: they get the time of the last chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


class StreamProblem(Exception):  # noqa: N818 - what the server reports, not a fault of ours
    """The stream holds an error of the server, or something that is no completion."""


@dataclass(slots=True)
class Stream:
    """Collects the events of one answer. ``tokens`` are (seconds, how many came then)."""

    tokens: list[tuple[float, int]] = field(default_factory=list)
    prompt_tokens: int | None = None
    done: bool = False
    _rest: bytes = b""
    _counted: int = 0
    _total: int | None = None

    def feed(self, data: bytes, now_s: float) -> None:
        """Take bytes as they come. Raises ``StreamProblem``."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    def times_s(self) -> list[float]:
        """One time per output token, ascending."""
        times = [at for at, count in self.tokens for _ in range(count)]
        total = self._total
        if not times or total is None or total == len(times):
            return times
        if total > len(times):
            return times + [times[-1]] * (total - len(times))
        # More chunks with text than tokens: the first and the last are certain.
        return times[: max(total - 1, 0)] + times[-1:]

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            document = json.loads(data)
        except ValueError:
            raise StreamProblem(f"not JSON: {data[:80]!r}") from None
        if not isinstance(document, dict):
            raise StreamProblem(f"not an object: {data[:80]!r}")
        if "error" in document:
            raise StreamProblem(message_of(document))
        usage = document.get("usage")
        choices = document.get("choices")
        if isinstance(usage, Mapping):
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
            self._total = usage.get("completion_tokens", self._total)
        for choice in choices or ():
            count = _count(choice)
            if count is None:
                running = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
                count = int(bool(_text(choice))) if running is None else running - self._counted
            if count > 0:
                self._counted += count
                self.tokens.append((now_s, count))


def message_of(document: Mapping[str, object]) -> str:
    """The text of an error document in OpenAI's form, or in any other."""
    error = document.get("error", document)
    if isinstance(error, Mapping):
        error = error.get("message", error)
    return str(error)[:300]


def _count(choice: Mapping[str, object]) -> int | None:
    """Tokens that the choice itself lists; None where it lists none."""
    ids = choice.get("token_ids")
    if isinstance(ids, list):
        return len(ids)
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, Mapping):
        listed = logprobs.get("tokens", logprobs.get("content"))
        if isinstance(listed, list):
            return len(listed)
    return None


def _text(choice: Mapping[str, object]) -> object:
    delta = choice.get("delta")
    return delta.get("content") if isinstance(delta, Mapping) else choice.get("text")
