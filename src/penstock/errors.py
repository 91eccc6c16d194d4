"""Every error a user can meet.

PenstockError
├── InputError        the user's mistake: exit code 2
│   └── SpecError     a file, key or value that cannot be accepted
├── Infeasible        the question has no answer: exit code 3
└── StorageError      the disk refused (full, read-only, gone): exit code 2

Anything else that escapes is a fault of Penstock itself: exit code 1.
"""

from __future__ import annotations

from pathlib import Path


class PenstockError(Exception):
    """Base of all errors that are shown to the user as one line."""

    exit_code = 1


class InputError(PenstockError):
    """The request cannot be carried out as written."""

    exit_code = 2


class SpecError(InputError):
    """One value in one place is wrong.

    Rendered on one line as ``source: key: problem (got value); fix``.
    """

    def __init__(
        self,
        problem: str,
        *,
        source: str | Path | None = None,
        key: str | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.source = str(source) if source is not None else None
        self.key = key
        self.value = value
        self.fix = fix
        super().__init__(self._render())

    def _render(self) -> str:
        place = ": ".join(part for part in (self.source, self.key) if part)
        text = f"{place}: {self.problem}" if place else self.problem
        if self.value is not None:
            text += f" (got {self.value!r})"
        if self.fix:
            text += f"; {self.fix}"
        return text.replace("\n", " ")

    def at(self, source: str | Path, key: str | None = None) -> SpecError:
        """Return the same error, placed in ``source`` (and below ``key``)."""
        joined = ".".join(part for part in (key, self.key) if part) or None
        return SpecError(
            self.problem,
            source=self.source or source,
            key=joined,
            value=self.value,
            fix=self.fix,
        )


class StorageError(InputError):
    """A file or folder cannot be read or written."""


class Infeasible(PenstockError):  # noqa: N818 - an outcome, not a fault
    """No plan meets the request; says which bound binds and the cheapest way out."""

    exit_code = 3

    def __init__(self, reason: str, *, binding: str | None = None, fix: str | None = None) -> None:
        self.reason = reason
        self.binding = binding
        self.fix = fix
        text = reason
        if binding:
            text += f" [binding: {binding}]"
        if fix:
            text += f"; cheapest fix: {fix}"
        super().__init__(text.replace("\n", " "))
