"""Plans as documents: what is written reads back, and mistakes are one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_fleets import problem_of

from penstock.errors import SpecError, StorageError
from penstock.plan.document import (
    format_plan,
    plan_from_dict,
    plan_summary,
    plan_to_dict,
    read_plan,
    write_plan,
)
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions
from penstock.plan.registry import planner

OPTIONS = PlannerOptions(objective="maxflow", seed=3)


def _plan(name: str = "swarm", *, partial: bool = False) -> Plan:
    task = problem_of([("A100", 3), ("L4", 5), ("T4", 2)], "llama2-70b", regions=2, partial=partial)
    return planner(name).plan(task, OPTIONS)


@pytest.mark.parametrize("name", ["swarm", "petals", "homogeneous", "separate+"])
def test_a_plan_reads_back_equal_and_byte_for_byte(name: str, tmp_path: Path) -> None:
    """Writing what was read gives the same bytes; the plan is equal in every field."""
    plan = _plan(name)
    path = tmp_path / "plan.yaml"
    write_plan(plan, path)
    again = read_plan(path)
    assert again == plan
    assert format_plan(again).encode() == path.read_bytes()


def test_plain_data_round_trips() -> None:
    """The dictionary form, as runs embed it, gives the plan back."""
    plan = _plan()
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_the_head_of_the_file_tells_people_what_it_is() -> None:
    """Planner, model, cluster, value, bound and gap come first, as comments."""
    first, second, third, *_ = format_plan(_plan()).splitlines()
    assert first == "# Penstock plan by swarm: llama2-70b on fleet"
    assert second.startswith("# maxflow ")
    assert "gap" in second
    assert third.startswith("# 10 engines, ")


def test_the_summary_holds_what_programs_ask_for() -> None:
    """Keys of `penstock plan --format json`."""
    plan = _plan()
    summary = plan_summary(plan)
    for key in ("planner", "objective", "value", "bound", "gap", "proved_optimal", "seed",
                "engines", "unused", "reasons", "max_flow_tokens_per_s"):  # fmt: skip
        assert key in summary
    assert summary["planner"] == "swarm"
    assert summary["seed"] == 3
    engines = summary["engines"]
    assert isinstance(engines, list)
    assert len(engines) == len(plan.engines)


def _data() -> dict[str, Any]:
    return copy.deepcopy(plan_to_dict(_plan()))


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.__setitem__(key, value)


def _engine(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["engines"][0].__setitem__(key, value)


def _leg(position: int, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["legs"][0].__setitem__(position, value)


def _drop_first_stage(data: dict[str, Any]) -> None:
    first = [e["name"] for e in data["engines"] if e["stages"][0][1] == 0]
    data["engines"] = [e for e in data["engines"] if e["name"] not in first]
    data["legs"] = [leg for leg in data["legs"] if not set(leg[:2]) & set(first)]


MISTAKES: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("unknown key", _set("planer", "x"), r"planer: unknown key; did you mean 'planner'"),
    ("missing key", lambda d: d.pop("legs"), r"legs: key is missing"),
    ("no plan", lambda d: d.pop("penstock_plan"), r"not a Penstock plan"),
    ("version", _set("penstock_plan", 9), r"penstock_plan: this version reads plan format 1"),
    ("objective", _set("objective", "maxflo"), r"objective: .*did you mean 'maxflow'"),
    ("nan", _set("value", float("nan")), r"value: must be a finite number"),
    ("negative", _set("value", -1.0), r"value: must be 0 or more"),
    ("text", _set("seed", "0"), r"seed: must be a whole number"),
    ("router", lambda d: d["routing"].__setitem__("router", "swam"), r"did you mean 'swarm'"),
    ("mark", lambda d: d["routing"].__setitem__("kv_high_water_mark", 1.5), r"between 0 and 1"),
    ("engine key", _engine("rolle", "both"), r"engines\[0\].rolle: unknown key"),
    ("kv", _engine("kv_capacity_layer_tokens", -5), r"kv_capacity_layer_tokens: must be a whole"),
    ("node", _engine("stages", [["A100-7", 0, 4]]), r"no such node .*did you mean 'A100-2'"),
    ("layers", _engine("stages", [["A100-0", 4, 4]]), r"layers must follow each other"),
    ("beyond", _engine("stages", [["A100-0", 70, 99]]), r"layers must follow each other"),
    ("stage row", _engine("stages", [["A100-0", 4]]), r"must be \[node, first layer"),
    ("no stages", _engine("stages", []), r"an engine needs a stage"),
    ("uncovered", _drop_first_stage, r"engines: layer 0 of 80 is on no engine"),
    ("leg end", _leg(1, "nobody"), r"legs\[0\]: no such engine"),
    ("leg flow", _leg(2, -3.0), r"legs\[0\]: must be 0 or more"),
    ("leg row", lambda d: d["legs"].__setitem__(0, ["a"]), r"must be \[from, to, flow, capacity\]"),
    ("repeated leg", lambda d: d["legs"].append(list(d["legs"][0])), r"the leg is repeated"),
    ("engines", _set("engines", []), r"engines: a plan needs an engine"),
    ("no legs", _set("legs", []), r"no leg leads from the coordinator"),
    ("names", lambda d: d["engines"].append(dict(d["engines"][0])), r"the name is taken"),
    ("cluster", _set("cluster", {"nods": []}), r"cluster"),
    ("model", _set("model", 7), r"model: must be a mapping"),
]


@pytest.mark.parametrize(
    ("change", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_one_line_with_file_key_and_fix(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    """Whatever is wrong, the error names the file and the key, on one line."""
    data = _data()
    change(data)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(SpecError, match=message) as caught:
        read_plan(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))


def test_a_leg_to_layers_that_do_not_follow_is_refused() -> None:
    """Legs must continue where the engine before ended."""
    data = _data()
    inner = next(leg for leg in data["legs"] if leg[0] != "coordinator")
    data["legs"].append([inner[1], inner[0], 1.0, 1.0])
    with pytest.raises(SpecError, match="do not follow each other"):
        plan_from_dict(data)


def test_a_plan_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """A missing folder is one line; no half file appears."""
    with pytest.raises(StorageError):
        write_plan(_plan(), tmp_path / "nowhere" / "plan.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    """A corrupt file names the place."""
    path = tmp_path / "plan.yaml"
    path.write_text("penstock_plan: [1\n")
    with pytest.raises(SpecError, match=r"plan.yaml.*not valid YAML"):
        read_plan(path)
