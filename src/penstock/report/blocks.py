"""Pieces of the page that more than one section uses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class Cell:
    text: str
    change: str = ""
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    label: str
    unit: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """``caption`` heads a group of rows; ``columns`` are the same for all groups of a table."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
