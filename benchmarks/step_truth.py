"""How far predictions are from published end-to-end runs: python benchmarks/step_truth.py DIR.

Every measured point (mean TTFT and TPOT of a deployment at fixed concurrency) is simulated with
the engine simulator and the step roofline, whose engine figures were fitted without the point's
group (model family, GPU, engine). Prints a Markdown table by family and GPU, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.cost.step_coefficients import StepCoefficients, bundled_step_coefficients
from penstock.cost.step_fit_document import published_models
from penstock.cost.step_fit_engine import (
    Deployment,
    fit_engines,
    read_deployments,
    steady_tpot_s,
)
from penstock.cost.step_roofline import StepRoofline
from penstock.measure.run import STATUS
from penstock.plan.settings import SchedulerSettings
from penstock.sim.engines.fleet import EngineFleet, EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.simulate import simulate_engines
from penstock.spec.lengths import MarginalLengths, Uniform
from penstock.spec.workload import ClosedLoop, Workload

# The benchmark client sends ten prompts per slot of concurrency.
WAVES = 10
MAX_CONCURRENCY = 256


@dataclass(frozen=True)
class Score:
    """Predicted / measured of one point."""

    point: Deployment
    ttft: float
    tpot: float
    e2e: float


def score(point: Deployment, coefficients: StepCoefficients) -> Score | None:
    """Simulate ``point``; None where the model does not fit."""
    tpot_s = steady_tpot_s(point, coefficients)
    if tpot_s is None:
        return None
    cost = StepRoofline(point.model, engine=point.engine, coefficients=coefficients)
    output = point.mean_output_tokens
    rounds = point.concurrency * point.mean_input_tokens
    seconds = WAVES * (tpot_s * output + 2e-6 * rounds) + 1.0
    prompts, outputs = (
        Uniform(max(1, int(0.8 * longest)), longest)
        for longest in (point.input_tokens, point.output_tokens)
    )
    lengths = MarginalLengths(prompts, outputs)
    workload = Workload(
        name="closed loop",
        duration_s=seconds,
        lengths=lengths,
        arrivals=ClosedLoop(point.concurrency, interval_s=1e-6),
    )
    settings = SchedulerSettings(
        name="vllm",
        max_num_seqs=point.concurrency,
        max_num_batched_tokens=point.recipe.budget_tokens,
    )
    fleet = EngineFleet((EngineSpec("engine", point.shape, settings),))
    run = simulate_engines(fleet, workload, cost, EngineOptions(keep_tokens=False))
    table = run.requests
    done = table.status == STATUS.index("finished")
    if not done.any():
        return None
    ttft_s = table.first_token_s[done] - table.arrival_s[done]
    e2e_s = table.last_token_s[done] - table.arrival_s[done]
    tokens = table.output_tokens[done]
    # The first wave finds an idle engine and is taken at once.
    held_s = (1 - 1 / WAVES) * point.recipe.held_steps * steady_step_s(point, cost)
    ttft = float(ttft_s.mean()) + held_s
    tpot = float(((e2e_s - ttft_s) / np.maximum(1, tokens - 1)).mean())
    measured_e2e_s = point.ttft_s + point.tpot_s * (output - 1)
    predicted_e2e_s = float(e2e_s.mean()) + held_s
    return Score(point, ttft / point.ttft_s, tpot / point.tpot_s, predicted_e2e_s / measured_e2e_s)


def steady_step_s(point: Deployment, cost: StepRoofline) -> float:
    """Seconds of a decode step with all slots taken."""
    context = point.mean_input_tokens + point.mean_output_tokens // 2
    timer = cost.step_timer(point.shape)
    return timer.decode_s(point.concurrency, point.concurrency * context)


def table_lines(scores: list[Score]) -> list[str]:
    """A Markdown table by family, GPU and engine; errors are median / p90 in percent."""
    groups: dict[str, list[Score]] = {}
    for one in scores:
        groups.setdefault(one.point.group, []).append(one)
    lines = [
        "| family | GPU | engine | points | TTFT | TPOT | e2e |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for group, own in [*sorted(groups.items()), ("all|all|all", scores)]:
        cells = " | ".join(cell(own, name) for name in ("ttft", "tpot", "e2e"))
        lines.append(f"| {group.replace('|', ' | ')} | {len(own)} | {cells} |")
    return lines


def errors(scores: list[Score], name: str) -> tuple[float, float]:
    left = [abs(getattr(one, name) - 1) * 100 for one in scores]
    return float(np.median(left)), float(np.quantile(left, 0.9))


def cell(scores: list[Score], name: str) -> str:
    median, p90 = errors(scores, name)
    return f"{median:.0f} / {p90:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path, help="folder of reference data")
    parser.add_argument("--in-sample", action="store_true", help="use the bundled figures as is")
    parser.add_argument("--only", default="", help="groups whose name holds this text")
    options = parser.parse_args()
    folder = options.reference / "measured" / "e2e_train"
    points = read_deployments(folder / "aiconfigurator_e2e_train.csv.gz", published_models())
    bundled = bundled_step_coefficients()
    scores: list[Score] = []
    for group in dict.fromkeys(p.group for p in points):
        if options.only not in group:
            continue
        rest = [p for p in points if p.group != group]
        found = bundled if options.in_sample else fit_engines(rest, bundled)
        own = [p for p in points if p.group == group and p.concurrency <= MAX_CONCURRENCY]
        scores += [one for p in own if (one := score(p, found)) is not None]
        print(f"{group}: {len(own)} points", file=sys.stderr)
    print("\n".join(table_lines(scores)))
    summary = {name: errors(scores, name) for name in ("ttft", "tpot", "e2e")}
    print(json.dumps({"benchmark": "step_truth", "points": len(scores), "error_percent": summary}))


if __name__ == "__main__":
    main()
