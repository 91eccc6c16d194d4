"""Fingerprints: read strictly, and extrapolated by MaverIQ's formulas and by ours."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.fingerprint import (
    COLUMNS,
    GIB,
    Configuration,
    Cut,
    Demand,
    Fingerprint,
    Measurement,
    fingerprints,
    read_profile,
)
from penstock.cost.fingerprint_maveriq import Exponents, MaverIQEstimator, latency_terms
from penstock.cost.fingerprint_physical import (
    LATENCY_TERMS,
    MEMORY_TERMS,
    HostCalibration,
    PhysicalEstimator,
    Sample,
    calibrate,
)
from penstock.cost.fingerprint_regression import fit_relative, non_negative
from penstock.errors import InputError, SpecError
from penstock.spec.load import load_model
from penstock.spec.variants import Precision

FP16 = Precision("float16")
TERMS = (0.002, 0.001, 0.003, 0.004)


def linear(tp: int, batch: int, terms: tuple[float, ...] = TERMS) -> dict[Cut, Measurement]:
    """Cuts that follow MaverIQ's four terms exactly; memory 2 + layers GiB."""
    layer, other, prompt, rest = terms
    return {
        Cut(tp, 1, n, o, batch): Measurement(
            n * prompt + rest + o * (n * layer + other), (2 + n) * GIB
        )
        for n in (1, 2)
        for o in (10, 20)
    }


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(1e-5, 1e-2)] * 4), st.integers(1, 100), st.integers(1, 500))
def test_four_terms_are_recovered(terms: tuple[float, ...], layers: int, tokens: int) -> None:
    """Where a model is linear in layers and tokens, two layers tell all of it."""
    found = latency_terms(Fingerprint("m", FP16, linear(1, 1, terms)), 1, 1)
    layer, other, prompt, rest = terms
    exact = layers * prompt + rest + tokens * (layers * layer + other)
    assert found.seconds(layers, tokens) == pytest.approx(exact, rel=1e-6)


def test_the_combination_by_hand() -> None:
    """TP 4, PP 2: the published formula with numbers that can be followed."""
    slower = tuple(0.75 * term for term in TERMS)
    cuts = linear(1, 1) | linear(2, 1, slower)
    estimator = MaverIQEstimator(
        10, {FP16: Fingerprint("m", FP16, cuts)}, {FP16: Exponents(1.0, 1.0, 1.0, 2.0)}
    )
    base = 10 * 0.003 + 0.004 + 100 * (10 * 0.002 + 0.001)
    # TP's overhead is a quarter of the base; PP's is half of it.
    exact = base / (4 * 2) + 3 / 2 * (0.25 * base) + 1 * (0.5 * base)
    found = estimator.latency_s(Configuration(4, 2, FP16), Demand(1, 100))
    assert found == pytest.approx(exact)


def test_a_missing_run_is_named() -> None:
    """The line says which run is missing, and in which precision."""
    estimator = MaverIQEstimator(
        10, {FP16: Fingerprint("m", FP16, linear(1, 1))}, {FP16: Exponents(1, 1, 1, 1)}
    )
    with pytest.raises(InputError, match=r"TP2 PP1, 2 layers, 10 tokens, batch 1"):
        estimator.latency_s(Configuration(2, 1, FP16), Demand(1, 10))
    with pytest.raises(InputError, match="no fingerprint in int4"):
        estimator.memory_bytes(Configuration(1, 1, Precision("int4")), Demand(1, 10))


def profile_text(**changes: str) -> str:
    row = dict(
        zip(
            COLUMNS,
            ("m", "1", "2", "1 1", "float16", "False", "10", "1", "0.5", "2.5"),
            strict=True,
        )
    )
    row |= changes
    return ",".join(COLUMNS) + "\n" + ",".join(row.values()) + "\n"


def test_a_profile_is_read(tmp_path: Path) -> None:
    """Layers are summed over stages, GiB become bytes."""
    path = tmp_path / "p.csv"
    path.write_text(profile_text(), encoding="utf-8")
    (row,) = read_profile(path)
    assert row.layers == 2
    assert row.measurement.memory_bytes == 2.5 * GIB
    found = fingerprints([row])["m", FP16]
    assert found.at(Cut(1, 2, 2, 10, 1)).latency_s == 0.5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"latency": "nan"}, "latency"),
        ({"latency": "fast"}, "cannot be read"),
        ({"int8_kv_cache": "yes"}, "True or False"),
        ({"tp": "0"}, "tensor_parallel_size"),
        ({"memory_after_run": "-1"}, "memory_after_run"),
    ],
)
def test_bad_profiles_are_one_line(tmp_path: Path, changes: dict[str, str], word: str) -> None:
    """File, key and value are named."""
    path = tmp_path / "p.csv"
    path.write_text(profile_text(**changes), encoding="utf-8")
    with pytest.raises(SpecError, match=word):
        read_profile(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_non_negative_equals_brute_force(seed: int) -> None:
    """The best of all subsets of columns with positive coefficients is what is found."""
    rng = np.random.default_rng(seed)
    rows, values = rng.normal(size=(12, 4)), rng.normal(size=12)
    best = float(values @ values)
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            part = rows[:, chosen]
            solved = np.linalg.lstsq(part, values, rcond=None)[0]
            if solved.min() >= 0:
                best = min(best, float(((part @ solved - values) ** 2).sum()))
    found = non_negative(rows, values, sweeps=5000)
    assert found.min() >= 0
    assert float(((rows @ found - values) ** 2).sum()) == pytest.approx(best, rel=1e-4, abs=1e-9)


def test_outliers_do_not_pull() -> None:
    """One sample in ten is three times too slow; the line stays where it was."""
    x = np.linspace(1, 10, 50)
    values = 2 * x
    values[::10] *= 3
    assert fit_relative(x[:, None], values)[0] == pytest.approx(2.0, rel=0.03)


def test_terms_and_coefficients_agree_in_number() -> None:
    """A host of ones and zeros can be applied: as many coefficients as terms."""
    model = load_model("llama-2-7b")
    cuts = {FP16: Fingerprint("llama-2-7b", FP16, linear(1, 1))}
    host = HostCalibration((0.0,) * len(LATENCY_TERMS), (0.0,) * len(MEMORY_TERMS))
    estimator = PhysicalEstimator(model, cuts, host)
    where, demand = Configuration(4, 2, FP16), Demand(100, 50, 3)
    assert estimator.latency_s(where, demand) == 0
    assert estimator.memory_bytes(where, demand) == 0
    with pytest.raises(InputError, match="was not calibrated"):
        estimator.latency_s(Configuration(3, 1, FP16), demand)


def made_up() -> tuple[HostCalibration, list[Sample]]:
    """A host we know, and models measured on it without noise."""
    rng = np.random.default_rng(5)
    host = HostCalibration(
        tuple(rng.uniform(0.2, 1.5, len(LATENCY_TERMS)).tolist()),
        tuple(rng.uniform(0.2, 1.5, len(MEMORY_TERMS)).tolist()),
    )
    samples = []
    for name in ("llama-2-7b", "llama-2-13b", "falcon-40b"):
        model = load_model(name)
        cuts = Fingerprint(name, FP16, linear(1, 1))
        known = PhysicalEstimator(model, {FP16: cuts}, host)
        for tp, pp in ((1, 1), (1, 4), (2, 1), (4, 1), (4, 2), (8, 1)):
            for demand in (Demand(16, 50), Demand(900, 100), Demand(16, 100, 32)):
                where = Configuration(tp, pp, FP16)
                seconds = known.latency_s(where, demand)
                space = known.memory_bytes(where, demand)
                samples.append(Sample(model, cuts, where, demand, seconds, space))
    return host, samples


def test_a_calibration_predicts_a_model_it_never_saw() -> None:
    """Calibrated on two models of a known host, the third is predicted."""
    _, samples = made_up()
    name = "llama-2-13b"
    host = calibrate([one for one in samples if one.model.name != name])
    for one in samples:
        if one.model.name == name:
            estimator = PhysicalEstimator(one.model, {FP16: one.fingerprint}, host)
            seconds = estimator.latency_s(one.configuration, one.demand)
            assert seconds == pytest.approx(one.latency_s, rel=0.1)


def test_no_samples_no_calibration() -> None:
    """An empty calibration is refused."""
    with pytest.raises(InputError, match="at least one model"):
        calibrate([])
