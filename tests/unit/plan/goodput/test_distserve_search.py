"""DistServe's searches: what they enumerate, how they bisect, how they replicate."""

from __future__ import annotations

import pytest

from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.distserve import (
    Bisection,
    Candidate,
    Search,
    Shape,
    colocated_instances,
    pairs_of_instances,
    phases_apart,
    replicated,
    search_goodput,
)
from penstock.spec.load import load_model

SMALL, LARGE = load_model("opt-13b"), load_model("opt-66b")


@pytest.mark.parametrize(
    ("model", "affinity", "nodes", "gpus", "count"),
    [
        (SMALL, "low", 1, 4, 9),
        (SMALL, "low", 1, 8, 48),
        (SMALL, "high", 4, 8, 569),
        (LARGE, "low", 1, 8, 61),
        (LARGE, "high", 4, 8, 613),
    ],
)
def test_as_many_shapes_as_published(model, affinity, nodes, gpus, count) -> None:  # type: ignore[no-untyped-def]
    """The number of shapes equals that of the published search."""
    assert len(pairs_of_instances(model, affinity, nodes, gpus)) == count


def test_segments_stay_inside_nodes() -> None:
    """With low affinity no stage of both phases needs more GPUs than a node has."""
    for shape in pairs_of_instances(SMALL, "low", 4, 8):
        assert shape.num_gpus <= 32
        for segments in (1, 2, 4):
            fits = shape.prefill_pp % segments == 0 and shape.decode_pp % segments == 0
            if fits and shape.num_gpus <= 8 * segments:
                break
        else:
            pytest.fail(f"{shape} spans nodes")


def test_bisection_finds_the_limit_of_each_shape() -> None:
    """The rate found lies under the true limit by less than the tolerance; ties: fewer GPUs."""
    shapes = [Shape(1), Shape(2), Shape(4)]
    limits = {1: 1.3, 2: 2.6, 4: 3.0}
    found = search_goodput(
        shapes, lambda shape, rate: rate < limits[shape.num_gpus], Bisection(5, 0.01)
    )
    assert found.best.shape == Shape(1)
    for candidate in found.candidates:
        limit = limits[candidate.shape.num_gpus]
        assert 0 <= limit - candidate.rate_per_s < 0.01 * candidate.shape.num_gpus


def test_shapes_without_figures_keep_their_reason() -> None:
    """A shape that cannot be simulated does not end the search, and nothing found is said so."""

    def passes(shape: Shape, rate: float) -> bool:
        raise SpecError("no profile")

    found = search_goodput([Shape(1)], passes)
    assert found.candidates[0].problem == "no profile"
    with pytest.raises(Infeasible, match="no shape"):
        _ = found.best
    with pytest.raises(Infeasible):
        _ = Search(()).best


def test_phases_apart_replicate_for_a_rate() -> None:
    """Each phase gets as many copies of its best instance as the rate needs."""
    found = phases_apart(
        colocated_instances(SMALL, 2),
        10.0,
        lambda s, r: r < 2.1 * s.num_gpus,
        lambda s, r: r < 4.9 * s.num_gpus,
    )
    assert (found.prefill_instances, found.decode_instances) == (5, 3)
    assert found.num_gpus == 8
    assert replicated(Candidate(Shape(2, 1, 1, 1), 2.0, 1), 13.0).prefill_instances == 3
    with pytest.raises(SpecError):
        replicated(Candidate(Shape(1), 2.0, 1), -1.0)


def test_colocated_shapes_divide_the_model() -> None:
    """Tensor parallelism divides the heads, pipelines the layers."""
    assert Shape(3) not in colocated_instances(SMALL, 4)
    assert Shape(3) in colocated_instances(LARGE, 4)
    assert len(colocated_instances(SMALL, 4)) == 6
