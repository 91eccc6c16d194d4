"""Operator tables: the look-up rules by hand, spans against single steps, strict reading."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.operator_tables import OperatorTableCost
from penstock.cost.steps import EngineShape
from penstock.errors import SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

GPU = catalogue().get("A100-80GB")
MODEL = load_model("llama-3-8b")


def write_tables(folder: Path, *, send: bool = True, degree: int = 1) -> None:
    """Tables of 4 sequences, 256 tokens of context and 64 tokens a step, with round figures."""
    extra = ("all_reduce_ms",) if degree > 1 else ()
    columns = ["num_tokens", "mlp_ms", *extra, *(("send_recv_ms",) if send else ())]
    rows = [[n, n / 8, *([0.5] * (len(columns) - 2))] for n in range(8, 72, 8)]
    _write(folder / "t.token_ops.csv", columns, rows)
    contexts = range(0, 320, 64)
    decode = [[b, *(b * 10 + c / 64 for c in contexts)] for b in range(1, 5)]
    _write(folder / "t.attn_decode_ms.csv", ["batch_size", *(f"kv{c}" for c in contexts)], decode)
    prefill = [[c, low, low + 31, 1 + c / 64 + low] for c in contexts for low in (1, 33)]
    header = ["kv_cache_size", "chunk_from", "chunk_to", "attn_prefill_ms"]
    _write(folder / "t.attn_prefill_ms.csv", header, prefill)


def _write(path: Path, header: list[str], rows: list[list[float]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_look_ups_by_hand(tmp_path: Path) -> None:
    """Tokens round up to 8, contexts up to 64, and attention over several costs 10 % more."""
    write_tables(tmp_path)
    timer = OperatorTableCost(MODEL, tmp_path, "t").stage_timers(EngineShape(GPU))[0]
    layers = 32e-3
    # One decode: 1 token -> 8; context 64 + the fed token -> 128.
    assert timer.decode_s(1, 64) == pytest.approx(layers * (1 + 12))
    assert timer.decode_s(1, 63) == pytest.approx(layers * (1 + 11))
    # Three decodes: mean floor((190 + 3) / 3) = 64.
    assert timer.decode_s(3, 190) == pytest.approx(layers * (1 + 1.1 * 31))
    # A chunk of 40 over 65 cached tokens beside two decodes: 42 tokens -> 48.
    step = timer.step_s([(40, 65)], 2, 20)
    assert step == pytest.approx(layers * (6 + (1 + 2 + 33) + 1.1 * 21))
    # Chunks 30 and 20: root of 1300 is 36; contexts 64 and 10 -> 64 + 64.
    step = timer.step_s([(30, 64), (20, 10)], 0, 0)
    assert step == pytest.approx(layers * (7 + 1.1 * (1 + 2 + 33)))


def test_the_last_stage_hands_nothing_over(tmp_path: Path) -> None:
    """Each of two stages runs half the layers; the first pays the hand-over once."""
    write_tables(tmp_path)
    first, last = OperatorTableCost(MODEL, tmp_path, "t").stage_timers(EngineShape(GPU, 1, 2))
    assert last.decode_s(1, 0) == pytest.approx(16e-3 * 12)
    assert first.decode_s(1, 0) - last.decode_s(1, 0) == pytest.approx(0.5e-3)


def test_all_reduce_counts_twice_with_its_launch(tmp_path: Path) -> None:
    """Under TP each layer reduces twice, 0.02 ms of launch each."""
    write_tables(tmp_path, degree=2)
    timer = OperatorTableCost(MODEL, tmp_path, "t", 2).step_timer(EngineShape(GPU, 2))
    assert timer.decode_s(1, 0) == pytest.approx(32e-3 * (12 + 2 * 0.52))


@given(
    seqs=st.integers(1, 6),
    context=st.integers(0, 1500),
    steps=st.integers(1, 400),
    seconds=st.floats(0, 300),
)
def test_spans_are_sums_of_steps(
    tmp_path_factory: pytest.TempPathFactory, seqs: int, context: int, steps: int, seconds: float
) -> None:
    """Inside and beyond the tables, a span is its steps, and the reach of a time is exact."""
    folder = tmp_path_factory.getbasetemp() / "tables"
    if not folder.exists():
        folder.mkdir()
        write_tables(folder)
    timer = OperatorTableCost(MODEL, folder, "t").step_timer(EngineShape(GPU))
    ends = []
    total = 0.0
    for j in range(steps):
        total += timer.decode_s(seqs, context + j * seqs)
        ends.append(total)
    assert timer.decode_span_s(seqs, context, steps) == pytest.approx(total, rel=1e-12)
    assert timer.decode_span_times_s(seqs, context, steps) == pytest.approx(ends, rel=1e-12)
    reach = timer.steps_within(seqs, context, seconds, steps)
    plain = next((k for k, end in enumerate([0.0, *ends]) if end >= seconds), steps)
    near = any(abs(end - seconds) < 1e-9 for end in ends)
    assert reach == plain or near


def test_mistakes_are_named(tmp_path: Path) -> None:
    """A missing table, degree, column or gap in the rows ends in one line."""
    with pytest.raises(SpecError, match="no such operator table"):
        OperatorTableCost(MODEL, tmp_path, "t")
    write_tables(tmp_path, send=False)
    cost = OperatorTableCost(MODEL, tmp_path, "t")
    with pytest.raises(SpecError, match="send_recv_ms"):
        cost.step_timer(EngineShape(GPU, 1, 2))
    with pytest.raises(SpecError, match="another degree"):
        cost.step_timer(EngineShape(GPU, 4))
    with pytest.raises(SpecError, match="all_reduce_ms"):
        OperatorTableCost(MODEL, tmp_path, "t", 2)
    _write(tmp_path / "t.attn_decode_ms.csv", ["batch_size", "kv0"], [[1, 1.0], [3, 1.0]])
    with pytest.raises(SpecError, match="batch_size 1, 2, 3"):
        OperatorTableCost(MODEL, tmp_path, "t")


@pytest.mark.reference
@pytest.mark.parametrize(
    ("model", "tag", "degree", "blocks"),
    [
        ("llama-3-8b", "llama3-8b_a100_tp1", 1, 30_208),
        ("codellama-34b", "codellama-34b_a100_tp2", 2, 27_904),
    ],
)
def test_batch_times_and_memory_are_vidurs(
    reference: Path, model: str, tag: str, degree: int, blocks: int
) -> None:
    """KV blocks are those of Vidur's runs, and so is the time of every decode-only batch."""
    runs = reference / "vidur" / "runs"
    cost = OperatorTableCost(load_model(model), runs / "cost_tables", tag, degree)
    shape = EngineShape(GPU, degree)
    assert cost.kv_capacity_tokens(shape) == 16 * blocks
    timer = cost.step_timer(shape)
    scenario = "s1" if degree == 1 else "s3"
    with gzip.open(next(runs.glob(f"{scenario}_*")) / "iterations.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["prefill_tokens"] == "0"]
    for row in rows[:2000]:
        seqs = int(row["decode_bs"])
        # The key is the mean context with the fed token, rounded up.
        context = (int(row["decode_kv_avg64"]) - 1) * seqs
        seconds = float(row["end"]) - float(row["start"])
        assert timer.decode_s(seqs, context) == pytest.approx(seconds, abs=2e-9)
