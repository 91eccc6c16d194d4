"""From what a user wrote to the question of a fleet search."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import get_args

from penstock import __version__
from penstock.cost.step_roofline import StepRoofline
from penstock.errors import SpecError
from penstock.plan.goodput.costs import FleetCosts, read_acceptance
from penstock.plan.goodput.publish import Outcome, fleet_plan
from penstock.plan.goodput.question import Goal, Offer, Question, Sweep
from penstock.plan.plan import Plan
from penstock.plan.settings import HandoffSettings, SpeculationSettings
from penstock.policy.schedulers import scheduler_class
from penstock.sim.disaggregated.probes import ProbeSetting
from penstock.spec.catalogue import catalogue
from penstock.spec.hardware import Accelerator
from penstock.spec.load import load_cluster, load_model, load_workload, model_to_dict
from penstock.spec.load import workload_to_dict as describe_workload
from penstock.spec.model import Dtype, ModelSpec
from penstock.spec.names import did_you_mean
from penstock.spec.units import parse_bandwidth, parse_duration, parse_price
from penstock.spec.workload import SLO, Workload

# Vidur-Search (MLSys 2024): the 99th percentile of the scheduling delay is under 5 s.
VIDUR_QUEUE_S = 5.0
VIDUR_ATTAINMENT = 0.99
HANDOFF_LATENCY_S = 1e-4
_GPU = re.compile(r"(?P<name>[^:@]+)(?::(?P<count>[0-9]+))?(?:@(?P<price>.+))?")


@dataclass(frozen=True, slots=True)
class Limits:
    ttft: str | None
    tpot: str | None
    attainment: float
    vidur: bool


@dataclass(frozen=True, slots=True)
class Shapes:
    tensor_parallel_sizes: Sequence[int]
    pipeline_parallel_sizes: Sequence[int]
    schedulers: Sequence[str]
    chunks: Sequence[int]
    disaggregated: bool
    mixed: bool


@dataclass(frozen=True, slots=True)
class Speculation:
    wanted: bool
    draft_model: str | None
    acceptance: str | None
    chains: Sequence[int]


@dataclass(frozen=True)
class Asked:
    """``about`` is what a file of probes must agree with."""

    question: Question
    setting: ProbeSetting
    about: Mapping[str, str]


def ask(
    model: str,
    workload: str,
    goal: str,
    rate: float | None,
    *,
    gpus: tuple[Sequence[str], str | None, Sequence[str]],
    limits: Limits,
    shapes: Shapes,
    weights: Sequence[str],
    speculation: Speculation,
    kv_bandwidth: str,
    seeds: int,
) -> Asked:
    """Read everything; raises ``SpecError`` with the flag that is wrong."""
    for name in shapes.schedulers:
        scheduler_class(name)
    traffic = load_workload(workload)
    dtypes = _dtypes(weights)
    costs, speculations = _costs(load_model(model), dtypes, speculation)
    slo = _slo(limits, traffic)
    prompt, output = _means(traffic)
    question = Question(
        costs,
        slo,
        _rate(_goal(goal), rate),
        prompt,
        output,
        _offers(*gpus),
        VIDUR_ATTAINMENT if limits.vidur else limits.attainment,
        # A trace is the same whatever the seed: more runs would only seem to say more.
        (0,) if len(traffic.trace) else tuple(range(seeds)),
        _unique(shapes.tensor_parallel_sizes),
        _unique(shapes.pipeline_parallel_sizes),
        tuple(dict.fromkeys(shapes.schedulers)),
        _unique(shapes.chunks),
        dtypes or (None,),
        speculations,
        shapes.disaggregated,
        shapes.mixed,
        max_queue_s=VIDUR_QUEUE_S if limits.vidur else None,
        goal=_goal(goal),
    )
    handoff = HandoffSettings(parse_bandwidth(kv_bandwidth), HANDOFF_LATENCY_S)
    setting = ProbeSetting(costs, traffic, slo, question.attainment, handoff, question.max_queue_s)
    return Asked(question, setting, _about(setting))


def winner_plan(asked: Asked, found: Sweep) -> Plan:
    """The best fleet as a plan on machines made up for it."""
    best, q = found.best, found.question
    assert best is not None
    reasons = [
        f"{q.goal}: {best.fleet}; ${best.fleet.price_per_hour:.2f}/h",
        f"{100 * best.attainment:.1f} % of the requests within limits at {best.rate_per_s:.4g}/s "
        f"(95 % interval {100 * best.interval.low:.1f} to {100 * best.interval.high:.1f} %), "
        f"{len(q.seeds)} seeds; {best.binding} binds",
        *(f"not searched: {line}" for line in found.not_searched),
    ]
    outcome = Outcome(
        best.rate_per_s, best.attainment, q.mean_prompt_tokens, "sweep", tuple(reasons)
    )
    return fleet_plan(
        best.fleet,
        q.costs.of(*best.fleet.engines[0][0].variant),
        outcome,
        handoff=asked.setting.handoff,
        mean_output_tokens=q.mean_output_tokens,
        name="sweep",
    )


def _goal(text: str) -> Goal:
    for goal in get_args(Goal):
        if text == goal:
            return goal  # type: ignore[no-any-return]
    raise SpecError("unknown goal", key="--goal", value=text, fix="use cheapest or goodput")


def _rate(goal: Goal, rate: float | None) -> float:
    if goal == "cheapest" and rate is None:
        raise SpecError(
            "is missing", key="--rate", fix="give requests per second, or --goal goodput"
        )
    if goal == "goodput" and rate is not None:
        raise SpecError(
            "is what --goal goodput finds", key="--rate", value=rate, fix="leave one of them out"
        )
    return rate or 0.0


def _unique(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


# -- what is on offer -------------------------------------------------------------------------


def _offers(gpus: Sequence[str], cluster: str | None, prices: Sequence[str]) -> tuple[Offer, ...]:
    offers = [_offer(text) for text in gpus]
    if cluster is not None:
        offers += _cluster_offers(cluster)
    for text in prices:
        name, _, price = text.partition("=")
        if not price:
            raise SpecError("must be NAME=PRICE", key="--price", value=text, fix="try H100=2.49")
        wanted = catalogue().get(name).name
        if all(offer.accelerator.name != wanted for offer in offers):
            raise SpecError("is not on offer", key="--price", value=name, fix=f"add --gpu {name}")
        dollars = _price(price, "--price")
        offers = [_priced(o, dollars) if o.accelerator.name == wanted else o for o in offers]
    return tuple(offers)


def _offer(text: str) -> Offer:
    match = _GPU.fullmatch(text.strip())
    if match is None or match["count"] == "0":
        raise SpecError(
            "must be NAME, NAME:COUNT or NAME:COUNT@PRICE",
            key="--gpu",
            value=text,
            fix="try H100:16 or H100:16@2.49",
        )
    offer = Offer(catalogue().get(match["name"]), int(match["count"]) if match["count"] else None)
    return _priced(offer, _price(match["price"], "--gpu")) if match["price"] else offer


def _price(text: str, flag: str) -> float:
    try:
        price = parse_price(text)
    except SpecError as error:
        raise SpecError(error.problem, key=flag, value=text, fix="dollars per hour: 2.49") from None
    if not 0 <= price < math.inf:
        raise SpecError("must be 0 or more", key=flag, value=text, fix="dollars per hour: 2.49")
    return price


def _priced(offer: Offer, dollars: float) -> Offer:
    return replace(offer, accelerator=replace(offer.accelerator, price_per_hour=dollars))


def _cluster_offers(ref: str) -> list[Offer]:
    """The accelerators of a cluster, with the prices of its nodes."""
    kinds: dict[str, list[tuple[Accelerator, int, float | None]]] = {}
    for node in load_cluster(ref).nodes:
        price = node.accelerator.price_per_hour
        if node.price_per_hour is not None:
            price = node.price_per_hour / node.count
        entry = (node.accelerator, node.count, price)
        kinds.setdefault(node.accelerator.name, []).append(entry)
    offers = []
    for name, entries in kinds.items():
        prices = {price for _, _, price in entries}
        if len(prices) > 1:
            raise SpecError(
                f"nodes with {name} differ in their price per GPU",
                source=ref,
                key="price",
                value=sorted(price or 0.0 for price in prices),
                fix="give them one price in the file, or offer them with --gpu NAME:COUNT@PRICE",
            )
        found = replace(entries[0][0], price_per_hour=prices.pop())
        count = sum(count for _, count, _ in entries)
        offers.append(Offer(found, count, max(count for _, count, _ in entries)))
    return offers


# -- limits, weights, speculation -------------------------------------------------------------


def _slo(limits: Limits, traffic: Workload) -> SLO:
    given = limits.ttft is not None or limits.tpot is not None
    if limits.vidur:
        if given:
            raise SpecError("replaces --ttft and --tpot", key="--vidur-criterion", fix="give one")
        return SLO()
    if given:
        return SLO(_limit(limits.ttft, "--ttft"), _limit(limits.tpot, "--tpot"))
    fix = "give --ttft, --tpot or both (such as --ttft '500 ms')"
    if len(traffic.classes) != 1:
        raise SpecError("no limit is given", key="slo", fix=fix)
    slo = traffic.classes[0].slo
    if slo.tpot_multiple is not None:
        problem = "a multiple of the baseline would differ from fleet to fleet"
        raise SpecError(problem, key="slo.tpot", fix=fix)
    if slo.itl_s is not None:
        raise SpecError("a limit of the ITL is not judged here", key="slo.itl", fix=fix)
    return slo


def _limit(text: str | None, flag: str) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration(text, positive=True)
    except SpecError as error:
        raise SpecError(error.problem, key=flag, value=text, fix=error.fix) from None


def _dtypes(weights: Sequence[str]) -> tuple[Dtype | None, ...]:
    known: tuple[Dtype, ...] = get_args(Dtype)
    found: dict[Dtype, None] = {}
    for text in weights:
        match = next((dtype for dtype in known if dtype == text.lower()), None)
        if match is None:
            raise SpecError(
                "unknown format", key="--weights", value=text, fix=did_you_mean(text, known)
            )
        found[match] = None
    return tuple(found)


def _costs(
    model: ModelSpec, dtypes: Sequence[Dtype | None], speculation: Speculation
) -> tuple[FleetCosts, tuple[SpeculationSettings | None, ...]]:
    by_dtype = {
        dtype: StepRoofline(replace(model, weight_dtype=dtype, layer_weight_bytes_override=None))
        for dtype in dtypes
        if dtype is not None
    }
    base = StepRoofline(model)
    if not speculation.wanted:
        for flag, value in (
            ("--draft-model", speculation.draft_model),
            ("--acceptance", speculation.acceptance),
        ):
            if value is not None:
                raise SpecError("needs --speculate", key=flag, value=value, fix="add --speculate")
        return FleetCosts(base, by_dtype), (None,)
    name = speculation.draft_model
    if name is None or speculation.acceptance is None:
        missing = "--draft-model" if name is None else "--acceptance"
        raise SpecError(
            f"needs {missing}",
            key="--speculate",
            fix="such as --draft-model llama-3.2-1b --acceptance 0.7",
        )
    draft = load_model(name)
    if draft.vocab_size != model.vocab_size:
        raise SpecError(
            f"has {draft.vocab_size} tokens in its vocabulary, {model.name} has {model.vocab_size}",
            key="--draft-model",
            value=name,
            fix="take a draft with the same tokenizer",
        )
    curve = read_acceptance(speculation.acceptance)
    chains = [
        SpeculationSettings("chain", name, num_speculative_tokens=length)
        for length in _unique(speculation.chains)
    ]
    by_load = SpeculationSettings("penstock", name)
    return FleetCosts(base, by_dtype, StepRoofline(draft), curve), (None, *chains, by_load)


def _means(traffic: Workload) -> tuple[float, float]:
    if traffic.lengths is not None:
        return traffic.lengths.mean_prompt_tokens, traffic.lengths.mean_output_tokens
    requests = list(traffic.trace)
    count = max(1, len(requests))
    prompts = sum(request.prompt_tokens for request in requests)
    return prompts / count, sum(request.output_tokens for request in requests) / count


def _about(setting: ProbeSetting) -> dict[str, str]:
    costs, slo = setting.costs, setting.slo
    model, traffic = costs.base.model, setting.workload
    limits = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "e2e": slo.e2e_s}
    limits["queue"] = setting.max_queue_s
    given = [f"{name} {1e3 * limit:g} ms" for name, limit in limits.items() if limit is not None]
    handoff = setting.handoff
    about = {
        "version": __version__,
        "model": f"{model.name} ({_digest(model_to_dict(model))})",
        "workload": f"{traffic.name} ({_digest(describe_workload(traffic))})",
        "limits": ", ".join(given),
        "attainment": f"{setting.attainment:g}",
        "cost": _digest(costs.base.to_dict()),
        "KV bandwidth": f"{handoff.bandwidth_bytes_per_s / 1e9:g} GB/s",
    }
    if costs.draft is not None:
        about["draft model"] = costs.draft.model.name
        about["acceptance"] = ", ".join(f"{share:.4g}" for share in costs.acceptance)
    return about


def _digest(value: object) -> str:
    return sha256(repr(value).encode()).hexdigest()[:12]
