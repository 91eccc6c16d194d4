"""Where the numbers of a report come from, as label and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from penstock.cost.base import Provenance, Source
from penstock.measure.metrics import TimeBand
from penstock.measure.run import Run
from penstock.plan.plan import Plan

_LONGEST = 160


@dataclass(frozen=True)
class Fact:
    label: str
    text: str


BANDED = ("ttft", "tpot")
"""Latencies whose prediction has a band."""


def band_sentence(band: TimeBand) -> str:
    """What a band says, and where the cost model goes beyond its measurements."""
    text = (
        f"band: 80 % of measured times lie between {band.low:.2f} and {band.high:.2f} times the "
        "prediction"
    )
    if band.extrapolated:
        text += f"; extrapolated to {', '.join(band.extrapolated)}"
    return text


def planner_of(run: Run) -> str | None:
    """Name of the planner whose plan ``run`` carried out, from its header or its name."""
    plan = run.header.get("plan")
    named = plan.get("planner") if isinstance(plan, Mapping) else run.header.get("planner")
    return named if isinstance(named, str) and named else run.name or None


def run_facts(run: Run) -> tuple[Fact, ...]:
    """Everything the header says, short; documents are cut to their scalar entries."""
    start, end = run.window_s
    facts = [Fact("window", f"{start:,.1f} s to {end:,.1f} s ({end - start:,.1f} s)")]
    semantics = (
        "the prompt iteration yields the first output token"
        if run.first_iteration_is_token
        else "a request of n output tokens runs n decode iterations after its prompt"
    )
    facts.append(Fact("tokens", semantics))
    for key, value in run.header.items():
        if key in {"plan", "cost"}:
            continue
        facts += _facts(str(key), value)
    facts += [Fact(f"counter: {key}", f"{value:,}") for key, value in run.counters.items()]
    return tuple(facts)


def cost_facts(
    plans: Sequence[Plan], runs: Sequence[Run]
) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """The cost models behind plans and runs, each once, with who uses it."""
    documents: dict[str, tuple[list[str], tuple[Fact, ...]]] = {}
    entries: list[tuple[str, object]] = [(f"plan {plan.planner}", plan.cost) for plan in plans]
    entries += [(f"run {run.name}", run.header.get("cost")) for run in runs]
    for user, cost in entries:
        if not isinstance(cost, Mapping) or not cost:
            continue
        document = cost.get("document", cost)
        if not isinstance(document, Mapping):
            continue
        facts = tuple(fact for key, value in document.items() for fact in _facts(str(key), value))
        key = repr(facts)
        documents.setdefault(key, ([], facts))[0].append(user)
    return tuple((", ".join(users), facts) for users, facts in documents.values())


def run_sources(runs: Sequence[Run]) -> tuple[Provenance, ...]:
    """The sources of the cost models' numbers that runs name in their headers, each once."""
    found: dict[Provenance, None] = {}
    for run in runs:
        cost = run.header.get("cost")
        entries = cost.get("provenance") if isinstance(cost, Mapping) else None
        for entry in entries if isinstance(entries, list | tuple) else ():
            if isinstance(entry, Mapping) and entry.get("kind") in get_args(Source):
                notes = entry.get("notes")
                text = {key: str(entry.get(key) or "") for key in ("source", "error", "domain")}
                known = tuple(map(str, notes)) if isinstance(notes, list | tuple) else ()
                found[Provenance(cast(Source, entry["kind"]), **text, notes=known)] = None
    return tuple(found)


def _facts(key: str, value: object, depth: int = 0) -> list[Fact]:
    if value is None or value in ("", [], {}, ()):
        return []
    if isinstance(value, Mapping):
        if depth >= 2:
            return [Fact(key, f"{len(value):,} entries")]
        return [
            fact
            for inner, item in value.items()
            for fact in _facts(f"{key}.{inner}", item, depth + 1)
        ]
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value) and len(value) <= 6:
            return [Fact(key, "; ".join(value))]
        if all(isinstance(item, Mapping) for item in value) and len(value) <= 6 and depth < 2:
            return [
                fact
                for i, item in enumerate(value, start=1)
                for fact in _facts(f"{key} {i}", item, depth + 1)
            ]
        if len(value) <= 6 and all(isinstance(item, int | float) for item in value):
            return [Fact(key, ", ".join(f"{item:g}" for item in value))]
        return [Fact(key, f"{len(value):,} entries")]
    text = str(value)
    return [Fact(key, text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")]
