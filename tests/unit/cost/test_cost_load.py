"""Choosing a cost model and rebuilding it from a document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cost_fleet import LLAMA2_70B, node

from penstock.cost.load import cost_from_dict, cost_model
from penstock.cost.roofline import RooflineCost
from penstock.cost.tables import LayerTableCost
from penstock.errors import SpecError

ROW = "llama2_70b,A100,1,3000,1,200,10,1000,1\n"
HEADER = (
    "model,machine,num_layers,kv_cache_capacity_entries,prompt_max_requests,prompt_max_tokens,"
    "decode_max_tokens,decode_max_context_tokens,max_num_layers\n"
)


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    machine = tmp_path / "llama2_70b" / "a100"
    machine.mkdir(parents=True)
    for phase in ("prompt", "decode"):
        (machine / f"{phase}_bs2time.csv").write_text("0,0\n10,1\n")
    (tmp_path / "node_capacity.csv").write_text(HEADER + ROW)
    return tmp_path


def test_tables_when_given_else_the_roofline(profiles: Path) -> None:
    """A profile folder chooses the tables."""
    assert isinstance(cost_model(LLAMA2_70B, profiles), LayerTableCost)
    assert isinstance(cost_model(LLAMA2_70B), RooflineCost)


def test_documents_rebuild_the_model(profiles: Path) -> None:
    """A model survives JSON: the rebuilt one gives the same times and the same document."""
    for cost in (
        cost_model(LLAMA2_70B, profiles),
        LayerTableCost(LLAMA2_70B, profiles, decode_of_one_doubles=False),
        cost_model(LLAMA2_70B, gpu_memory_utilization=0.8),
    ):
        document = json.loads(json.dumps(cost.to_dict()))
        rebuilt = cost_from_dict(document, LLAMA2_70B)
        assert rebuilt.to_dict() == cost.to_dict()
        at = (7, 1, 900)
        assert rebuilt.layer_timer(node("A100"))(*at) == cost.layer_timer(node("A100"))(*at)


def test_changed_tables_are_noticed(profiles: Path) -> None:
    """A plan made with other tables is refused."""
    document = cost_model(LLAMA2_70B, profiles).to_dict()
    (profiles / "llama2_70b" / "a100" / "prompt_bs2time.csv").write_text("0,0\n10,2\n")
    with pytest.raises(SpecError, match="have changed since the plan"):
        cost_from_dict(document, LLAMA2_70B)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, r"cost\.kind: unknown cost model"),
        ({"kind": "oracle"}, r"cost\.kind.*oracle.*use roofline or layer-table"),
        ({"kind": "layer-table"}, r"cost\.directory"),
        ({"kind": "layer-table", "directory": "x", "over_full": "?"}, r"cost\.over_full"),
        ({"kind": "layer-table", "directory": "x", "decode_of_one_doubles": 1}, "true or false"),
        ({"kind": "roofline", "gpu_memory_utilization": "much"}, "gpu_memory_utilization"),
        ({"kind": "layer-table", "directory": "/nowhere"}, "/nowhere: is not a folder"),
    ],
)
def test_bad_documents(document: dict[str, object], message: str) -> None:
    """A broken document names its key."""
    with pytest.raises(SpecError, match=message):
        cost_from_dict(document, LLAMA2_70B)
