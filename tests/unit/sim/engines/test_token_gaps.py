"""Gaps between tokens from segments against the same run with every token time written out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sim.engines.engine_runs import run_engine
from tests.unit.sim.engines.test_step_skipping import requests, tight_settings

from penstock.measure.metrics import summarise, summary_to_dict
from penstock.measure.run import Run, TokenTimes
from penstock.policy.schedulers import SCHEDULERS
from penstock.sim.engines import tracks
from penstock.spec.workload import SLO, SLOClass

LIMITS = (
    SLOClass("slow", SLO(ttft_s=5.0, itl_s=0.03)),
    SLOClass("quick", SLO(ttft_s=0.5, itl_s=0.0125)),
)


def small_run(name: str, stages: int, seed: int) -> Run:
    rng = Random(seed)
    arrivals = requests(rng)
    run = run_engine(
        arrivals,
        tight_settings(rng, name),
        num_blocks=rng.randint(14, 120),
        stages=stages,
        replicas=rng.randint(1, 2),
        classes=LIMITS,
    )
    end_s = run.window_s[1]
    return replace(run, window_s=(0.1 * end_s, max(0.8 * end_s, 0.1 * end_s + 0.1)))


def numbers(value: object) -> list[float]:
    """All leaves of a document, in order; None is NaN."""
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers(part)]
    if isinstance(value, list):
        return [x for part in value for x in numbers(part)]
    return [] if isinstance(value, str) else [np.nan if value is None else float(value)]  # type: ignore[arg-type]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), chunk=st.sampled_from([1, 7, 1 << 17]))
def test_a_summary_does_not_depend_on_how_tokens_are_kept(
    name: str, stages: int, seed: int, chunk: int
) -> None:
    """Every metric of every class is that of the expanded token times, in chunks or at once."""
    run = small_run(name, stages, seed)
    plain = replace(run, tokens=TokenTimes(run.tokens.offsets, run.tokens.times_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracks, "CHUNK_STEPS", chunk)
        found = summary_to_dict(summarise(run, LIMITS))
        slowest = run.tokens.slowest_gaps_s(0)
    wanted = summary_to_dict(summarise(plain, LIMITS))
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(numbers(found), numbers(wanted), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slowest, plain.tokens.slowest_gaps_s(0), rtol=0, atol=1e-12)
    assert run.tokens.last_s == pytest.approx(plain.tokens.last_s, abs=1e-12)


def test_a_summary_expands_no_tokens() -> None:
    """Metrics never ask an engine run for its token times."""
    run = small_run("vllm", 1, 3)
    assert summarise(run, LIMITS).overall.itl.count > 0
    assert not {"_expanded", "times_s"} & set(vars(run.tokens))
