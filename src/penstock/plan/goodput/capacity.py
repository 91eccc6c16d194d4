"""What one engine of each kind sustains: bounds by arithmetic, then bisection with probes."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from penstock.cost.steps import EngineShape, StepTimer
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.chains import Chain
from penstock.plan.goodput.fleet import EngineChoice, Fleet, Job, Phase
from penstock.plan.goodput.question import Capacity, Measured, Question
from penstock.plan.goodput.rates import SMALLEST_SHARE, capacity_chain

MARGIN = 1.2


def choices(question: Question) -> list[EngineChoice]:
    """All kinds of engines that the question allows."""
    q = question
    shapes = [
        EngineShape(offer.accelerator, tp, pp, q.gpu_memory_utilization)
        for offer in q.offers
        for tp in q.tensor_parallel_sizes
        for pp in q.pipeline_parallel_sizes
        if (offer.count is None or tp * pp <= offer.count)
        and (offer.gpus_per_node is None or tp <= offer.gpus_per_node)
    ]
    roles: tuple[Phase, ...] = ("prefill", "decode") if q.disaggregated else ()
    found: list[EngineChoice] = []
    for dtype in q.weight_dtypes:
        for speculation in q.speculations:
            fitting = [s for s in shapes if speculation is None or s.pipeline_parallel_size == 1]
            found += [
                EngineChoice(shape, scheduler, chunk, "both", dtype, speculation)
                for shape in fitting
                for scheduler in q.schedulers
                for chunk in q.chunks
            ]
            found += [
                EngineChoice(shape, "vllm", max(q.chunks), role, dtype, speculation)
                for shape in fitting
                for role in roles
            ]
    return found


def engine_chain(question: Question, choice: EngineChoice) -> Chain[Job, Capacity]:
    """The capacity of one engine of ``choice``."""
    most = largest_rate(question, choice)
    if isinstance(most, Capacity):
        return most
    alone = Fleet(((replace(choice, role="both"), 1),))

    def ask(rate_per_s: float, seed: int, verdict_only: bool) -> Job:
        return Job(alone, rate_per_s, seed, choice.role, verdict_only)

    good, last = yield from capacity_chain(ask, most, question.seeds[0], question.attainment)
    if good:
        points = tuple(Measured(*one) for one in good)
        return Capacity(choice, points[-1].rate_per_s, probe=points[-1].probe, points=points)
    low = SMALLEST_SHARE * most
    return Capacity(
        choice, 0.0, last.binding, f"misses {last.binding} even at {low:.2g} req/s", last
    )


def largest_rate(question: Question, choice: EngineChoice) -> float | Capacity:
    """A rate that no such engine exceeds, or why it sustains none at all."""
    q = question
    try:
        cost = q.costs.of(*choice.variant)
        tokens = cost.kv_capacity_tokens(choice.shape)
        timer = cost.step_timer(choice.shape)
    except (Infeasible, SpecError) as error:
        binding = "accelerator memory" if isinstance(error, Infeasible) else "shape"
        reason = error.reason if isinstance(error, Infeasible) else error.problem
        return Capacity(choice, 0.0, binding, reason)
    prompt, output = q.mean_prompt_tokens, q.mean_output_tokens
    first_s = first_token_s(question, choice, timer)
    token_s = timer.decode_s(1, round(prompt)) * choice.shape.pipeline_parallel_size
    if choice.role != "decode" and q.slo.ttft_s is not None and first_s > q.slo.ttft_s:
        return Capacity(choice, 0.0, "TTFT", f"a mean prompt alone takes {1e3 * first_s:.0f} ms")
    if choice.role != "prefill" and q.slo.tpot_s is not None and token_s > q.slo.tpot_s:
        return Capacity(choice, 0.0, "TPOT", f"a token alone takes {1e3 * token_s:.0f} ms")
    if tokens < prompt + output:
        return Capacity(choice, 0.0, "KV memory", f"KV memory holds {tokens} tokens")
    # No engine does more prompts, nor holds more requests for their decodes, than this.
    most = inf if choice.role == "decode" else MARGIN / _prompt_s(choice, timer, prompt)
    if choice.role != "prefill":
        stages = choice.shape.pipeline_parallel_size
        held = max(1, round(tokens / (prompt + output / 2) / stages))
        full_s = timer.decode_s(held, round(held * prompt))
        most = min(most, MARGIN * held / (max(1.0, output) * full_s))
    return most if q.goal == "goodput" else min(most, 2 * q.rate_per_s)


def first_token_s(question: Question, choice: EngineChoice, timer: StepTimer) -> float:
    """Seconds of a mean prompt through an idle engine."""
    prompt = max(1, round(question.mean_prompt_tokens))
    return timer.step_s([(prompt, 0)], 0, 0) * choice.shape.pipeline_parallel_size


def _prompt_s(choice: EngineChoice, timer: StepTimer, prompt: float) -> float:
    """The least seconds that a mean prompt occupies a stage: alone, or in a full chunk."""
    chunk = choice.max_num_batched_tokens
    alone_s = timer.step_s([(max(1, round(prompt)), 0)], 0, 0)
    return min(alone_s, prompt / chunk * timer.step_s([(chunk, 0)], 0, 0))
