"""Intents: layers onto fragmented memory, GPUs by strategy, and the choice of a configuration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.fingerprint import Configuration, Demand
from penstock.errors import Infeasible, SpecError
from penstock.plan.intent.balancing import STRATEGIES, Strategy, assign_gpus, gpu_order
from penstock.plan.intent.layers import fill, place_layers
from penstock.plan.intent.select import choose, costs, fits
from penstock.plan.intent.table import ConfigurationTable, build_table, configuration_space
from penstock.spec.intent import INTENTS, Wish
from penstock.spec.variants import Precision, Variant

GIB = 2.0**30
FP16, INT4 = Precision("float16"), Precision("int4")
FREE = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def round_robin(rooms: list[int], layers: int) -> tuple[int, ...] | None:
    """The published loop: round the stages, a layer wherever one fits."""
    placed = [0] * len(rooms)
    while sum(placed) < layers:
        before = sum(placed)
        for stage, room in enumerate(rooms):
            if sum(placed) < layers and placed[stage] < room:
                placed[stage] += 1
        if sum(placed) == before:
            return None
    return tuple(placed) if min(placed) >= 1 else None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 90))
def test_filling_equals_going_round(rooms: list[int], layers: int) -> None:
    """The closed form gives the published loop's map, or none where it gives none."""
    assert fill(rooms, layers) == round_robin(rooms, layers)


def possible(free: list[int], tensor: int, pipeline: int, layers: int) -> bool:
    """Whether any choice of GPUs and blocks holds all layers of one unit each."""
    for order in permutations(range(len(free)), tensor * pipeline):
        blocks = [order[i : i + tensor] for i in range(0, len(order), tensor)]
        rooms = [min(free[gpu] for gpu in block) for block in blocks]
        if min(rooms) >= 1 and sum(rooms) >= layers >= pipeline:
            return True
    return False


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=5),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (4, 1)]),
    st.integers(1, 20),
)
def test_a_map_exists_where_any_does(free: list[int], shape: tuple[int, int], layers: int) -> None:
    """On any free-memory vector: found exactly where brute force finds one, and it fits."""
    tensor, pipeline = shape
    found = place_layers(free, tensor, pipeline, layers, 1.0)
    assert (found is not None) == possible(free, tensor, pipeline, layers)
    if found is not None:
        assert sum(found.layers) == layers
        assert len(set(found.gpus)) == tensor * pipeline
        for group, need in zip(found.groups, found.stage_bytes, strict=True):
            assert all(free[gpu] >= need for gpu in group)


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("llf", (3, 0, 2, 4, 1)),
        ("packing", (4, 2, 0, 3, 1)),
        ("hybrid", (2, 0, 3, 4, 1)),
    ],
)
def test_strategies_by_hand(strategy: Strategy, order: tuple[int, ...]) -> None:
    """The published table: who counts as available, and in which order."""
    assert gpu_order(strategy, [0.2, 1.0, 0.5, 0.0, 0.9]) == order


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1)), min_size=4, max_size=8),
    st.sampled_from(STRATEGIES),
    st.integers(1, 30),
)
def test_assignment_ends_and_fits(
    gpus: list[tuple[int, float]], strategy: Strategy, layers: int
) -> None:
    """For every input there is an answer in which each stage keeps its layers and has room."""
    free, load = [float(f) for f, _ in gpus], [u for _, u in gpus]
    made = place_layers(free, 2, 2, layers, 1.0)
    if made is None:
        return
    found = assign_gpus(made, free, strategy, load)
    assert found.layers == made.layers
    assert len(set(found.gpus)) == 4
    for group, need in zip(found.groups, found.stage_bytes, strict=True):
        assert all(free[gpu] >= need for gpu in group)


class Fixed:
    """An estimator by rule: more GPUs are quicker and take more memory, INT4 both less."""

    def latency_s(self, configuration: Configuration, demand: Demand) -> float:
        factor = 1.0 if configuration.precision == FP16 else 0.4
        return factor * (1 / configuration.gpus**0.5 + 0.01 * configuration.pipeline_parallel_size)

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float:
        factor = 1.0 if configuration.precision == FP16 else 0.3
        return GIB * (40 * factor + 2 * (configuration.gpus - 1))


def table(gpus: int = 8) -> ConfigurationTable:
    return build_table(
        "m",
        16,
        configuration_space(4096, gpus, (FP16, INT4)),
        estimator=Fixed(),
        demand=Demand(16, 20),
        variants=(Variant(FP16, 1.0), Variant(INT4, 0.95)),
    )


def test_the_space_is_the_published_one() -> None:
    """Eight GPUs: PP 1 to 8 at TP 1, to 4 at TP 2, to 2 at TP 4, 1 at TP 8."""
    assert len(configuration_space(4096, 8, (FP16,))) == 8 + 4 + 2 + 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 48), min_size=8, max_size=8),
    st.sampled_from(INTENTS),
    st.sampled_from([None, 0.2, 0.5, 0.9]),
    st.sampled_from([0.0, 0.97]),
)
def test_the_choice_is_the_best_of_all(
    gib: list[int], intent: str, slo_s: float | None, floor: float
) -> None:
    """Equal to a plain loop over all configurations, each placed by itself."""
    made, free = table(), [g * GIB for g in gib]
    wish = Wish(intent, slo_s, floor)  # type: ignore[arg-type]
    price = costs(made, wish.intent)
    best = None
    for i, one in enumerate(made.configurations):
        size = float(made.layer_bytes[i])
        shape = (one.tensor_parallel_size, one.pipeline_parallel_size)
        placed = place_layers(free, *shape, made.layers, size)
        assert bool(fits(made, free)[i]) == (placed is not None)
        late = slo_s is not None and made.latency_s[i] >= slo_s
        if placed is None or late or made.accuracy[i] < floor:
            continue
        key = (float(price[i]), float(made.latency_s[i]))
        if best is None or key < best[0]:
            best = (key, one)
    if best is None:
        with pytest.raises(Infeasible) as error:
            choose(made, wish, free)
        assert error.value.binding
        return
    found = choose(made, wish, free)
    assert found.cost == pytest.approx(best[0][0])
    assert found.meets_slo


ROOMY = [48 * GIB] * 8


@pytest.mark.parametrize(
    ("wish", "free", "binding", "fix"),
    [
        (Wish("min_cost", 0.01), ROOMY, "latency_slo_s", r"0\.\d+ s"),
        (
            Wish("min_cost", 0.3, 0.99, precisions=frozenset({INT4})),
            ROOMY,
            "accuracy_floor",
            r"0\.95",
        ),
        (Wish("min_cost", precisions=frozenset()), ROOMY, "precisions", "nearest"),
        (Wish("min_cost"), [1 * GIB] * 8, "memory", "12.0 GiB"),
        (
            Wish("min_cost", 0.001, precisions=frozenset()),
            ROOMY,
            "precisions, latency_slo_s",
            "smallest",
        ),
    ],
)
def test_the_impossible_names_what_binds(
    wish: Wish, free: list[float], binding: str, fix: str
) -> None:
    """The constraint that binds, and the nearest point without it."""
    with pytest.raises(Infeasible, match=fix) as error:
        choose(table(), wish, free)
    assert error.value.binding == binding


def test_the_published_way_out() -> None:
    """Where nothing meets the SLO and that is allowed, the quickest that fits is taken."""
    made = table()
    found = choose(made, Wish("min_memory", 0.001, or_nearest=True), ROOMY)
    assert not found.meets_slo
    assert found.latency_s == made.latency_s.min()


def test_intents_differ() -> None:
    """Least memory takes one GPU, least latency all of them, both in INT4."""
    small = choose(table(), Wish("min_memory"), ROOMY).configuration
    quick = choose(table(), Wish("min_latency"), ROOMY).configuration
    assert (small.gpus, small.precision) == (1, INT4)
    assert (quick.gpus, quick.precision) == (8, INT4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: Wish("min_lat"), "min_latency"),
        (lambda: Wish("min_cost", latency_slo_s=0), "latency_slo_s"),
        (lambda: Wish("min_cost", accuracy_floor=95), "accuracy_floor"),
        (lambda: Variant(FP16, 0), "accuracy"),
        (lambda: place_layers([np.nan], 1, 1, 1, 1.0), "free_bytes"),
        (lambda: place_layers([1.0], 0, 1, 1, 1.0), "tensor"),
        (lambda: gpu_order("llf", [2.0]), "load"),
    ],
)
def test_bad_wishes_are_refused(call, word: str) -> None:  # type: ignore[no-untyped-def]
    """The line names the key."""
    with pytest.raises(SpecError, match=word):
        call()
