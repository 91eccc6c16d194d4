"""Step times measured by a user: reading, interpolation, closed forms, clear mistakes."""

from __future__ import annotations

from math import isclose
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.step_line import StepLine
from penstock.cost.step_table import StepTable
from penstock.cost.steps import EngineShape, StepTimer
from penstock.errors import SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

MODEL = load_model("llama3.1-8b")
L40S = EngineShape(catalogue().get("L40S"))
HEAD = "model: llama3.1-8b\naccelerator: L40S\nsource: our box\n"
POINTS = """
decode:
  - {seqs: 1, context_tokens: 0, seconds: 20 ms}
  - {seqs: 1, context_tokens: 1000, seconds: 21 ms}
  - {seqs: 9, context_tokens: 0, seconds: 28 ms}
  - {seqs: 9, context_tokens: 9000, seconds: 46 ms}
prefill:
  - {tokens: 100, seconds: 25 ms}
  - {tokens: 1100, seconds: 125 ms}
  - {tokens: 100, cached_tokens: 1000, seconds: 26 ms}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "times.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def timer(folder: Path, text: str = HEAD + POINTS) -> StepTimer:
    return StepTable(MODEL, write(folder, text)).step_timer(L40S)


def test_measured_points_come_back(tmp_path: Path) -> None:
    """Every point of the file is met."""
    step = timer(tmp_path)
    assert isclose(step.decode_s(1, 1000), 0.021)
    assert isclose(step.decode_s(9, 9000), 0.046)
    assert isclose(step.step_s([(1100, 0)], 0, 0), 0.125)
    assert isclose(step.step_s([(100, 1000)], 0, 0), 0.026)


def test_between_and_beyond_points_lines_go_on(tmp_path: Path) -> None:
    """By hand: slopes of 1 and 2 us a token, fixed parts of 20 and 28 ms, 0.1 ms a prompt token."""
    step = timer(tmp_path)
    assert isclose(step.decode_s(5, 1000), 0.024 + 1.5e-6 * 1000)
    assert isclose(step.decode_s(17, 0), 0.036)
    assert isclose(step.step_s([(600, 0)], 0, 0), 0.075)
    assert isclose(step.step_s([(1600, 0)], 0, 0), 0.175)
    assert isclose(step.step_s([(10, 0)], 0, 0), 0.025)


def test_a_mixed_step_reads_the_weights_once(tmp_path: Path) -> None:
    """125 ms of prompt and 46 ms of decode share 20 ms of weights."""
    assert isclose(timer(tmp_path).step_s([(1100, 0)], 9, 9000), 0.125 + 0.046 - 0.020)


@given(
    line=st.builds(
        StepLine, st.integers(1, 300), st.floats(1e-4, 0.1), st.sampled_from([0.0, 1e-9, 1e-6])
    ),
    context=st.integers(0, 10**6),
    steps=st.integers(1, 500),
    share=st.floats(0.001, 1.1),
)
@settings(max_examples=200)
def test_lines_have_exact_spans(line: StepLine, context: int, steps: int, share: float) -> None:
    """Spans are sums of steps, and the steps within a time are the least that reach it."""
    single = np.cumsum([line.at(context + j * line.seqs) for j in range(steps)])
    assert isclose(line.span_s(context, steps), single[-1], rel_tol=1e-12)
    np.testing.assert_allclose(line.span_times_s(context, steps), single, rtol=1e-12)
    limit_s = share * line.span_s(context, steps)
    k = line.steps_within(context, limit_s, steps)
    assert k == steps or line.span_s(context, k) >= limit_s
    assert k == 1 or line.span_s(context, k - 1) < limit_s
    assert line.steps_within(context, 0.0, steps) == 0


def test_points_may_come_from_a_csv_file(tmp_path: Path) -> None:
    """The same points in columns give the same times."""
    (tmp_path / "points.csv").write_text(
        "phase,seqs,context_tokens,tokens,cached_tokens,seconds\n"
        "decode,1,0,,,0.020\ndecode,1,1000,,,0.021\ndecode,9,0,,,0.028\n"
        "decode,9,9000,,,0.046\nprefill,,,100,,0.025\nprefill,,,1100,0,0.125\n",
        encoding="utf-8",
    )
    table = StepTable(MODEL, write(tmp_path, HEAD + "csv: points.csv\nkv_capacity_tokens: 7\n"))
    assert isclose(table.step_timer(L40S).decode_s(9, 9000), 0.046)
    assert table.kv_capacity_tokens(L40S) == 7
    (source,) = table.provenance
    assert source.kind == "measured"
    assert "1 to 9 sequences" in source.domain
    assert "cached" in source.notes[0]


def test_pipelines_share_a_measured_step(tmp_path: Path) -> None:
    """A step through two stages takes half of its time on each."""
    text = HEAD + "pipeline_parallel_size: 2\n" + POINTS
    table = StepTable(MODEL, write(tmp_path, text))
    shape = EngineShape(L40S.accelerator, pipeline_parallel_size=2)
    assert isclose(table.step_timer(shape).decode_s(1, 1000), 0.0105)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + POINTS.replace("seqs", "sequences"), "seqs"),
        (HEAD + "decode: [{seqs: 1, context_tokens: 5, seconds: 1 ms}]\n", "prefill.*no points"),
        (HEAD + POINTS.replace("20 ms", "-20 ms"), "seconds"),
        (HEAD + POINTS.replace("20 ms", "0 ms"), "above 0"),
        ((HEAD + POINTS).replace("llama3.1-8b", "gpt-j"), "was measured with gpt-j"),
        (HEAD.replace("source: our box\n", "") + POINTS, "source.*missing"),
        (HEAD + "csv: nowhere.csv\n", "nowhere.csv"),
        (HEAD + POINTS.replace("tokens: 100,", "tokens: 100, cached_tokens: 9,"), "cached"),
    ],
)
def test_mistakes_in_a_file_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    """File, key and fix; never a traceback of something else."""
    with pytest.raises(SpecError, match=said) as caught:
        StepTable(MODEL, write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("phase,seqs,seconds\nboth,1,1\n", "decode or prefill"),
        ("phase,seqs,second\n", "unknown columns"),
        ("phase,tokens,seconds\nprefill,ten,1\n", "must be a number"),
        ("phase,tokens,seconds\nprefill,10,nan\n", "must be a number"),
    ],
)
def test_mistakes_in_a_csv_file_name_the_line(tmp_path: Path, content: str, said: str) -> None:
    """The place is the file and, where there is one, the line."""
    (tmp_path / "points.csv").write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=said):
        StepTable(MODEL, write(tmp_path, HEAD + "csv: points.csv\n"))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (EngineShape(catalogue().get("L4")), "measured on L40S, not L4"),
        (EngineShape(L40S.accelerator, 2), "tensor_parallel_size.*measured with 1, not 2"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, shape: EngineShape, said: str) -> None:
    """Measured times are never stretched to hardware that was not measured."""
    with pytest.raises(SpecError, match=said):
        StepTable(MODEL, write(tmp_path, HEAD + POINTS)).step_timer(shape)
