"""Estimates from cuts against a machine whose law is known."""

from __future__ import annotations

from pathlib import Path

import cut_machine as known
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.fingerprint import Configuration, Demand
from penstock.cost.fingerprint_file import read_fingerprint, write_fingerprint
from penstock.cost.fingerprint_local import LocalEstimator, estimator_from
from penstock.cost.fingerprint_maveriq import MaverIQEstimator
from penstock.errors import InputError, SpecError
from penstock.spec.variants import Precision

FP32 = Precision("float32")
DOCUMENT = known.document()
OURS = LocalEstimator(DOCUMENT)


@settings(max_examples=60)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 4),
    prompt=st.integers(1, 2000),
    output=st.integers(1, 300),
    batch=st.integers(1, 64),
)
def test_the_law_of_the_machine_is_found(
    tp: int, pp: int, prompt: int, output: int, batch: int
) -> None:
    """Lengths, batches, ranks and stages that no cut was run with, within 1 %."""
    got = OURS.latency_s(Configuration(tp, pp, FP32), Demand(prompt, output, batch))
    truth = known.latency_s(known.LAYERS, tp, pp, prompt=prompt, output=output, batch=batch)
    assert got == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 3), (4, 1)])
def test_memory_counts_weights_values_and_processes(tp: int, pp: int) -> None:
    """KV memory for just the batch, in pages of 16 tokens."""
    got = OURS.memory_bytes(Configuration(tp, pp, FP32), Demand(60, 20, 4))
    truth = known.memory_bytes(known.LAYERS, tp, pp, tokens=240, kv_tokens=4 * 80)
    assert got == pytest.approx(truth, rel=0.002)


def test_maveriqs_formulas_take_the_same_cuts() -> None:
    """Alone on one worker its estimate is the line through its own two depths and lengths."""
    theirs = estimator_from(DOCUMENT, "maveriq", prompt_tokens=60)
    assert isinstance(theirs, MaverIQEstimator)
    short, long = (known.latency_s(1, 1, 1, prompt=64, output=n, batch=1) for n in (10, 20))
    short2, long2 = (known.latency_s(2, 1, 1, prompt=64, output=n, batch=1) for n in (10, 20))
    layer = (long2 - short2 - (long - short)) / 10
    step = (long - short) / 10 + (known.LAYERS - 1) * layer
    first = short + (known.LAYERS - 1) * (short2 - short) - 10 * step
    got = theirs.latency_s(Configuration(1, 1, FP32), Demand(64, 50))
    assert got == pytest.approx(first + 50 * step)
    for tp, pp in ((1, 1), (2, 1), (1, 2), (4, 2)):
        assert theirs.memory_bytes(Configuration(tp, pp, FP32), Demand(64, 10)) > 0


def test_the_document_reads_back(tmp_path: Path) -> None:
    """Six digits of everything; estimates stay."""
    path = tmp_path / "f.yaml"
    write_fingerprint(DOCUMENT, path)
    again = read_fingerprint(path)
    assert again.shape == DOCUMENT.shape
    assert again.server == DOCUMENT.server
    where, what = Configuration(2, 2, FP32), Demand(100, 30, 3)
    assert LocalEstimator(again).latency_s(where, what) == pytest.approx(
        OURS.latency_s(where, what), rel=1e-3
    )
    assert LocalEstimator(again).memory_bytes(where, what) == pytest.approx(
        OURS.memory_bytes(where, what), rel=1e-9
    )


def test_what_was_not_measured_is_refused() -> None:
    """Other precisions, and ranks or stages of which nothing is known."""
    with pytest.raises(InputError, match="int4; it has float32"):
        OURS.latency_s(Configuration(1, 1, Precision("int4")), Demand(10, 10))
    alone = LocalEstimator(known.document(tp2=False, pp2=False))
    with pytest.raises(InputError, match="at TP2"):
        alone.latency_s(Configuration(4, 1, FP32), Demand(10, 10))
    with pytest.raises(InputError, match="no pipeline"):
        alone.latency_s(Configuration(1, 2, FP32), Demand(10, 10))


def test_an_odd_document_is_one_line(tmp_path: Path) -> None:
    """Unknown keys and a prefill beyond the latency name file and key."""
    path = tmp_path / "f.yaml"
    write_fingerprint(DOCUMENT, path)
    text = path.read_text()
    path.write_text(text.replace("prefill: ", "prefil: ", 1))
    with pytest.raises(SpecError, match=r"f\.yaml: runs\[0\]\.prefil: .*prefill"):
        read_fingerprint(path)
    path.write_text(text.replace("latency: ", "latency: 1e-9\n#", 1).replace("#", "# ", 1))
    with pytest.raises(SpecError, match=r"f\.yaml"):
        read_fingerprint(path)
    document = DOCUMENT.model_copy(
        update={"runs": (DOCUMENT.runs[0].model_copy(update={"latency": 1e-9}),)}
    )
    write_fingerprint(document, path)
    with pytest.raises(SpecError, match=r"runs\[0\]\.prefill: must be above 0 and at most"):
        read_fingerprint(path)
