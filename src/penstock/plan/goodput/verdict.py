"""Why nothing passes and what would help most cheaply; what an answer says nothing about."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.candidates import for_rate, offered
from penstock.plan.goodput.capacity import first_token_s
from penstock.plan.goodput.fleet import EngineChoice
from penstock.plan.goodput.question import Capacity, Question, Tried, listed

LARGER_SHAPES = tuple((tp, pp) for pp in (1, 2, 4) for tp in (1, 2, 4, 8, 16))


def infeasible(
    question: Question, capacities: Sequence[Capacity], tried: Sequence[Tried]
) -> Infeasible:
    """The limit that binds, and the cheapest way out."""
    able = {one.choice.role for one in capacities if one.rate_per_s > 0}
    if "both" in able or able >= {"prefill", "decode"}:
        return _too_few(question, capacities, tried)
    # Engines for both phases tell most; those that have memory tell more than those without.
    failed = [one for one in capacities if one.choice.role == "both"]
    near = [one for one in failed if one.binding in {"TTFT", "TPOT", "queueing"}] or failed
    counts: dict[str, int] = {}
    for one in near:
        counts[one.binding] = counts.get(one.binding, 0) + 1
    if not counts:
        return Infeasible(
            "no engine shape fits the GPUs on offer",
            binding="GPUs on offer",
            fix="offer more GPUs, or smaller --tp and --pp",
        )
    binding = max(counts, key=lambda name: counts[name])
    example = next(one for one in near if one.binding == binding)
    return Infeasible(
        f"no kind of engine on offer meets the limits at any rate ({example.choice}: "
        f"{example.reason})",
        binding=binding,
        fix=_fix(question, binding, near),
    )


def _too_few(
    question: Question, capacities: Sequence[Capacity], tried: Sequence[Tried]
) -> Infeasible:
    """Engines sustain something, but no fleet on offer passed."""
    enough = [fleet for fleet in for_rate(question, capacities) if not offered(question, fleet)]
    fix = "offer more GPUs, or widen the limits"
    if question.goal == "cheapest" and enough:
        fleet = min(enough, key=lambda one: one.price_per_hour)
        need = ", ".join(f"{name}:{count}" for name, count in fleet.gpus_by_type().items())
        fix = f"offer about {need} (${fleet.price_per_hour:.2f}/h as {fleet}), or widen the limits"
    if not tried:
        return Infeasible(
            "the GPUs on offer are too few for any fleet that was estimated to pass",
            binding="number of GPUs",
            fix=fix,
        )
    last = max(tried, key=lambda one: one.attainment)
    least = "under " if last.bound else ""
    return Infeasible(
        f"no fleet of the GPUs on offer passes; the best of {len(tried)} reaches "
        f"{least}{100 * last.attainment:.1f} % of {100 * question.attainment:g} %: {last.fleet}",
        binding=f"{last.binding} limit at the number of GPUs on offer",
        fix=fix,
    )


def _fix(question: Question, binding: str, failed: Sequence[Capacity]) -> str:
    if binding in {"accelerator memory", "KV memory"}:
        return _shape_that_fits(question)
    if binding == "shape":
        return "tensor and pipeline sizes that divide the model"
    if binding in {"TTFT", "TPOT"}:
        least_s = min((_alone_s(question, one.choice, binding) for one in failed), default=0.0)
        limit_s = question.slo.ttft_s if binding == "TTFT" else question.slo.tpot_s
        if limit_s is not None and least_s > limit_s:
            wide = f"a {binding} limit well over {ceil(1e3 * least_s)} ms (an idle engine's best)"
            return f"{wide}, or faster GPUs"
    return f"a wider {binding} limit, faster GPUs or larger tensor parallelism"


def _alone_s(question: Question, choice: EngineChoice, binding: str) -> float:
    """TTFT or TPOT of a mean request in an engine that has nothing else to do."""
    timer = question.costs.of(*choice.variant).step_timer(choice.shape)
    if binding == "TTFT":
        return first_token_s(question, choice, timer)
    stages = choice.shape.pipeline_parallel_size
    return timer.decode_s(1, round(question.mean_prompt_tokens)) * stages


def _shape_that_fits(question: Question) -> str:
    """The cheapest engine on offer, of any size, that holds a mean request."""
    need = question.mean_prompt_tokens + question.mean_output_tokens
    fitting: list[EngineChoice] = []
    for offer in question.offers:
        for tp, pp in LARGER_SHAPES:
            if (offer.count or inf) < tp * pp or (offer.gpus_per_node or inf) < tp:
                continue
            shape = EngineShape(offer.accelerator, tp, pp, question.gpu_memory_utilization)
            choice = EngineChoice(shape, weight_dtype=question.weight_dtypes[0])
            try:
                cost = question.costs.of(*choice.variant)
                cost.step_timer(shape)
                if cost.kv_capacity_tokens(shape) >= need:
                    fitting.append(choice)
            except (Infeasible, SpecError):
                continue
    if not fitting:
        return "larger GPUs or narrower weights (--weights fp8)"
    best = min(fitting, key=lambda one: (one.price_per_hour, one.num_gpus))
    shape = best.shape
    sizes = f"--tp {shape.tensor_parallel_size} --pp {shape.pipeline_parallel_size}"
    return f"{best.num_gpus} x {best.gpu} an engine ({sizes}), or narrower weights"


def not_searched(question: Question) -> tuple[str, ...]:
    """What the answer says nothing about."""
    q = question
    lines = [
        f"tensor parallelism other than {listed(q.tensor_parallel_sizes)}, pipelines other "
        f"than {listed(q.pipeline_parallel_sizes)}, chunks other than {listed(q.chunks)}",
        f"schedulers other than {listed(q.schedulers)}; decodes apart from prompts run under "
        "vllm's rules and the largest chunk",
    ]
    if q.weight_dtypes == (None,):
        lines.append("quantised weights")
    else:
        lines.append("the accuracy of quantised weights: it is not judged")
    if q.speculations == (None,):
        lines.append("speculative decoding")
    else:
        lines.append(
            "speculation in pipelines, draft trees, and the spread of acceptance over requests "
            "(decode steps are priced at the mean accepted tokens)"
        )
    if len(q.weight_dtypes) * len(q.speculations) > 1:
        lines.append("fleets of engines with different weights or speculation")
    if q.goal == "cheapest":
        lines.append("mixtures of more than two kinds of engines")
        lines.append("fleets whose single engines add up to less than 85 % of the rate")
    else:
        lines.append("mixtures of two kinds of engines on one GPU type, or beside phases apart")
    if not q.disaggregated:
        lines.append("prefill and decode on different engines")
    if not q.mixed:
        lines.append("mixtures of GPU types")
    return tuple(lines)
