"""The question of a joint search in arrays: machines, stored forms, traffic and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import inf

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import HostedCost
from penstock.errors import InputError, SpecError
from penstock.plan.joint.book import CostBook
from penstock.plan.joint.state import NO_LIMIT, Floats, Ints
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec
from penstock.spec.served import ServedModel, in_precision
from penstock.spec.variants import Variant
from penstock.spec.workload import SLO, Request

MOST_REQUESTS = 10_000
"""Requests that the search replays; of more, blocks spread over the time."""
BLOCKS = 4
BLOCK_GAP_S = 3600.0
MOST_READ = 2_000_000
BLOCK_SIZE = 16
UNASKED_TOKENS = 2048
"""KV memory of a model without requests."""


@dataclass(frozen=True, slots=True)
class Form:
    """A model in one stored form."""

    variant: Variant
    spec: ModelSpec


@dataclass(frozen=True)
class JointTraffic:
    """n requests by arrival, as in ``kernel.Requests``; ``model`` indexes the question's models.

    ``delay_s`` [n] is spent between client and scheduler: arrivals are moved by it and the limits
    lose it. ``norm_s`` [n]: the seconds that latencies are measured against.
    """

    arrival: Floats
    deadline: Floats
    later: Floats
    model: Ints
    prompt: Ints
    output: Ints
    ttft: Floats
    tpot: Floats
    e2e: Floats
    norm_s: Floats

    @property
    def num_requests(self) -> int:
        return len(self.arrival)


@dataclass(frozen=True)
class JointProblem:
    """A question and what the search reads from it again and again."""

    question: PoolQuestion
    forms: tuple[tuple[Form, ...], ...]
    """[models] allowed stored forms, the most accurate first."""
    traffic: JointTraffic
    asked: NDArray[np.int64]
    """[models] requests of the whole workload."""
    mean_prompt: Floats
    mean_output: Floats
    longest: Ints
    """[models] tokens of the longest request, prompt and output."""
    duration_s: float
    book: CostBook

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return self.question.models

    @property
    def machines(self) -> tuple[Node, ...]:
        return self.question.cluster.nodes

    @cached_property
    def sampled(self) -> NDArray[np.int64]:
        """[models] requests that the search replays."""
        return np.bincount(self.traffic.model, minlength=len(self.models)).astype(np.int64)

    @cached_property
    def norm_s(self) -> Floats:
        """[models] mean seconds that requests may take; infinite where they have no limit."""
        total = np.bincount(self.traffic.model, self.traffic.norm_s, minlength=len(self.models))
        return np.where(self.sampled > 0, total / np.maximum(1, self.sampled), inf)


def joint_problem(question: PoolQuestion) -> JointProblem:
    """Read the question. Raises ``SpecError`` and ``InputError`` for what cannot be planned."""
    names = {model.name: i for i, model in enumerate(question.models)}
    if not names:
        raise InputError("a pool needs at least one model")
    if len(names) < len(question.models):
        raise SpecError("names a model twice", key="models", fix="give every model its own name")
    forms = tuple(_forms(model) for model in question.models)
    requests = _requests(question, names)
    model = np.array([names[request.model] for request in requests], dtype=np.int64)
    prompt = np.array([request.prompt_tokens for request in requests], dtype=np.int64)
    output = np.array([max(1, request.output_tokens) for request in requests], dtype=np.int64)
    count = len(names)
    asked = np.bincount(model, minlength=count).astype(np.int64)
    some = np.maximum(asked, 1)
    longest = np.full(count, UNASKED_TOKENS, dtype=np.int64)
    for m in range(count):
        if asked[m]:
            longest[m] = int((prompt + output)[model == m].max())
    last = requests[-1].arrival_s if requests else 0.0
    book = CostBook(question.cost_of, question.gpu_memory_utilization)
    delay = _delays(question, forms, model, prompt)
    return JointProblem(
        question,
        forms,
        _sampled(_traffic(question, requests, model, (prompt, output), delay)),
        asked,
        np.bincount(model, prompt, minlength=count) / some,
        np.bincount(model, output, minlength=count) / some,
        longest,
        max(last, 1.0)
        if question.workload.duration_s == inf
        else max(question.workload.duration_s, last, 1.0),
        book,
    )


def _forms(model: ServedModel) -> tuple[Form, ...]:
    """Stored forms that the model's wish allows. Raises ``SpecError`` where it leaves none."""
    wish = model.wish
    named = [
        variant
        for variant in model.variants
        if wish.precisions is None or variant.precision in wish.precisions
    ]
    allowed = [variant for variant in named if variant.accuracy >= wish.accuracy_floor]
    if not allowed:
        key = "accuracy_floor" if named else "precisions"
        best = max(model.variants, key=lambda variant: variant.accuracy)
        raise SpecError(
            "leaves no stored form of the model",
            key=f"{model.name}.{key}",
            value=wish.accuracy_floor if named else ", ".join(map(str, wish.precisions or ())),
            fix=f"allow {best.precision} (accuracy {best.accuracy:g}) or add a variant",
        )
    ordered = sorted(allowed, key=lambda variant: -variant.accuracy)
    return tuple(Form(one, in_precision(model.model, one.precision)) for one in ordered)


def _requests(question: PoolQuestion, names: Mapping[str, int]) -> list[Request]:
    """The requests, each of a model of the question."""
    found = list(islice(question.workload.requests(), MOST_READ))
    only = question.models[0].name if len(names) == 1 else None
    for i, request in enumerate(found):
        if request.model not in names:
            if request.model == "" and only is not None:
                found[i] = Request(
                    request.id,
                    request.arrival_s,
                    request.prompt_tokens,
                    request.output_tokens,
                    request.class_name,
                    only,
                )
                continue
            raise SpecError(
                "asks for a model that the pool does not serve",
                source=question.workload.source or question.workload.name,
                key=f"request {request.id}",
                value=request.model,
                fix=f"name one of {', '.join(names)}",
            )
    return found


def _delays(
    question: PoolQuestion, forms: Sequence[Sequence[Form]], model: Ints, prompt: Ints
) -> Floats:
    """[n] seconds between client and scheduler, where a cost model knows them."""
    delay = np.zeros(len(model))
    for m, several in enumerate(forms):
        mine = model == m
        cost = question.cost_of(several[0].spec)
        if mine.any() and isinstance(cost, HostedCost):
            known = {int(p): cost.request_s(int(p)) for p in np.unique(prompt[mine])}
            delay[mine] = [known[int(p)] for p in prompt[mine]]
    return delay


def _traffic(
    question: PoolQuestion,
    requests: Sequence[Request],
    model: Ints,
    lengths: tuple[Ints, Ints],
    delay: Floats,
) -> JointTraffic:
    """Limits of every request, in seconds from when it reaches the scheduler."""
    prompt, output = lengths
    arrival = np.array([request.arrival_s for request in requests], dtype=np.float64)
    limits = {entry.name: _seconds(entry.slo) for entry in question.workload.classes}
    none = (NO_LIMIT, NO_LIMIT, NO_LIMIT)
    each = np.array([limits.get(one.class_name, none) for one in requests]).reshape(-1, 3)
    ttft, tpot, e2e = each[:, 0], each[:, 1], each[:, 2]
    # The deadlines of ``policy.sharing.Urgency``.
    until = np.where(ttft < NO_LIMIT, ttft, e2e)
    end = np.minimum(e2e, ttft + tpot * (output - 1))
    moved = arrival + delay
    order = np.argsort(moved, kind="stable")
    return JointTraffic(
        moved[order],
        np.where(until < NO_LIMIT, arrival + until, inf)[order],
        np.where(e2e < NO_LIMIT, arrival + e2e, inf)[order],
        model[order],
        prompt[order],
        output[order],
        (ttft - delay)[order],
        tpot[order],
        (e2e - delay)[order],
        np.where(end < NO_LIMIT, end, inf)[order],
    )


def _seconds(slo: SLO) -> tuple[float, float, float]:
    if slo.tpot_multiple is not None:
        raise SpecError(
            "a multiple of the baseline is known only once there is a plan",
            key="classes.tpot",
            value=f"{slo.tpot_multiple:g}x",
            fix='give a time such as "50 ms"',
        )
    ttft, tpot, e2e = slo.ttft_s, slo.tpot_s, slo.e2e_s
    if tpot is None:
        tpot = slo.itl_s
    return (
        NO_LIMIT if ttft is None else ttft,
        NO_LIMIT if tpot is None else tpot,
        NO_LIMIT if e2e is None else e2e,
    )


def _sampled(traffic: JointTraffic) -> JointTraffic:
    """At most ``MOST_REQUESTS``: blocks of successive requests, far apart so that each ends."""
    n = traffic.num_requests
    if n <= MOST_REQUESTS:
        return traffic
    size = MOST_REQUESTS // BLOCKS
    starts = [round(i * (n - size) / (BLOCKS - 1)) for i in range(BLOCKS)]
    rows = np.concatenate([np.arange(start, start + size) for start in starts])
    shift = np.zeros(len(rows))
    for i, start in enumerate(starts):
        mine = slice(i * size, (i + 1) * size)
        before = traffic.arrival[rows[i * size - 1]] + shift[i * size - 1] if i else 0.0
        shift[mine] = before + (BLOCK_GAP_S if i else 0.0) - traffic.arrival[start]
    return JointTraffic(
        traffic.arrival[rows] + shift,
        traffic.deadline[rows] + shift,
        traffic.later[rows] + shift,
        traffic.model[rows],
        traffic.prompt[rows],
        traffic.output[rows],
        traffic.ttft[rows],
        traffic.tpot[rows],
        traffic.e2e[rows],
        traffic.norm_s[rows],
    )
