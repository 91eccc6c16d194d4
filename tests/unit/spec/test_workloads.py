"""Workload and model files: every form, strictness, round trips, presets and templates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.errors import SpecError
from penstock.spec.arrivals import BucketArrivals, GammaArrivals, PoissonArrivals
from penstock.spec.lengths import EmpiricalLengths, fixed_lengths
from penstock.spec.load import (
    load_cluster,
    load_model,
    load_workload,
    model_from_dict,
    model_presets,
    model_to_dict,
    workload_from_dict,
    workload_presets,
    workload_to_dict,
)
from penstock.spec.templates import example_files
from penstock.spec.traces import write_trace
from penstock.spec.workload import SLO, ClosedLoop, Request, Saturating, Workload
from penstock.spec.workloads import with_rate

BASE: dict[str, Any] = {
    "lengths": {"prompt": 10, "output": 5},
    "arrivals": {"poisson": {"rate": 2}},
}

LENGTHS: list[Any] = [
    {"prompt": 10, "output": 5},
    {"prompt": {"uniform": [1, 9]}, "output": {"lognormal": {"mean": 80, "cv": 1}}},
    {"prompt": {"quantiles": [[0, 1], [1, 9]]}, "output": 3, "correlation": 0.5},
    {"prompt": {"lognormal": {"median": 80, "sigma": 1, "max": 99}}, "output": 3},
    {"table": [[1, 2], [3, 4]]},
    {"preset": "azure-conv"},
    "azure_code",
]
ARRIVALS: list[Any] = [
    {"poisson": {"rate": "90 /min"}},
    {"poisson": {"request_rate": 3}},
    {"gamma": {"rate": 3, "cv": 2}},
    {"uniform": {"rate": 3}},
    {"bucket": {"rate": 3, "histogram": [1, 0, 4], "bucket": "2 s"}},
    {"all_at_once": {"count": 7}},
    {"closed_loop": {"concurrency": 8}},
    {"closed_loop": {"max_concurrency": 8, "interval": "10 ms"}},
    {"saturating": {}},
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("arrivals", ARRIVALS, ids=str)
def test_every_form_round_trips(lengths: Any, arrivals: Any) -> None:
    """A workload file becomes a value, plain data, JSON and the same value again."""
    data = {
        "lengths": lengths,
        "arrivals": arrivals,
        "warmup": "10 s",
        "classes": [
            {"name": "a", "share": 2, "ttft": "500 ms"},
            {"name": "b", "priority": 3, "tpot": "1.7x"},
        ],
    }
    workload = workload_from_dict(data, "w.yaml")
    plain = json.loads(json.dumps(workload_to_dict(workload)))
    assert workload_from_dict(plain, "w.yaml") == workload
    assert workload.name == "w"
    assert workload.duration_s == 610
    assert workload.classes[0].slo.ttft_s == 0.5


def test_forms_mean_what_they_say() -> None:
    """Spot checks of the values behind the words."""
    assert workload_from_dict(BASE).lengths == fixed_lengths(10, 5)
    assert workload_from_dict({**BASE, "arrivals": ARRIVALS[0]}).arrivals == PoissonArrivals(1.5)
    assert workload_from_dict({**BASE, "arrivals": ARRIVALS[8]}).arrivals == Saturating()
    classes = [{"name": "a", "tpot": " 1.2X "}, {"name": "b", "tpot": "best effort"}]
    urgent, rest = workload_from_dict({**BASE, "classes": classes}).classes
    assert (urgent.slo.tpot_s, urgent.slo.tpot_multiple) == (None, 1.2)
    assert rest.slo == SLO()
    slo = workload_from_dict({**BASE, "slo": {"tpot": "50 ms"}}).classes[0]
    assert (slo.name, slo.slo.tpot_s) == ("all", 0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lenghts": 1}, "lenghts: unknown key; did you mean 'lengths'"),
        ({"lengths": None}, "lengths: key is missing"),
        ({"arrivals": None}, "arrivals: key is missing"),
        ({"lengths": "azur"}, "lengths: unknown lengths (got 'azur'); did you mean 'azure-"),
        ({"lengths": {"prompt": 5}}, "prompt and output go together"),
        ({"lengths": {"prompt": 0, "output": 1}}, "at least 1"),
        ({"lengths": {"prompt": {"uniform": [9, 1]}, "output": 1}}, "1 <= low <= high"),
        ({"lengths": {"prompt": {"lognormal": {"mean": 1}}, "output": 1}}, "mean and cv"),
        ({"arrivals": {"poisson": {"rate": 0}}}, "arrivals.poisson.rate: a rate must be greater"),
        ({"arrivals": {"poisson": {"rate": float("inf")}}}, "must be finite"),
        ({"arrivals": {"poison": {"rate": 1}}}, "arrivals"),
        ({"arrivals": {"poisson": {"rate": 1}, "uniform": {"rate": 1}}}, "exactly one of"),
        ({"arrivals": {"closed_loop": {"concurrency": 0}}}, "must be at least 1"),
        ({"arrivals": {"bucket": {"rate": 1, "histogram": [0]}}}, "not all 0"),
        ({"duration": "1 s", "warmup": "2 s"}, "duration: nothing is left to measure"),
        ({"duration": "-1 s"}, "duration: a duration must be 0 or more"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "classes[1].name: class is named twice"),
        ({"classes": [{"name": "a", "share": 0}]}, "classes[0].share: "),
        ({"classes": [{"name": "a", "tftt": 1}]}, "classes[0].tftt: unknown key; did you mean"),
        ({"slo": {"tpot": "x1.2"}}, "slo.tpot: not a limit on the time per output token"),
        ({"slo": {"tpot": "-1.2x"}}, "slo.tpot: not a positive multiple of the baseline"),
        ({"slo": {"tpot": "nanx"}}, "slo.tpot: not a positive multiple of the baseline"),
        ({"slo": {"tpot": "-5 ms"}}, 'or "best effort"'),
        ({"slo": {"ttft": "1.2x"}}, "slo.ttft: "),
        ({"trace": "x.csv"}, "give a trace, requests or arrivals"),
    ],
)
def test_mistakes_name_the_key(changes: dict[str, Any], expected: str) -> None:
    """One line with file, key and fix."""
    data = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    with pytest.raises(SpecError) as caught:
        workload_from_dict(data, "w.yaml")
    assert str(caught.value).startswith("w.yaml: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_traces_beside_the_workload_file(tmp_path: Path) -> None:
    """A relative path is taken from the folder of the workload file, and round-trips."""
    write_trace(tmp_path / "t.csv", [Request(i, i / 4, 5, 6) for i in range(40)])
    path = tmp_path / "w.yaml"
    path.write_text("trace: {file: t.csv, rate: 8, max_requests: 20}\nslo: {ttft: 1 s}\n")
    workload = load_workload(path)
    assert len(workload.trace) == 20
    assert workload.duration_s == pytest.approx(2.5)
    assert {request.class_name for request in workload.requests()} == {"all"}
    again = workload_from_dict(workload_to_dict(workload), path)
    assert list(again.requests()) == list(workload.requests())


def test_a_trace_file_is_a_workload(tmp_path: Path) -> None:
    """A trace alone is enough."""
    write_trace(tmp_path / "t.csv", [Request(i, i / 4, 5, 6) for i in range(40)])
    workload = load_workload(tmp_path / "t.csv")
    assert (workload.name, workload.duration_s) == ("t", 9.75)
    assert len(list(workload.requests())) == 40


def test_inline_requests_round_trip() -> None:
    """Explicit requests are written out, with class, model and prefix."""
    requests = (Request(0, 0.5, 5, 6, "a", "m", (1, 2)), Request(1, 0.5, 7, 8))
    workload = Workload("x", 10.0, trace=requests, source="workload")
    again = workload_from_dict(json.loads(json.dumps(workload_to_dict(workload))))
    assert again == workload


def test_long_tables_go_by_reference(tmp_path: Path) -> None:
    """A table from a file is named with its digest; a changed file is noticed."""
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n" + "".join(f"{i},3\n" for i in range(1, 1000)))
    workload = workload_from_dict({**BASE, "lengths": {"trace": str(path)}}, "w.yaml")
    assert isinstance(workload.lengths, EmpiricalLengths)
    plain = workload_to_dict(workload)
    assert len(json.dumps(plain)) < 500
    assert workload_from_dict(plain, "w.yaml") == workload
    path.write_text(path.read_text() + "7,7\n")
    with pytest.raises(SpecError, match="no longer holds"):
        workload_from_dict(plain, "w.yaml")


def test_histogram_files(tmp_path: Path) -> None:
    """Bucket counts may come from a CSV column."""
    (tmp_path / "h.csv").write_text("bucket,arrivals\n0,4\n1,0\n")
    arrivals = {"bucket": {"rate": 1, "histogram": "h.csv"}}
    workload = workload_from_dict({**BASE, "arrivals": arrivals}, tmp_path / "w.yaml")
    assert workload.arrivals == BucketArrivals((4, 0), 1.0, 3.0)
    (tmp_path / "h.csv").write_text("bucket,arrivals\n0,x\n")
    with pytest.raises(SpecError, match=r"h\.csv:2: arrivals: must be a whole number"):
        workload_from_dict({**BASE, "arrivals": arrivals}, tmp_path / "w.yaml")


def test_workload_presets() -> None:
    """The bundled workloads load; offline is the published feeder, online has a rate to set."""
    assert set(workload_presets()) >= {"azure-conv-offline", "azure-conv-online"}
    offline = load_workload("azure-conv-offline")
    assert offline.arrivals == Saturating(20, 0.8, 0.1)
    assert (offline.duration_s, offline.warmup_s) == (660.0, 60.0)
    online = with_rate(load_workload("Azure_Conv_Online"), 4.0)
    assert online.arrivals == PoissonArrivals(4.0)
    for name in workload_presets():
        workload = load_workload(name)
        assert workload_from_dict(workload_to_dict(workload), workload.source) == workload
    with pytest.raises(SpecError, match="did you mean 'azure-conv-online'"):
        load_workload("azure-conv-onlin")


def test_with_rate_refuses_what_has_no_rate() -> None:
    """A saturating or closed workload has no rate to set; the error names one that has."""
    with pytest.raises(SpecError, match="azure-conv-online"):
        with_rate(load_workload("azure-conv-offline"), 2.0)
    gamma = workload_from_dict({**BASE, "arrivals": {"gamma": {"rate": 3, "cv": 2}}})
    assert with_rate(gamma, 5.0).arrivals == GammaArrivals(5.0, 2.0)
    closed = replace(gamma, arrivals=ClosedLoop(3))
    with pytest.raises(SpecError, match="no request rate"):
        with_rate(closed, 1.0)
    with pytest.raises(SpecError, match="finite"):
        with_rate(gamma, float("inf"))


@pytest.mark.parametrize("name", model_presets())
def test_models_round_trip(name: str) -> None:
    """Every preset survives plain data."""
    model = load_model(name)
    again = model_from_dict(json.loads(json.dumps(model_to_dict(model))))
    assert again == model
    assert again.source == model.source


def test_model_files(tmp_path: Path) -> None:
    """A preset with changes, a config inside YAML, a config.json and its folder."""
    path = tmp_path / "m.yaml"
    path.write_text("preset: llama-2-70b\nname: mine\nweight_dtype: int4\n")
    model = load_model(path)
    assert (model.name, model.weight_dtype, model.num_hidden_layers) == ("mine", "int4", 80)
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
    }
    path.write_text(yaml.safe_dump({"config": config}))
    assert load_model(path).name == "m"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path) == load_model(tmp_path / "config.json")
    (tmp_path / "own.json").write_text(json.dumps(model_to_dict(model)))
    assert load_model(tmp_path / "own.json") == model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preset: llama2-71b\n", "preset: unknown model (got 'llama2-71b'); did you mean"),
        ("presett: x\n", "presett: unknown key; did you mean 'preset'"),
        ("hidden_size: 8\n", "num_hidden_layers: key is missing; or start from `preset:`"),
        ("preset: llama2-7b\nconfig: {}\n", "give a preset or a config, not both"),
        ("preset: llama2-7b\nnum_key_value_heads: 3\n", "does not divide"),
        ("preset: llama2-7b\ndtype: fp12\n", "dtype: "),
        ("config: {hidden_size: 8}\n", "config.num_attention_heads: key is missing"),
    ],
)
def test_bad_model_files(tmp_path: Path, text: str, expected: str) -> None:
    """Mistakes in a model file name the key."""
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


def test_unknown_models_suggest_the_nearest() -> None:
    """A typo in a model name is met with the name that was meant."""
    with pytest.raises(SpecError, match="did you mean 'llama2-70b'"):
        load_model("lama2-70b")
    with pytest.raises(SpecError, match="file not found"):
        load_model("missing.yaml")


def test_templates_load_and_equal_the_examples(tmp_path: Path) -> None:
    """What `init` writes loads as it is, and the examples folder shows the same files."""
    examples = Path(__file__).parents[3] / "examples"
    for name, text in example_files().items():
        (tmp_path / name).write_text(text)
        assert (examples / name).read_text() == text
    cluster = load_cluster(tmp_path / "cluster.yaml")
    assert len(cluster.nodes) == 18
    workload = load_workload(tmp_path / "workload.yaml")
    assert [entry.name for entry in workload.classes] == ["interactive", "batch"]
    assert next(workload.requests()).prompt_tokens > 0
