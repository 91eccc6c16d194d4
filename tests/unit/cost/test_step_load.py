"""Step cost models through their documents: the same seconds come back, or one clear line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_operator_tables import write_tables
from test_step_table import HEAD, POINTS, write

from penstock.cost.base import Provenance
from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.linear import DecodeLine, DistServeCost, LinearCoefficients, LinearStepCost
from penstock.cost.load import step_cost_from_dict
from penstock.cost.operator_tables import OperatorTableCost
from penstock.cost.step_coefficients import bundled_step_coefficients
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.step_table import StepTable
from penstock.cost.steps import EngineShape, StepCostModel, stage_timers
from penstock.errors import SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

MODEL = load_model("llama3.1-8b")
OPT = load_model("opt-13b")
SMALL = LinearCoefficients(0.01, 1e-4, 1e-9, DecodeLine(0.01, 1e-7, 1e-5))
LARGE = replace(SMALL, decode_large=DecodeLine(0.02, 2e-7, 3e-5), large_batch=95)
LINEAR = {"kind": "linear", "kv_tokens": 9, "prefill_s": [1.0, 0, 0], "decode_s": [1.0, 0, 0]}


def models(folder: Path) -> list[tuple[StepCostModel, EngineShape]]:
    """One cost model of every kind, with an engine it can price."""
    write_tables(folder)
    l40s, a100 = (EngineShape(catalogue().get(name)) for name in ("L40S", "A100-80GB"))
    told = Provenance("measured", "our box", error="3 %", domain="batch <= 64", notes=("cold",))
    return [
        (StepRoofline(MODEL, engine="sglang", enforce_eager=True), l40s),
        (StepTable(MODEL, write(folder, HEAD + POINTS)), l40s),
        (OperatorTableCost(MODEL, folder, "t", max_tokens=2048), a100),
        (LinearStepCost(MODEL, SMALL, 1000), a100),
        (LinearStepCost(MODEL, LARGE, 1000, told), a100),
        (DistServeCost(OPT, "vllm"), a100),
        (DistServeHostCost(OPT), replace(a100, pipeline_parallel_size=2)),
    ]


def test_documents_rebuild_the_model(tmp_path: Path) -> None:
    """Through JSON come the same seconds, memory, provenance and document."""
    for cost, shape in models(tmp_path):
        rebuilt = step_cost_from_dict(json.loads(json.dumps(cost.to_dict())), cost.model)
        assert type(rebuilt) is type(cost)
        assert rebuilt.to_dict() == cost.to_dict()
        assert rebuilt.provenance == cost.provenance
        assert rebuilt.kv_capacity_tokens(shape) == cost.kv_capacity_tokens(shape)
        for mine, theirs in zip(
            stage_timers(rebuilt, shape), stage_timers(cost, shape), strict=True
        ):
            for seqs in (1, 3, 100):
                assert mine.decode_s(seqs, 50 * seqs) == theirs.decode_s(seqs, 50 * seqs)
            assert mine.step_s([(40, 64)], 2, 90) == theirs.step_s([(40, 64)], 2, 90)


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    """Measurements that changed after a document was written are refused, unless it names none."""
    table = StepTable(MODEL, write(tmp_path, HEAD + POINTS)).to_dict()
    write(tmp_path, HEAD + POINTS.replace("46 ms", "47 ms"))
    with pytest.raises(SpecError, match=r"times\.yaml: cost\.digest: .* have changed"):
        step_cost_from_dict(table, MODEL)
    now = step_cost_from_dict({**table, "digest": None}, MODEL)
    assert now.to_dict()["digest"] != table["digest"]
    write_tables(tmp_path)
    operators = OperatorTableCost(MODEL, tmp_path, "t").to_dict()
    write_tables(tmp_path, send=False)
    with pytest.raises(SpecError, match=r"cost\.digest: .* have changed"):
        step_cost_from_dict(operators, MODEL)


def test_coefficients_of_its_own_are_not_forgotten() -> None:
    """A roofline with other coefficients is not rebuilt with the bundled ones."""
    other = replace(bundled_step_coefficients(), source="a fit of mine")
    document = StepRoofline(MODEL, coefficients=other).to_dict()
    with pytest.raises(SpecError, match=r"cost\.coefficients.*a fit of mine.*remove the key"):
        step_cost_from_dict(document, MODEL)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, r"^cost\.kind: key is missing; use one of step-roofline"),
        ({"kind": "step-rofline"}, r"cost\.kind.*step-rofline.*did you mean 'step-roofline'"),
        ({"kind": "roofline"}, r"cost\.kind.*whole engines.*use one of step-roofline"),
        ({"kind": 3}, r"cost\.kind: .*got 3"),
        ({"kind": "step-roofline", "engin": "vllm"}, r"cost\.engin: unknown key.*'engine'"),
        ({"kind": "step-roofline", "engine": "vlm"}, r"cost\.engine: .*'vlm'.*'vllm'"),
        ({"kind": "step-roofline", "enforce_eager": "no"}, r"cost\.enforce_eager: "),
        ({"kind": "step-table"}, r"cost\.path: key is missing"),
        ({"kind": "step-table", "path": "/nowhere.yaml"}, r"/nowhere\.yaml"),
        ({"kind": "operator-tables", "directory": "/nowhere", "tag": "t"}, "no such operator"),
        ({"kind": "operator-tables", "directory": "/x", "tag": 1}, r"cost\.tag"),
        ({"kind": "linear", "kv_tokens": 9, "prefill_s": [1.0]}, r"cost\.(prefill|decode)_s"),
        ({**LINEAR, "kv_tokens": 0}, r"cost\.kv_tokens: must be at least 1"),
        ({**LINEAR, "prefill_s": [1.0, 2.0]}, r"cost\.prefill_s"),
        ({**LINEAR, "decode_s": [1.0, -1e-9, 0]}, r"cost\.decode_s\[1\]: must be at least 0"),
        ({**LINEAR, "decode_s": [0, 0, 0]}, r"cost\.decode_s: steps would take no time"),
        ({**LINEAR, "decode_s": [float("nan"), 0, 0]}, r"cost\.decode_s\[0\]"),
        ({**LINEAR, "large_batch": 5}, r"cost\.large_batch: .*belong together"),
        ({**LINEAR, "provenance": {"kind": "guess", "source": ""}}, r"cost\.provenance\.kind"),
        ({"kind": "distserve", "engine": "trt"}, r"cost\.engine"),
    ],
)
def test_bad_documents(document: dict[str, object], message: str) -> None:
    """A broken document is refused in one line that names its key."""
    with pytest.raises(SpecError, match=message) as caught:
        step_cost_from_dict(document, MODEL)
    assert "\n" not in str(caught.value)
