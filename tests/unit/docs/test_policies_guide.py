"""The program of docs/guides/policies.md runs and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from penstock.policy import engine_routing
from penstock.sim.engines import EngineFleet, EngineOptions, simulate_engines

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "policies.md"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    """Everything the page's code blocks define, run in order."""
    names: dict[str, Any] = {"__name__": "policies_guide"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_shortest_prompt_goes_first(program: dict[str, Any]) -> None:
    """One slot: vLLM serves in order of arrival, the new scheduler in order of length."""
    in_turn, shortest = program["in_turn"], program["shortest"]
    assert in_turn == sorted(in_turn)
    assert shortest == sorted(shortest, reverse=True)


def test_long_prompts_have_an_engine_of_their_own(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered as the page says, the router sends 300 tokens and more to the last engine."""
    make = {"long-apart": lambda seed: program["LongPromptsApart"]()}
    monkeypatch.setattr(engine_routing, "ROUTERS", {**engine_routing.ROUTERS, **make})
    fleet = EngineFleet.replicas(program["spec"], 3, "long-apart")
    run = simulate_engines(fleet, program["traffic"], program["cost"], EngineOptions())
    engines = [run.routes[index][0] for index in run.requests.route_index]
    assert engines[0] == engines[1] == fleet.engines[-1].name
    assert fleet.engines[-1].name not in engines[2:]


def test_the_autoscaler_opens_engines(program: dict[str, Any]) -> None:
    """Requests wait for the one slot, so that more than one engine is used; all are served."""
    run = program["scaled"]
    assert len(set(run.requests.route_index.tolist())) > 1
    assert (run.requests.generated_tokens == 50).all()
