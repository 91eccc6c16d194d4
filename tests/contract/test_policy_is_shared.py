"""Decisions live in ``policy`` alone: drivers define none of the methods that decide."""

from __future__ import annotations

import ast
from pathlib import Path

import penstock

DECISIONS = {"next_batch", "route", "next_leg", "offer", "preemption_victim"}
SOURCE = Path(penstock.__file__).parent


def test_the_simulator_defines_no_decision():
    """No function under sim/ has the name of a decision."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for path in sorted((SOURCE / "sim").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in DECISIONS
    ]
    assert found == []
