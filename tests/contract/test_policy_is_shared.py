"""Decisions live in ``policy`` alone: drivers define none of the methods that decide."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import penstock

DECISIONS = {"next_batch", "route", "next_leg", "offer", "preemption_victim"}
SOURCE = Path(penstock.__file__).parent


@pytest.mark.parametrize("driver", ["sim", "serve"])
def test_drivers_define_no_decision(driver: str) -> None:
    """No function of a driver has the name of a decision."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for path in sorted((SOURCE / driver).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in DECISIONS
    ]
    assert found == []
