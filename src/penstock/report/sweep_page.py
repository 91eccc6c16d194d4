"""One page about a fleet search: the winner, the front, what binds, what was not searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from penstock import __version__
from penstock.plan.goodput.fleet import Capacity, Sweep, Tried
from penstock.report.svg import element, frame, linear_ticks, text, tooltip
from penstock.storage import write_text

WIDTH, HEIGHT = 720.0, 300.0
LEFT, BOTTOM, TOP, RIGHT = 64.0, 44.0, 12.0, 16.0


def write_sweep_page(path: Path, sweep: Sweep) -> None:
    """Write the page, whole or not at all. Raises ``StorageError``."""
    write_text(path, sweep_page(sweep))


def sweep_page(sweep: Sweep) -> str:
    """The page as text; equal searches give equal bytes."""
    q, best = sweep.question, sweep.best
    style = (files("penstock.report") / "templates" / "style.css").read_text(encoding="utf-8")
    gpus = ", ".join(gpu.name for gpu, _ in q.offers)
    title = f"{q.cost.model.name} at {q.rate_per_s:g} requests/s"
    body = [
        _tag("h1", title),
        _tag(
            "p",
            f"{100 * q.attainment:g} % within {_limits(sweep)}; on offer: {gpus}",
        ),
        _headline(best),
        _tag("h2", "Fleets that were simulated at the full rate"),
        _scatter(sweep),
        _tried_table(sweep.tried),
        _tag("h2", "What one engine sustains, or what keeps it from any"),
        _capacity_table(sweep.capacities),
        _tag("h2", "What was not searched"),
        "<ul>" + "".join(_tag("li", line) for line in sweep.not_searched) + "</ul>",
        _tag("h2", "Where the seconds come from"),
        "<ul>" + "".join(_tag("li", line) for line in _sources(sweep)) + "</ul>",
        _tag("p", f"penstock {__version__}"),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f'<body><main class="wrap">{"".join(body)}</main></body></html>\n'
    )


def _tag(name: str, content: str) -> str:
    return f"<{name}>{escape(content)}</{name}>"


def _limits(sweep: Sweep) -> str:
    slo = sweep.question.slo
    limits: tuple[tuple[str, float | None], ...]
    limits = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("e2e", slo.e2e_s))
    if sweep.question.max_queue_s is not None:
        limits = (*limits, ("queueing", sweep.question.max_queue_s))
    return ", ".join(f"{name} {1e3 * limit:g} ms" for name, limit in limits if limit is not None)


def _headline(best: Tried | None) -> str:
    if best is None:
        return _tag("p", "The search was stopped before a fleet passed.")
    probe = best.probe
    share = f"{100 * best.attainment:.1f} % (± {100 * best.half_width:.1f})"
    return (
        '<p class="lead">'
        + escape(
            f"Cheapest: {best.fleet}, {best.fleet.num_gpus} GPUs, "
            f"${best.fleet.price_per_hour:.2f}/h. "
            f"{share} of the requests are good; p99 TTFT {1e3 * probe.ttft_p99_s:.0f} ms, p99 TPOT "
            f"{1e3 * probe.tpot_p99_s:.0f} ms. {best.binding} binds."
        )
        + "</p>"
    )


def _sources(sweep: Sweep) -> Iterable[str]:
    for source in sweep.question.cost.provenance:
        yield f"{source.kind}: {source.source}" + (f"; {source.domain}" if source.domain else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(_tag("th", name) for name in head)
    lines = "".join("<tr>" + "".join(_tag("td", cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _tried_table(tried: Sequence[Tried]) -> str:
    head = ("fleet", "GPUs", "$/h", "good", "p99 TTFT", "p99 TPOT", "verdict")
    return _table(
        head,
        (
            (
                str(one.fleet),
                str(one.fleet.num_gpus),
                f"{one.fleet.price_per_hour:.2f}",
                f"{100 * one.attainment:.1f} %",
                f"{1e3 * one.probe.ttft_p99_s:.0f} ms",
                f"{1e3 * one.probe.tpot_p99_s:.0f} ms",
                "passes" if one.passed else f"misses {one.binding}",
            )
            for one in tried
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
            f"{1 / probe.tpot_p99_s:.0f}" if 0 < probe.tpot_p99_s < float("inf") else "-",
            "",
        )

    order = sorted(
        capacities,
        key=lambda one: one.choice.price_per_hour / one.rate_per_s if one.rate_per_s else 1e9,
    )
    head = ("engine", "req/s", "$/h per req/s", "tok/s/GPU", "tok/s/user (p99)", "binds")
    return _table(head, map(row, order))


def _scatter(sweep: Sweep) -> str:
    """Price against p99 TTFT of every fleet that was tried; the front is joined by a line."""
    shown = [one for one in sweep.tried if one.probe.ttft_p99_s < float("inf")]
    if not shown:
        return ""
    most_x = 1.1 * max(one.fleet.price_per_hour for one in shown)
    most_y = 1.1 * max(1e3 * one.probe.ttft_p99_s for one in shown)

    def place(one: Tried) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * one.fleet.price_per_hour / most_x
        y = 1e3 * one.probe.ttft_p99_s / most_y
        return x, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y

    parts = []
    for tick in linear_ticks(0, most_x):
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick / most_x
        parts.append(
            text(x, HEIGHT - BOTTOM + 18, f"{tick:g}", text_anchor="middle", class_="axis")
        )
    for tick in linear_ticks(0, most_y):
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * tick / most_y
        parts.append(text(LEFT - 8, y + 4, f"{tick:g}", text_anchor="end", class_="axis"))
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="var(--rule)"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, sweep.front))
    parts.append(element("polyline", points=line, fill="none", stroke="var(--accent)"))
    for one in shown:
        x, y = place(one)
        colour = "var(--good)" if one.passed else "var(--bad)"
        hover = tooltip(f"{one.fleet}: {100 * one.attainment:.1f} % good")
        parts.append(element("circle", hover, cx=x, cy=y, r=5, fill=colour))
    parts.append(text(WIDTH / 2, HEIGHT - 8, "$ per hour", text_anchor="middle", class_="axis"))
    parts.append(text(4, 10, "p99 TTFT, ms", class_="axis"))
    title = "Price against p99 TTFT; the line joins the fleets that none beats in both"
    return frame(WIDTH, HEIGHT, *parts, title=title, description=title, name="front")
