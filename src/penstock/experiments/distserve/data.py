"""What DistServe published: applications, shapes, lengths, curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.linear import DistServeEngine
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.experiments.reference import read_table
from penstock.plan.goodput.distserve import Shape
from penstock.spec.load import load_model

FIGURE_REQUESTS = 1000
NOT_REAL = "synthetic lengths of the published means; the data sets themselves are not published"
NO_TIMES = "DistServe published no step times of OPT-175B: both systems by Penstock's roofline"


@dataclass(frozen=True)
class Application:
    """One experiment of Figures 8 and 9: lengths, limits (s) and the two shapes compared."""

    name: str
    model: str
    lengths: str
    ttft_s: float
    tpot_s: float
    ours: Shape
    vllm: Shape
    published_times: bool = True

    def cost(self, engine: DistServeEngine) -> StepCostModel:
        """DistServe's latency model; where it published none, Penstock's roofline for both."""
        shape = load_model(self.model)
        return DistServeHostCost(shape, engine) if self.published_times else StepRoofline(shape)


_66B = (Shape(4, 1, 2, 2), Shape(4))
APPLICATIONS = (
    Application("OPT-13B ShareGPT", "opt-13b", "sharegpt", 0.25, 0.1, Shape(2, 1, 1, 1), Shape(1)),
    Application("OPT-66B ShareGPT", "opt-66b", "sharegpt", 2.5, 0.15, *_66B),
    Application("OPT-66B HumanEval", "opt-66b", "humaneval", 0.125, 0.2, *_66B),
    Application("OPT-66B LongBench", "opt-66b", "longbench", 15.0, 0.15, *_66B),
    Application(
        "OPT-175B ShareGPT", "opt-175b", "sharegpt", 4.0, 0.2, Shape(3, 3, 4, 3), Shape(8), False
    ),
)
ENGINES: dict[str, DistServeEngine] = {"DistServe": "distserve", "vLLM": "vllm"}


def read_lengths(distserve: Path, name: str) -> list[tuple[int, int]]:
    """The synthetic (prompt, output) token pairs of a data set."""
    path = distserve / f"synthetic_{name}_like_lengths.csv"
    return [
        (int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in read_table(path, "prompt_tokens", "output_tokens")
    ]


def engine_named(name: str, path: Path) -> DistServeEngine:
    for known in get_args(DistServeEngine):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise SpecError("unknown system", source=path, key="backend", value=name)
