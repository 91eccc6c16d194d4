"""A fleet search as a table on the terminal, and as one JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.plan.goodput.front import (
    Point,
    cost_front,
    throughput_front,
    throughput_points,
)
from penstock.plan.goodput.question import Sweep, Tried

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 20


def sweep_to_dict(sweep: Sweep) -> dict[str, object]:
    """Everything that was found; seconds, dollars and tokens as their keys say."""
    points = throughput_points(sweep)
    return {
        "goal": sweep.question.goal,
        "interrupted": sweep.interrupted,
        "best": None if sweep.best is None else _tried(sweep.best),
        "front": [_tried(one) for one in cost_front(sweep)],
        "throughput_front": [_point(one) for one in throughput_front(points)],
        "tried": [_tried(one) for one in sweep.tried],
        "engines": [
            {
                "engine": str(one.choice),
                "rate_per_s": one.rate_per_s,
                "binding": one.binding,
                "reason": one.reason,
            }
            for one in sweep.capacities
        ],
        "not_searched": sweep.not_searched,
    }


def _tried(one: Tried) -> dict[str, object]:
    return {
        "fleet": str(one.fleet),
        "gpus": one.fleet.gpus_by_type(),
        "price_per_hour": one.fleet.price_per_hour,
        "rate_per_s": one.rate_per_s,
        "attainment": one.attainment,
        "attainment_is_upper_bound": one.bound,
        "attainment_low": one.interval.low,
        "attainment_high": one.interval.high,
        "ttft_p99_s": one.probe.ttft_p99_s,
        "tpot_p99_s": one.probe.tpot_p99_s,
        "tokens_per_s_per_gpu": one.probe.output_tokens_per_s / one.fleet.num_gpus,
        "tokens_per_s_per_user": 1 / one.probe.tpot_p50_s if one.probe.tpot_p50_s > 0 else None,
        "price_per_million_tokens": one.price_per_million_tokens,
        "passed": one.passed,
        "binding": one.binding,
    }


def _point(one: Point) -> dict[str, object]:
    return {
        "name": one.name,
        "num_gpus": one.num_gpus,
        "rate_per_s": one.rate_per_s,
        "tokens_per_s_per_gpu": one.tokens_per_s_per_gpu,
        "tokens_per_s_per_user": one.tokens_per_s_per_user,
    }


def good_text(one: Tried) -> str:
    """The attainment with its 95 % interval, or the bound that a stopped run gave."""
    if one.bound:
        return f"at most {100 * one.attainment:.1f} %"
    low, high = 100 * one.interval.low, 100 * one.interval.high
    return f"{100 * one.attainment:.1f} % ({low:.1f} to {high:.1f})"


def verdict_text(one: Tried) -> str:
    return "passes" if one.passed else f"misses {one.binding}"


def headline(sweep: Sweep) -> str:
    """The answer in one sentence."""
    best = sweep.best
    if best is None:
        return "The search was stopped before a fleet passed."
    price = f"${best.fleet.price_per_hour:.2f}/h"
    if sweep.question.goal == "cheapest":
        found = f"Cheapest: {best.fleet} for {price}"
    else:
        found = f"Highest goodput: {best.rate_per_s:.4g} requests/s by {best.fleet} ({price})"
    stopped = " (search stopped; best so far)" if sweep.interrupted else ""
    return f"{found}; {best.binding} binds{stopped}"


def print_sweep(console: Console, sweep: Sweep) -> None:
    """The fleets that were tried, the answer, and what was not searched."""
    from rich.table import Table  # noqa: PLC0415 - heavy

    table = Table(box=None, pad_edge=False, header_style="bold")
    goodput = sweep.question.goal == "goodput"
    rate = ("req/s",) if goodput else ()
    for name in ("fleet", "GPUs", "$/h", *rate, "good (95 %)", "p99 TTFT", "p99 TPOT", "verdict"):
        table.add_column(name, justify="left" if name in {"fleet", "verdict"} else "right")
    shown = sweep.tried
    if goodput:
        shown = tuple(sorted(shown, key=lambda one: (not one.passed, -one.rate_per_s)))
    for one in shown[:MOST_ROWS]:
        table.add_row(
            str(one.fleet),
            str(one.fleet.num_gpus),
            f"{one.fleet.price_per_hour:.2f}",
            *((f"{one.rate_per_s:.2f}",) if goodput else ()),
            good_text(one),
            f"{1e3 * one.probe.ttft_p99_s:.0f} ms",
            f"{1e3 * one.probe.tpot_p99_s:.0f} ms",
            verdict_text(one),
        )
    console.print(table)
    if len(shown) > MOST_ROWS:
        console.print(f"and {len(shown) - MOST_ROWS} more", highlight=False)
    console.print(headline(sweep), markup=False, highlight=False)
    for line in sweep.not_searched:
        console.print(f"- not searched: {line}", markup=False, highlight=False)
