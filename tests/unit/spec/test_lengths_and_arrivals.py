"""Lengths and arrivals: their means, their exact published draws, their streams."""

from __future__ import annotations

import csv
import math
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InputError, SpecError
from penstock.spec.arrivals import (
    AllAtOnce,
    BucketArrivals,
    GammaArrivals,
    PoissonArrivals,
    UniformArrivals,
)
from penstock.spec.lengths import (
    Distribution,
    EmpiricalLengths,
    Fixed,
    LogNormal,
    MarginalLengths,
    Quantiles,
    Uniform,
    fixed_lengths,
)
from penstock.spec.traces import read_column, read_lengths
from penstock.spec.workload import (
    SLO,
    ClosedLoop,
    Lengths,
    OpenLoopArrivals,
    Saturating,
    SLOClass,
    Workload,
)
from penstock.spec.workload_parts import length_presets

DISTRIBUTIONS: list[Distribution] = [
    Fixed(7),
    Uniform(3, 9),
    LogNormal(500, 1.0, 4, 2048),
    LogNormal.from_mean(800, 1.3),
    LogNormal(20, 0.0),
    Quantiles(((0, 1), (0.5, 10), (0.9, 100), (1, 1000))),
]


@pytest.mark.parametrize("entry", DISTRIBUTIONS, ids=str)
def test_stated_mean_is_the_mean_of_the_inverse_cdf(entry: Distribution) -> None:
    """Integrating the inverse CDF numerically gives the stated mean."""
    n = 200_000
    numeric = sum(entry.at((i + 0.5) / n) for i in range(n)) / n
    assert entry.mean == pytest.approx(numeric, rel=2e-3)


@given(st.sampled_from(DISTRIBUTIONS), st.floats(0, 1, exclude_max=True))
def test_inverse_cdfs_are_finite_and_rise(entry: Distribution, u: float) -> None:
    """Every quantile is a length, and larger u never gives a shorter one."""
    assert math.isfinite(entry.at(u))
    assert entry.at(u) <= entry.at(min(u + 0.01, 1 - 1e-9)) or u > 0.98


def test_from_mean_gives_the_mean_before_clipping() -> None:
    """mean and cv are those of the unclipped distribution."""
    assert LogNormal.from_mean(800, 1.3, 1, 1 << 40).mean == pytest.approx(800, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [
        ("azure-conv", 763.08, 232.45),
        ("azure-conv-full", 1154.70, 211.13),
        ("azure-code", 2047.85, 27.88),
    ],
)
def test_bundled_lengths_have_the_published_means(name: str, prompt: float, output: float) -> None:
    """The quantile tables keep the means of the Azure 2023 traces, also when sampled."""
    lengths = length_presets()[name]
    assert lengths.mean_prompt_tokens == pytest.approx(prompt, rel=1e-4)
    assert lengths.mean_output_tokens == pytest.approx(output, rel=1e-3)
    rng = Random(1)
    sample = [lengths.sample(rng) for _ in range(40_000)]
    assert sum(p for p, _ in sample) / len(sample) == pytest.approx(prompt, rel=0.02)
    assert sum(o for _, o in sample) / len(sample) == pytest.approx(output, rel=0.03)


def ranks(values: list[int]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    for rank, i in enumerate(order):
        result[i] = float(rank)
    return result


def rank_correlation(pairs: list[tuple[int, int]]) -> float:
    a, b = ranks([p for p, _ in pairs]), ranks([o for _, o in pairs])
    middle = (len(a) - 1) / 2
    top = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    return top / sum((x - middle) ** 2 for x in a)


def test_copula_keeps_the_rank_correlation() -> None:
    """azure-conv's prompts and outputs are tied as in the trace (rank correlation 0.44)."""
    rng = Random(3)
    sample = [length_presets()["azure-conv"].sample(rng) for _ in range(20_000)]
    assert rank_correlation(sample) == pytest.approx(0.438, abs=0.02)


def test_bad_parameters_are_refused() -> None:
    """Distributions and arrivals check themselves."""
    for make in (
        lambda: Uniform(5, 4),
        lambda: LogNormal(-1, 1),
        lambda: Quantiles(((0, 5), (1, 4))),
        lambda: Quantiles(((0.1, 5), (1, 6))),
        lambda: MarginalLengths(Fixed(1), Fixed(1), 1.5),
        lambda: EmpiricalLengths(()),
        lambda: PoissonArrivals(0),
        lambda: PoissonArrivals(math.inf),
        lambda: GammaArrivals(1, 0),
        lambda: AllAtOnce(0),
        lambda: BucketArrivals((0, 0), 1),
        lambda: BucketArrivals((1, 2), 1, 0),
    ):
        with pytest.raises(SpecError):
            make()


ARRIVALS: list[OpenLoopArrivals] = [
    PoissonArrivals(5),
    GammaArrivals(5, 2.0),
    UniformArrivals(5),
    BucketArrivals((0, 3, 30, 7, 1), 5.0),
]


@pytest.mark.parametrize("arrivals", ARRIVALS, ids=lambda a: type(a).__name__)
def test_arrivals_have_their_rate_and_ascend(arrivals: OpenLoopArrivals) -> None:
    """Over a long time the mean rate is as stated, times rise and stay inside."""
    times = list(arrivals.times(Random(0), 6000.0))
    assert len(times) / 6000 == pytest.approx(5, rel=0.05)
    assert all(a <= b for a, b in pairwise(times))
    assert times[0] >= 0
    assert times[-1] < 6000


def test_gamma_is_as_bursty_as_asked() -> None:
    """The coefficient of variation of the gaps is cv."""
    times = list(GammaArrivals(10, 3.0).times(Random(2), 8000.0))
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(3.0, rel=0.05)


def test_all_at_once() -> None:
    """Every request comes at 0."""
    assert list(AllAtOnce(3).times(Random(0), 10)) == [0.0, 0.0, 0.0]


def workload(arrivals: OpenLoopArrivals | ClosedLoop | Saturating, **more: object) -> Workload:
    lengths: Lengths = fixed_lengths(10, 5)
    return Workload("w", 1e9, lengths=lengths, arrivals=arrivals, **more)  # type: ignore[arg-type]


def test_requests_stream() -> None:
    """A billion seconds of traffic cost nothing until they are asked for."""
    first = list(islice(workload(PoissonArrivals(3)).requests(7), 3))
    assert [request.id for request in first] == [0, 1, 2]
    assert first == list(islice(workload(PoissonArrivals(3)).requests(7), 3))
    assert first != list(islice(workload(PoissonArrivals(3)).requests(8), 3))


def test_classes_come_by_share_and_do_not_disturb_arrivals() -> None:
    """Adding classes changes neither times nor lengths; shares need not add up to 1."""
    classes = (SLOClass("a", SLO(), 3.0), SLOClass("b", SLO(), 1.0))
    plain = list(islice(workload(PoissonArrivals(3)).requests(0), 4000))
    mixed = list(islice(workload(PoissonArrivals(3), classes=classes).requests(0), 4000))
    assert [r.arrival_s for r in plain] == [r.arrival_s for r in mixed]
    share = sum(r.class_name == "a" for r in mixed) / len(mixed)
    assert share == pytest.approx(0.75, abs=0.03)


def test_completion_driven_workloads_have_no_stream() -> None:
    """Closed loops and saturation depend on the system; asking for their requests says so."""
    for arrivals in (ClosedLoop(4), Saturating()):
        with pytest.raises(InputError, match="depend on completions"):
            next(workload(arrivals).requests())


@pytest.mark.reference
def test_published_online_requests_draw_for_draw(reference: Path) -> None:
    """Every published online sequence: same times to the last printed digit, same lengths."""
    folder = reference / "helix" / "traces"
    lengths = EmpiricalLengths(read_lengths(folder / "azure_conv_lengths.csv"))
    histogram = read_column(folder / "azure_conv_arrivals_per_bucket.csv", "arrivals")
    tokens = lengths.mean_prompt_tokens + lengths.mean_output_tokens
    files = sorted((folder / "online_seed0_1800s").glob("rate_*.csv"))
    assert len(files) == 22
    for file in files:
        arrivals = BucketArrivals(histogram, int(file.stem.removeprefix("rate_")) / tokens, 3.0)
        made = Workload("x", 1800.0, lengths=lengths, arrivals=arrivals)
        with file.open() as rows:
            expected = [tuple(row) for row in csv.reader(rows)][1:]
        assert expected == [
            (f"{r.arrival_s:.9f}", str(r.prompt_tokens), str(r.output_tokens))
            for r in made.requests(0)
        ]


@pytest.mark.reference
def test_published_offline_lengths_draw_for_draw(reference: Path) -> None:
    """The first 5,000 draws with seed 0 are the published ones."""
    folder = reference / "helix" / "traces"
    lengths = EmpiricalLengths(read_lengths(folder / "azure_conv_lengths.csv"))
    rng = Random(0)
    with (folder / "offline_length_sequence_seed0.csv").open() as rows:
        expected = [(int(p), int(o)) for _, p, o in list(csv.reader(rows))[1:]]
    assert [lengths.sample(rng) for _ in expected] == expected


@pytest.mark.reference
def test_bundled_quantiles_follow_the_trace(reference: Path) -> None:
    """The bundled conversation lengths are within 2 % of the trace at every decile."""
    table = read_lengths(reference / "helix" / "traces" / "azure_conv_lengths.csv")
    preset = length_presets()["azure-conv"]
    for column, entry in ((0, preset.prompt), (1, preset.output)):
        values = sorted(row[column] for row in table)
        for decile in range(1, 10):
            actual = values[len(values) * decile // 10]
            assert entry.at(decile / 10) == pytest.approx(actual, rel=0.02, abs=1)
