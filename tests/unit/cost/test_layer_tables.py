"""Layer tables: interpolation, run-time rule, capacities, bad files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cost_fleet import LLAMA2_70B, LLAMA_30B, node
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.tables import LayerTableCost, normalised_model_name, read_latency_table
from penstock.errors import SpecError

MACHINES = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")
HEADER = (
    "model,machine,num_layers,kv_cache_capacity_entries,prompt_max_requests,prompt_max_tokens,"
    "decode_max_tokens,decode_max_context_tokens,max_num_layers"
)


@pytest.fixture
def profiles(reference: Path) -> Path:
    return reference / "helix" / "profiles"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with one model and one machine, as a user would write it."""
    machine = tmp_path / "llama2_70b" / "a100"
    machine.mkdir(parents=True)
    (machine / "prompt_bs2time.csv").write_text("0,0\n100,1\n200,4\n")
    (machine / "decode_bs2time.csv").write_text("0,0\n2,1.0\n10,1.8\n")
    rows = ["llama2_70b,A100,1,3000,1,200,10,1000,2", "llama2_70b,A100,2,2500,1,200,5,500,2"]
    (tmp_path / "node_capacity.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path


@pytest.mark.reference
@pytest.mark.parametrize("model", [LLAMA2_70B, LLAMA_30B], ids=["70B", "30B"])
@pytest.mark.parametrize("machine", MACHINES)
def test_times_equal_numpy_interpolation(profiles: Path, model: object, machine: str) -> None:
    """At every batch size the timer is the sum of both interpolated tables."""
    cost = LayerTableCost(model, profiles)  # type: ignore[arg-type]
    timer = cost.planning_timer(node(machine))
    for phase, call in (("prompt", lambda x: timer(x, 0, 0)), ("decode", lambda x: timer(0, x, 9))):
        path = profiles / cost.profile_name / machine.lower() / f"{phase}_bs2time.csv"
        table = np.loadtxt(path, delimiter=",")
        sizes = np.arange(int(table[-1, 0]) + 1)
        expected = np.interp(sizes, table[:, 0], table[:, 1] / 1000)
        assert [call(int(x)) for x in sizes] == pytest.approx(expected, rel=1e-13, abs=1e-18)


@pytest.mark.reference
def test_figures_of_the_specification(profiles: Path) -> None:
    """Hand-read figures: 70B on T4x4 decodes 20 in 2.9 ms and prefills 1000 tokens in 28 ms."""
    cost = LayerTableCost(LLAMA2_70B, profiles)
    timer = cost.layer_timer(replace(node("T4x4"), machine_type="t4X4"))
    assert timer(1000, 20, 0) == 0.028 + 0.0029
    assert cost.max_layers(node("T4x4")) == 18
    assert cost.kv_capacity_layer_tokens(node("A100"), 12) == 3_377_472
    assert cost.batch_limits(node("A100"), 12).max_prefill_tokens == 3 * 2048
    assert cost.layer_weight_bytes == 1_530_000_000


def test_one_decode_sequence_costs_two_at_run_time_only(small: Path) -> None:
    """The run-time rule doubles a decode batch of one; the planner's timer does not."""
    cost = LayerTableCost(LLAMA2_70B, small)
    assert cost.planning_timer(node("A100"))(0, 1, 0) == 0.0005
    assert cost.interpolate_decode(node("A100"), 1) == 0.0005
    assert cost.layer_timer(node("A100"))(0, 1, 0) == 0.001
    assert cost.layer_timer(node("A100"))(150, 6, 0) == 0.0025 + 0.0014
    plain = LayerTableCost(LLAMA2_70B, small, decode_of_one_doubles=False)
    assert plain.layer_timer(node("A100"))(0, 1, 0) == 0.0005


def test_layers_beyond_the_profile(small: Path) -> None:
    """Beyond the table the KV memory is that of the largest count, or shrinks on a line."""
    forced = LayerTableCost(LLAMA2_70B, small)
    honest = LayerTableCost(LLAMA2_70B, small, over_full="linear")
    assert [forced.kv_capacity_layer_tokens(node("A100"), k) for k in (0, 1, 2, 4)] == [
        0,
        3000,
        2500,
        2500,
    ]
    assert [honest.kv_capacity_layer_tokens(node("A100"), k) for k in (2, 3, 9)] == [2500, 2000, 0]
    assert forced.batch_limits(node("A100"), 7) == forced.batch_limits(node("A100"), 2)


@given(tokens=st.integers(0, 200), seqs=st.integers(0, 10))
def test_dense_lookup_equals_the_interpolation(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, seqs: int
) -> None:
    """The precomputed lookup holds exactly what interpolating one size gives."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text("0,0\n7,1.3\n100,1.7\n200,9.1\n")
    table = read_latency_table(path)
    assert table.dense[tokens] == table.at(tokens)
    assert table.dense[seqs] == table.at(seqs)


def test_batches_outside_the_table_are_refused(small: Path) -> None:
    """A batch beyond the last point names the file and the range."""
    cost = LayerTableCost(LLAMA2_70B, small)
    with pytest.raises(SpecError, match=r"prompt_bs2time.*batch of 201.*0 to 200"):
        cost.layer_timer(node("A100"))(201, 0, 0)
    with pytest.raises(SpecError, match=r"decode_bs2time.*batch of 11"):
        cost.layer_timer(node("A100"))(0, 11, 0)
    with pytest.raises(SpecError, match="batch of 11"):
        cost.interpolate_decode(node("A100"), 11)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("llama2_70b/a100/prompt_bs2time.csv", "0,0\n5,x\n", "line 2: must be a number"),
        ("llama2_70b/a100/prompt_bs2time.csv", "0,0\n5,nan\n", "line 2: must be a number"),
        ("llama2_70b/a100/prompt_bs2time.csv", "0,0\n5,1\n4,1\n", "line 3: batch sizes"),
        ("llama2_70b/a100/prompt_bs2time.csv", "1,0\n5,1\n", "first at batch size 0"),
        ("llama2_70b/a100/decode_bs2time.csv", "", "at least two points"),
        ("llama2_70b/a100/decode_bs2time.csv", "0,0,1\n", "two columns"),
        ("node_capacity.csv", HEADER + "\nllama2_70b,A100,1,7\n", "column .* is missing"),
        ("node_capacity.csv", HEADER + "\nllama2_70b,A100,2,7,1,1,1,1,1\n", "must count 1, 2"),
        ("node_capacity.csv", HEADER + "\n", "no profile of machine type 'A100'"),
    ],
)
def test_bad_files_are_named(small: Path, file: str, text: str, message: str) -> None:
    """A broken table is one line with file and line."""
    (small / file).write_text(text)
    with pytest.raises(SpecError, match=message):
        LayerTableCost(LLAMA2_70B, small).layer_timer(node("A100"))


def test_unknown_machine_model_and_folder(small: Path, tmp_path: Path) -> None:
    """What is not profiled is refused with what is."""
    with pytest.raises(SpecError, match=r"machine type 'H100'.*profiled: a100"):
        LayerTableCost(LLAMA2_70B, small).max_layers(node("H100"))
    with pytest.raises(SpecError, match="no profiles of model 'llama-30b'"):
        LayerTableCost(LLAMA_30B, small)
    with pytest.raises(SpecError, match="not a folder"):
        LayerTableCost(LLAMA2_70B, tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("llama2-70b", "llama2_70b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama2_70b"),
        ("llama-30b", "llama1_30b"),
        ("LLaMA-1 30B", "llama1_30b"),
    ],
)
def test_model_names_meet_folder_names(name: str, folder: str) -> None:
    """Spelling, organisation and suffixes of a model name do not matter."""
    assert normalised_model_name(name) == normalised_model_name(folder)


@pytest.mark.reference
def test_capacities_of_every_row(profiles: Path) -> None:
    """Every row of the capacity table is what the model answers."""
    costs = {
        c.profile_name: c for c in (LayerTableCost(m, profiles) for m in (LLAMA2_70B, LLAMA_30B))
    }
    with (profiles / "node_capacity.csv").open() as file:
        for row in csv.DictReader(file):
            cost, machine, k = costs[row["model"]], node(row["machine"]), int(row["num_layers"])
            assert cost.kv_capacity_layer_tokens(machine, k) == int(
                row["kv_cache_capacity_entries"]
            )
            assert cost.batch_limits(machine, k).max_decode_seqs == int(row["decode_max_tokens"])
            assert cost.max_layers(machine) == int(row["max_num_layers"])
