"""Stop strings in a text that arrives in pieces.

The text ends where the first stop string is complete, as if it arrived a character at a time: how
it was cut into pieces never matters. Text that may be the start of a stop string waits.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """``push`` text, get the text that may be shown; ``matched`` is set once a stop is complete."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """``include``: the stop string itself is shown (``include_stop_str_in_output``)."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is safe to show now; nothing more after a match."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = self._first_complete(text)
        if found is not None:
            end, self.matched = found
            self._held = ""
            return text[: end if self._include else end - len(self.matched)]
        keep = self._possible_start(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """The text that waited, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str) -> tuple[int, str] | None:
        """End of the stop that is complete first and, of several, the longest one."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0:
                ranked = (at + len(stop), -len(stop))
                best = ranked if best is None else min(best, ranked)
        if best is None:
            return None
        end, negative = best
        return end, text[end + negative : end]

    def _possible_start(self, text: str) -> int:
        """Where the longest suffix begins that a stop string begins with."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            suffix = text[at:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return at
        return len(text)
