"""Sequences that were let go not long ago: what still arrives for them is late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

REMEMBERED = 65_536


class Recent:
    """The last ``REMEMBERED`` numbers that were added."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[int, None] = OrderedDict()

    def add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._numbers[number] = None
        while len(self._numbers) > REMEMBERED:
            self._numbers.popitem(last=False)

    def __contains__(self, number: int) -> bool:
        return number in self._numbers
