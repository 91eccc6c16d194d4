"""The fit of the roofline: search, round trip, reproduction of the bundled file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from penstock.cost.arithmetic import layer_work
from penstock.cost.coefficients import BUNDLED, bundled_coefficients
from penstock.cost.fit import fit, main, pattern_search, read_series
from penstock.cost.roofline import roofline_timer


def test_pattern_search_finds_the_minimum_of_a_bowl() -> None:
    """A shifted quadratic bowl is solved to the smallest step."""
    target = (0.7, -1.3, 0.2)

    def bowl(x: object) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, target, strict=True))  # type: ignore[call-overload]

    assert pattern_search(bowl, [0.0, 0.0, 0.0]) == pytest.approx(target, abs=0.005)


@pytest.mark.reference
@pytest.mark.slow
def test_bundled_file_is_what_the_fit_writes(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Running the fit again prints the bundled file."""
    main(["--profiles", str(reference / "helix" / "profiles"),
          "--collectives", str(reference / "measured" / "ops")])  # fmt: skip
    assert BUNDLED.read_text(encoding="utf-8") in capsys.readouterr().out


@pytest.mark.reference
def test_the_fit_recovers_known_coefficients(reference: Path) -> None:
    """Series made from coefficients are fitted back to their times within 3 % on average."""
    truth = bundled_coefficients()
    made = []
    for s in read_series(reference / "helix" / "profiles"):
        timer = roofline_timer(layer_work(s.model), s.model, s.node, truth)
        sizes = [x for x, _ in s.points][::12]
        at = timer if s.phase == "prefill" else (lambda n, _s, _c, t=timer: t(0, n, n * 500))
        made.append(replace(s, points=tuple((x, at(x, 0, 0)) for x in sizes)))
    found, context = fit(made)
    errors = []
    for s in made:
        timer = roofline_timer(layer_work(s.model), s.model, s.node, found)
        for x, t in s.points:
            modelled = timer(x, 0, 0) if s.phase == "prefill" else timer(0, x, int(x * context))
            errors.append(abs(modelled / t - 1))
    assert fmean(errors) < 0.03
