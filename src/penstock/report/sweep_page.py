"""One page about a fleet search: the winner, the fronts, what binds, what was not searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from math import inf
from pathlib import Path

from penstock import __version__
from penstock.plan.goodput.front import (
    Point,
    cost_front,
    money,
    throughput_front,
    throughput_points,
)
from penstock.plan.goodput.question import Capacity, Offer, Sweep, Tried
from penstock.report.scatter import Dot, scatter
from penstock.report.sweep_text import good_text, headline, verdict_text
from penstock.storage import write_text


def write_sweep_page(path: Path, sweep: Sweep) -> None:
    """Write the page, whole or not at all. Raises ``StorageError``."""
    write_text(path, sweep_page(sweep))


def sweep_page(sweep: Sweep) -> str:
    """The page as text; equal searches give equal bytes."""
    q = sweep.question
    style = (files("penstock.report") / "templates" / "style.css").read_text(encoding="utf-8")
    model = q.costs.base.model.name
    cheapest = q.goal == "cheapest"
    title = f"{model} at {q.rate_per_s:g} requests/s" if cheapest else f"Goodput of {model}"
    offers = ", ".join(map(_offer, q.offers))
    limits = f"{100 * q.attainment:g} % within {_limits(sweep)}; on offer: {offers}"
    points = throughput_points(sweep)
    body = [
        _tag("h1", title),
        _tag("p", limits),
        _tag("p", headline(sweep), "lead"),
        _best(sweep.best),
        _tag("h2", "Cost against p99 TTFT"),
        _cost_chart(sweep),
        _tag("h2", "Throughput of a GPU against speed for a user"),
        _throughput_chart(sweep, points),
        _front_table(throughput_front(points)),
        _tag("h2", "Fleets that were simulated"),
        _tried_table(sweep),
        _tag("h2", "What one engine sustains, or what keeps it from any"),
        _capacity_table(sweep.capacities),
        _tag("h2", "What was not searched"),
        _list(sweep.not_searched),
        _tag("h2", "How it was judged"),
        _list(_judged(sweep)),
        _tag("h2", "Where the seconds come from"),
        _list(_sources(sweep)),
        _tag("p", f"penstock {__version__}"),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f'<body><main class="wrap">{"".join(body)}</main></body></html>\n'
    )


def _tag(name: str, content: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f"<{name}{kind}>{escape(content)}</{name}>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(_tag("li", line) for line in lines) + "</ul>"


def _offer(offer: Offer) -> str:
    gpu = offer.accelerator
    count = "any number of" if offer.count is None else str(offer.count)
    price = "" if gpu.price_per_hour is None else f" at ${gpu.price_per_hour:g}/h"
    return f"{count} {gpu.name}{price}"


def _limits(sweep: Sweep) -> str:
    slo, queue_s = sweep.question.slo, sweep.question.max_queue_s
    limits = [("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("e2e", slo.e2e_s), ("queueing", queue_s)]
    return ", ".join(f"{name} {1e3 * limit:g} ms" for name, limit in limits if limit is not None)


def _best(best: Tried | None) -> str:
    if best is None:
        return ""
    probe = best.probe
    return _tag(
        "p",
        f"{best.fleet.num_gpus} GPUs; {good_text(best)} of the requests are good; p99 TTFT "
        f"{1e3 * probe.ttft_p99_s:.0f} ms, p99 TPOT {1e3 * probe.tpot_p99_s:.0f} ms; "
        f"${best.price_per_million_tokens:.2f} for a million output tokens.",
    )


def _judged(sweep: Sweep) -> Iterable[str]:
    q = sweep.question
    yield (
        "Attainment is joint (a request meets all limits) and over requests sent; the first tenth "
        "of every run is warm-up and not counted."
    )
    yield (
        f"A fleet passes when each of {len(q.seeds)} runs does. In brackets: 95 % interval, the "
        "wider of Wilson's over requests and Student's t over runs. A run that is certain to fail "
        "is stopped; 'at most' is then the most it could have reached."
    )
    yield (
        "p99 figures are of the worst run. Speed for a user is 1 / median TPOT; engines alone "
        "were stopped when they were certain to pass."
    )


def _sources(sweep: Sweep) -> Iterable[str]:
    q = sweep.question
    variant = q.weight_dtypes[-1], q.speculations[-1]
    for source in q.costs.of(*variant).provenance:
        yield f"{source.kind}: {source.source}" + (f"; {source.domain}" if source.domain else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(_tag("th", name) for name in head)
    lines = "".join("<tr>" + "".join(_tag("td", cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _tried_table(sweep: Sweep) -> str:
    head = ("fleet", "GPUs", "$/h", "req/s", "good (95 %)", "p99 TTFT", "p99 TPOT", "verdict")
    return _table(
        head,
        (
            (
                str(one.fleet),
                str(one.fleet.num_gpus),
                f"{one.fleet.price_per_hour:.2f}",
                f"{one.rate_per_s:.2f}",
                good_text(one),
                f"{1e3 * one.probe.ttft_p99_s:.0f} ms",
                f"{1e3 * one.probe.tpot_p99_s:.0f} ms",
                verdict_text(one),
            )
            for one in sweep.tried
        ),
    )


def _capacity_table(capacities: Sequence[Capacity]) -> str:
    def row(one: Capacity) -> tuple[str, ...]:
        if not one.rate_per_s or one.probe is None:
            return (str(one.choice), "-", "-", "-", "-", f"{one.binding}: {one.reason}")
        probe, gpus = one.probe, one.choice.num_gpus
        return (
            str(one.choice),
            f"{one.rate_per_s:.2f}",
            f"{one.choice.price_per_hour / one.rate_per_s:.2f}",
            f"{probe.output_tokens_per_s / gpus:.0f}",
            f"{1 / probe.tpot_p50_s:.0f}" if 0 < probe.tpot_p50_s < inf else "-",
            "",
        )

    order = sorted(
        capacities,
        key=lambda one: one.choice.price_per_hour / one.rate_per_s if one.rate_per_s else inf,
    )
    head = ("engine", "req/s", "$/h per req/s", "tok/s/GPU", "tok/s/user", "binds")
    return _table(head, map(row, order))


def _front_table(front: Sequence[Point]) -> str:
    head = ("on the front", "GPUs", "req/s", "tok/s/GPU", "tok/s/user")
    return _table(
        head,
        (
            (
                point.name,
                str(point.num_gpus),
                f"{point.rate_per_s:.2f}",
                f"{point.tokens_per_s_per_gpu:.0f}",
                f"{point.tokens_per_s_per_user:.0f}",
            )
            for point in front
        ),
    )


def _cost_chart(sweep: Sweep) -> str:
    cost = money(sweep)
    hourly = sweep.question.goal == "cheapest"
    shown = [one for one in sweep.tried if one.probe.ttft_p99_s < inf and cost(one) < inf]
    return scatter(
        [
            Dot(
                cost(one),
                1e3 * one.probe.ttft_p99_s,
                f"{one.fleet}: {good_text(one)} good",
                one.passed,
            )
            for one in shown
        ],
        [(cost(one), 1e3 * one.probe.ttft_p99_s) for one in cost_front(sweep)],
        x_title="$ per hour" if hourly else "$ per million output tokens",
        y_title="p99 TTFT, ms",
        title="Cost against p99 TTFT; the line joins the fleets that none beats in both",
        name="cost",
    )


def _throughput_chart(sweep: Sweep, points: Sequence[Point]) -> str:
    front = throughput_front(points)
    fleets = {str(one.fleet) for one in sweep.tried}
    return scatter(
        [
            Dot(
                point.tokens_per_s_per_user,
                point.tokens_per_s_per_gpu,
                f"{point.name} at {point.rate_per_s:.2f} requests/s",
                large=point.name in fleets,
            )
            for point in points
        ],
        [(point.tokens_per_s_per_user, point.tokens_per_s_per_gpu) for point in front],
        x_title="output tokens/s for a user (1 / median TPOT)",
        y_title="output tokens/s per GPU",
        title="Throughput per GPU against speed for a user; small dots are single engines",
        name="throughput",
    )
