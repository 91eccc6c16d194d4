"""Steps priced from cuts: the law of a known machine, as a cost model that plans can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cut_machine as known
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import api
from penstock.cost.fingerprint_file import write_fingerprint
from penstock.cost.fingerprint_steps import FingerprintStepCost
from penstock.cost.load import step_cost_from_dict
from penstock.cost.steps import EngineShape
from penstock.errors import SpecError
from penstock.plan.profiled import profiled
from penstock.serve.local import local_accelerator, local_plan
from penstock.spec.load import load_model
from penstock.spec.model import ModelSpec
from penstock.spec.workload import Request, Workload

CPU = EngineShape(local_accelerator())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known.config(tmp_path_factory.mktemp("models") / "known")


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelSpec:
    return load_model(folder)


@pytest.fixture(scope="module")
def cost(model: ModelSpec, folder: Path) -> FingerprintStepCost:
    write_fingerprint(known.document(), folder / "f.yaml")
    return FingerprintStepCost(model, folder / "f.yaml")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)])
def test_a_step_passes_all_stages(cost: FingerprintStepCost, tp: int, pp: int) -> None:
    """Each of p equal stages takes a p-th of layers, hand-overs and the server's share."""
    timer = cost.step_timer(replace(CPU, tensor_parallel_size=tp, pipeline_parallel_size=pp))
    server = known.SERVER
    for seqs, context in ((1, 50), (3, 900), (20, 4000)):
        truth = known.decode_s(known.LAYERS, tp, pp, seqs, context)
        truth += server.step + seqs * server.sequence
        assert timer.decode_s(seqs, context) == pytest.approx(truth / pp, rel=0.01)
    for prompts in ([(40, 0)], [(512, 0), (100, 512)]):
        truth = known.prompt_s(known.LAYERS, tp, pp, prompts)
        truth += server.step + len(prompts) * server.sequence
        assert timer.step_s(prompts, 0, 0) == pytest.approx(truth / pp, rel=0.01)


@given(
    seqs=st.integers(1, 40),
    each=st.integers(1, 500),
    steps=st.integers(1, 60),
    share=st.floats(0.01, 1.5),
)
def test_spans_are_sums_of_steps(
    cost: FingerprintStepCost, seqs: int, each: int, steps: int, share: float
) -> None:
    """Closed forms of spans, their times, and the step that reaches a moment."""
    timer = cost.step_timer(CPU)
    single = [timer.decode_s(seqs, seqs * (each + k)) for k in range(steps)]
    ends = np.cumsum(single)
    assert timer.decode_span_s(seqs, seqs * each, steps) == pytest.approx(ends[-1], rel=1e-12)
    np.testing.assert_allclose(timer.decode_span_times_s(seqs, seqs * each, steps), ends, rtol=1e-9)
    seconds = share * float(ends[-1])
    reached = [k + 1 for k, end in enumerate(ends) if end >= seconds * (1 + 1e-9)]
    found = timer.steps_within(seqs, seqs * each, seconds, steps)
    assert abs(found - (reached[0] if reached else steps)) <= 1


def test_a_mixed_step_takes_no_less_than_its_parts(cost: FingerprintStepCost) -> None:
    """And no more than both one after the other."""
    timer = cost.step_timer(CPU)
    prompt_s, decode_s = timer.step_s([(64, 32)], 0, 0), timer.decode_s(8, 800)
    mixed_s = timer.step_s([(64, 32)], 8, 800)
    assert max(prompt_s, decode_s) <= mixed_s < prompt_s + decode_s


def test_it_comes_back_from_its_document(cost: FingerprintStepCost, model: ModelSpec) -> None:
    """By path and digest, which is checked."""
    again = step_cost_from_dict(cost.to_dict(), model)
    assert isinstance(again, FingerprintStepCost)
    assert again.step_timer(CPU).decode_s(3, 99) == cost.step_timer(CPU).decode_s(3, 99)
    assert again.provenance == cost.provenance
    assert cost.provenance[0].kind == "extrapolated"
    with pytest.raises(SpecError, match="have changed"):
        step_cost_from_dict({**cost.to_dict(), "digest": "0"}, model)


def test_a_simulation_takes_it_as_a_profile(cost: FingerprintStepCost, folder: Path) -> None:
    """A lone request takes its host, its prompt and its decode steps."""
    plan = profiled(local_plan(folder, kv_memory_bytes=64 << 20), folder / "f.yaml")
    assert plan.cost["kind"] == "fingerprint"
    load = Workload("one", 1.0, trace=(Request(0, 0.0, 100, 3),))
    run = api.simulate(plan, load)
    timer = cost.step_timer(CPU)
    first_s = cost.request_s(100) + timer.step_s([(100, 0)], 0, 0)
    assert run.requests.first_token_s[0] == pytest.approx(first_s)
    last_s = first_s + timer.decode_s(1, 100) + timer.decode_s(1, 101)
    assert run.requests.last_token_s[0] == pytest.approx(last_s, rel=1e-4)


def test_another_model_shape_or_precision_is_refused(
    cost: FingerprintStepCost, model: ModelSpec, folder: Path, tmp_path: Path
) -> None:
    """One line that names the file and the key."""
    path = folder / "f.yaml"
    for other, problem in (
        (replace(model, name="other"), "measured with known, not other"),
        (replace(model, num_hidden_layers=24), r"shape\.layers: known has 24"),
        (replace(model, dtype="fp32", weight_dtype="fp8"), "no runs of known in fp8"),
        (replace(model, dtype="bf16"), "no runs of known in bfloat16"),
        (replace(model, weight_dtype="int4"), "no runs of known in int4"),
        (replace(model, kv_dtype="int8"), "with int8 KV values"),
    ):
        with pytest.raises(SpecError, match=problem):
            FingerprintStepCost(other, path)
    gpu = replace(CPU, accelerator=replace(CPU.accelerator, name="L40S"))
    for shape, problem in ((gpu, "measured on CPU"), (replace(CPU, data_parallel_size=2), "data")):
        with pytest.raises(SpecError, match=problem):
            cost.step_timer(shape)
    write_fingerprint(known.document(pp2=False), tmp_path / "f.yaml")
    alone = FingerprintStepCost(model, tmp_path / "f.yaml")
    with pytest.raises(SpecError, match="no pipeline"):
        alone.step_timer(replace(CPU, pipeline_parallel_size=2))
