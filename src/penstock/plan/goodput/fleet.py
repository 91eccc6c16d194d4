"""The cheapest fleet for a rate and its limits: engines of any shape, together or apart, mixed.

First every engine shape gets a capacity: the largest rate at which enough requests meet all their
limits, found by bisection with probes that the caller passes in. Then whole fleets are tried in
order of price: the first that passes at the full rate on every seed is the cheapest one of those
searched. A fleet that fails comes back with one engine more of the kind that binds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import combinations
from math import ceil, floor, inf, sqrt
from statistics import fmean, stdev
from typing import Literal, Protocol

from penstock.cost.steps import EngineShape, StepCostModel
from penstock.errors import Infeasible, SpecError
from penstock.plan.planner import Progress, ProgressCallback, silent
from penstock.spec.hardware import Accelerator
from penstock.spec.workload import SLO

Phase = Literal["both", "prefill", "decode"]
MOST_TRIED = 60
FRONT_TRIED = 12
FRONT_PRICE = 2.0


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One kind of engine. ``max_num_batched_tokens`` is the chunk of its prompts."""

    shape: EngineShape
    scheduler: str = "vllm"
    max_num_batched_tokens: int = 2048
    role: Phase = "both"

    @property
    def num_gpus(self) -> int:
        return self.shape.num_accelerators

    @property
    def price_per_hour(self) -> float:
        price = self.shape.accelerator.price_per_hour
        return (price if price is not None else 0.0) * self.num_gpus

    def __str__(self) -> str:
        shape = self.shape
        text = f"{shape.accelerator.name} TP{shape.tensor_parallel_size}"
        if shape.pipeline_parallel_size > 1:
            text += f" PP{shape.pipeline_parallel_size}"
        if self.role != "both":
            return f"{self.role} {text}"
        return f"{text} {self.scheduler} chunk {self.max_num_batched_tokens}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Kinds of engines and how many of each; ``shares`` of the requests where kinds differ."""

    engines: tuple[tuple[EngineChoice, int], ...]
    shares: tuple[float, ...] = ()

    @property
    def num_gpus(self) -> int:
        return sum(choice.num_gpus * count for choice, count in self.engines)

    @property
    def price_per_hour(self) -> float:
        return sum(choice.price_per_hour * count for choice, count in self.engines)

    def gpus_by_type(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for choice, count in self.engines:
            name = choice.shape.accelerator.name
            found[name] = found.get(name, 0) + choice.num_gpus * count
        return found

    def __str__(self) -> str:
        return " + ".join(f"{count} x {choice}" for choice, count in self.engines)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one run of a fleet showed; shares are over all requests sent after the warm-up."""

    joint: float
    ttft_share: float
    tpot_share: float
    ttft_p99_s: float
    tpot_p99_s: float
    output_tokens_per_s: float
    ended_early: bool = False
    queue_share: float = 1.0

    @property
    def binding(self) -> str:
        """The limit that fewest requests met."""
        shares = {"TPOT": self.tpot_share, "TTFT": self.ttft_share, "queueing": self.queue_share}
        return min(shares, key=lambda name: shares[name])


class Probes(Protocol):
    """Runs a fleet at a rate (requests/s); ``phase`` leaves the other phase of requests out."""

    def __call__(self, fleet: Fleet, rate_per_s: float, seed: int, phase: Phase) -> Probe: ...


@dataclass(frozen=True)
class Question:
    """What is asked. ``offers``: accelerators and how many of each may be used (None = any).

    ``max_queue_s`` limits the time until a request is first scheduled: with 5 s and an
    ``attainment`` of 0.99 that is the criterion of Vidur-Search (MLSys 2024).
    """

    cost: StepCostModel
    slo: SLO
    rate_per_s: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    offers: tuple[tuple[Accelerator, int | None], ...]
    attainment: float = 0.9
    seeds: tuple[int, ...] = (0, 1, 2)
    tensor_parallel_sizes: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_parallel_sizes: tuple[int, ...] = (1, 2)
    schedulers: tuple[str, ...] = ("vllm",)
    chunks: tuple[int, ...] = (512, 2048)
    disaggregated: bool = True
    mixed: bool = True
    gpu_memory_utilization: float = 0.9
    max_queue_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_s < inf:
            raise SpecError("must be finite and above 0", key="rate", value=self.rate_per_s)
        if not 0 < self.attainment < 1:
            raise SpecError(
                "must lie between 0 and 1", key="attainment", value=self.attainment, fix="try 0.9"
            )
        limits = (self.slo.ttft_s, self.slo.tpot_s, self.slo.e2e_s, self.max_queue_s)
        if all(limit is None for limit in limits):
            raise SpecError("no limit is given", key="slo", fix="give --ttft, --tpot or both")
        for accelerator, _ in self.offers:
            if accelerator.price_per_hour is None:
                raise SpecError(
                    "has no price",
                    key=accelerator.name,
                    fix="offer accelerators with a price, or set one in the cluster file",
                )


@dataclass(frozen=True, slots=True)
class Capacity:
    """A choice with the rate it sustains (requests/s), or the limit that keeps it from any."""

    choice: EngineChoice
    rate_per_s: float
    binding: str = ""
    reason: str = ""
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A whole fleet at the full rate: attainment over the seeds, with its 95 % half-width."""

    fleet: Fleet
    attainment: float
    half_width: float
    probe: Probe
    passed: bool

    @property
    def binding(self) -> str:
        return self.probe.binding


@dataclass(frozen=True)
class Sweep:
    """All that was found. ``best`` is the first fleet that passed; None if stopped before."""

    question: Question
    capacities: tuple[Capacity, ...]
    tried: tuple[Tried, ...]
    best: Tried | None
    not_searched: tuple[str, ...]
    interrupted: bool = False

    @property
    def front(self) -> tuple[Tried, ...]:
        """Fleets that passed and that none beats in both price and p99 TTFT."""
        passed = sorted(
            (one for one in self.tried if one.passed), key=lambda one: one.fleet.price_per_hour
        )
        front: list[Tried] = []
        for one in passed:
            if not front or one.probe.ttft_p99_s < front[-1].probe.ttft_p99_s:
                front.append(one)
        return tuple(front)


def cheapest_fleet(
    question: Question, probes: Probes, progress: ProgressCallback = silent
) -> Sweep:
    """Search; Ctrl-C returns what was found so far.

    Raises ``Infeasible`` with the limit that binds and the cheapest way out.
    """
    search = _Search(question, probes, progress)
    interrupted = False
    try:
        search.measure()
        search.try_fleets()
    except KeyboardInterrupt:
        interrupted = True
    if search.best is None and not interrupted:
        raise search.infeasible()
    return Sweep(
        question,
        tuple(search.capacities),
        tuple(search.tried),
        search.best,
        search.not_searched(),
        interrupted,
    )


@dataclass
class _Search:
    question: Question
    probes: Probes
    progress: ProgressCallback
    capacities: list[Capacity] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    best: Tried | None = None

    # -- capacities ---------------------------------------------------------------------------

    def measure(self) -> None:
        """The capacity of every kind of engine."""
        choices = list(self._choices())
        for done, choice in enumerate(choices):
            self.progress(Progress(f"capacity of {choice}", 0.7 * done / len(choices)))
            self.capacities.append(self._capacity(choice))

    def _choices(self) -> list[EngineChoice]:
        q = self.question
        shapes = [
            EngineShape(accelerator, tp, pp, q.gpu_memory_utilization)
            for accelerator, most in q.offers
            for tp in q.tensor_parallel_sizes
            for pp in q.pipeline_parallel_sizes
            if most is None or tp * pp <= most
        ]
        roles: tuple[Phase, ...] = ("prefill", "decode") if q.disaggregated else ()
        found = [
            EngineChoice(shape, scheduler, chunk)
            for shape in shapes
            for scheduler in q.schedulers
            for chunk in q.chunks
        ]
        return found + [
            EngineChoice(shape, "vllm", max(q.chunks), role) for shape in shapes for role in roles
        ]

    def _capacity(self, choice: EngineChoice) -> Capacity:
        q = self.question
        try:
            tokens = q.cost.kv_capacity_tokens(choice.shape)
            timer = q.cost.step_timer(choice.shape)
        except (Infeasible, SpecError) as error:
            binding = "accelerator memory" if isinstance(error, Infeasible) else "shape"
            reason = error.reason if isinstance(error, Infeasible) else error.problem
            return Capacity(choice, 0.0, binding, reason)
        stages = choice.shape.pipeline_parallel_size
        prompt, output = q.mean_prompt_tokens, q.mean_output_tokens
        prompt_s = timer.step_s([(round(prompt), 0)], 0, 0)
        first_s = prompt_s * stages
        token_s = timer.decode_s(1, round(prompt)) * stages
        if choice.role != "decode" and q.slo.ttft_s is not None and first_s > q.slo.ttft_s:
            return Capacity(choice, 0.0, "TTFT", f"a mean prompt alone takes {first_s:.2f} s")
        if choice.role != "prefill" and q.slo.tpot_s is not None and token_s > q.slo.tpot_s:
            return Capacity(choice, 0.0, "TPOT", f"a token alone takes {1e3 * token_s:.0f} ms")
        if tokens < prompt + output:
            return Capacity(choice, 0.0, "KV memory", f"KV memory holds {tokens} tokens")
        # No engine does more prompts, nor holds more requests for their decodes, than this.
        most = inf if choice.role == "decode" else 1.2 / prompt_s
        if choice.role != "prefill":
            held = tokens / (prompt + output / 2)
            most = min(most, 1.2 * held / (max(1.0, output) * token_s))
        return self._bisect(choice, min(most, 2 * q.rate_per_s))

    def _bisect(self, choice: EngineChoice, most: float) -> Capacity:
        low, high = 0.0, most
        kept: Probe | None = None
        last: Probe | None = None
        while high - low > 0.06 * high and high > 0.02 * most:
            rate = (low + high) / 2
            last = self._probe(choice, rate)
            if last.joint >= self.question.attainment:
                low, kept = rate, last
            else:
                high = rate
        if kept is not None:
            return Capacity(choice, low, probe=kept)
        assert last is not None
        binding = last.binding
        return Capacity(choice, 0.0, binding, f"misses {binding} even at {high:.2g} req/s", last)

    def _probe(self, choice: EngineChoice, rate: float) -> Probe:
        alone = replace(choice, role="both")
        return self.probes(Fleet(((alone, 1),)), rate, self.question.seeds[0], choice.role)

    # -- whole fleets -------------------------------------------------------------------------

    def try_fleets(self) -> None:
        """In order of price: one passes at the full rate, some dearer ones for the front."""
        queue = self._candidates()
        heapify(queue)
        number = len(queue)
        seen: set[str] = set()
        while queue and len(self.tried) < MOST_TRIED:
            price, _, fleet = heappop(queue)
            if self._enough(price):
                return
            if str(fleet) in seen or not self._offered(fleet):
                continue
            seen.add(str(fleet))
            self.progress(Progress(f"${price:.2f}/h: {fleet}", 0.7 + 0.005 * len(self.tried)))
            found = self._try(fleet)
            self.tried.append(found)
            if found.passed:
                self.best = self.best or found
                continue
            for larger in _larger(found):
                number += 1
                heappush(queue, (larger.price_per_hour, number, larger))

    def _enough(self, price: float) -> bool:
        """Whether the winner is known and what is left is too dear, or there were enough."""
        if self.best is None:
            return False
        after = len(self.tried) - self.tried.index(self.best) - 1
        return after >= FRONT_TRIED or price > FRONT_PRICE * self.best.fleet.price_per_hour

    def _candidates(self) -> list[tuple[float, int, Fleet]]:
        q = self.question
        good = [one for one in self.capacities if one.rate_per_s > 0]
        together = [one for one in good if one.choice.role == "both"]
        fleets = [Fleet(((one.choice, self._count(one)),)) for one in together]
        prompts = [one for one in good if one.choice.role == "prefill"]
        decodes = [one for one in good if one.choice.role == "decode"]
        fleets += [
            Fleet(((p.choice, self._count(p)), (d.choice, self._count(d))))
            for p in prompts
            for d in decodes
        ]
        if q.mixed:
            best = _best_by_type(together)
            for one, other in combinations(best, 2):
                fleets += self._mixtures(one, other)
        return [(fleet.price_per_hour, i, fleet) for i, fleet in enumerate(fleets)]

    def _count(self, one: Capacity) -> int:
        # Several engines behind one router sustain a little more than their sum.
        return max(1, ceil(0.85 * self.question.rate_per_s / one.rate_per_s))

    def _mixtures(self, one: Capacity, other: Capacity) -> list[Fleet]:
        rate = 0.85 * self.question.rate_per_s
        fleets = []
        for count in range(1, floor(rate / one.rate_per_s) + 1):
            rest = rate - count * one.rate_per_s
            if rest > 0:
                more = ceil(rest / other.rate_per_s)
                fleets.append(
                    Fleet(
                        ((one.choice, count), (other.choice, more)),
                        (one.rate_per_s, other.rate_per_s),
                    )
                )
        return fleets

    def _offered(self, fleet: Fleet) -> bool:
        limits = {gpu.name: most for gpu, most in self.question.offers}
        return all(
            (most := limits[name]) is None or count <= most
            for name, count in fleet.gpus_by_type().items()
        )

    def _try(self, fleet: Fleet) -> Tried:
        q = self.question
        found: list[Probe] = []
        for seed in q.seeds:
            found.append(self.probes(fleet, q.rate_per_s, seed, "both"))
            if found[-1].joint < q.attainment:
                break
        shares = [one.joint for one in found]
        width = 1.96 * stdev(shares) / sqrt(len(shares)) if len(shares) > 1 else 0.0
        worst = min(found, key=lambda one: one.joint)
        return Tried(fleet, fmean(shares), width, worst, min(shares) >= q.attainment)

    # -- when there is none -------------------------------------------------------------------

    def infeasible(self) -> Infeasible:
        """Which limit binds, and what would help most cheaply."""
        if self.tried:
            last = max(self.tried, key=lambda one: one.attainment)
            need = f"{100 * last.attainment:.1f} % of {100 * self.question.attainment:g} %"
            return Infeasible(
                f"no fleet of the GPUs on offer passes; the best of {len(self.tried)} reaches "
                f"{need}: {last.fleet}",
                binding=f"{last.binding} limit or the number of GPUs",
                fix=f"offer more GPUs or a wider {last.binding} limit",
            )
        # Engines for both phases tell most; those that have memory tell more than those without.
        failed = [one for one in self.capacities if not one.rate_per_s]
        failed = [one for one in failed if one.choice.role == "both"] or failed
        near = [one for one in failed if one.binding in {"TTFT", "TPOT", "queueing"}] or failed
        counts: dict[str, int] = {}
        for one in near:
            counts[one.binding] = counts.get(one.binding, 0) + 1
        binding = max(counts, key=lambda name: counts[name]) if counts else "GPUs on offer"
        fixes = {
            "accelerator memory": "larger tensor or pipeline parallelism, or larger GPUs",
            "KV memory": "larger tensor or pipeline parallelism, or larger GPUs",
            "GPUs on offer": "offer more GPUs",
        }
        example = next((one for one in near if one.binding == binding), None)
        reason = f" ({example.choice}: {example.reason})" if example else ""
        return Infeasible(
            f"no kind of engine on offer meets the limits at any rate{reason}",
            binding=binding,
            fix=fixes.get(binding, f"a wider {binding} limit, or faster GPUs"),
        )

    def not_searched(self) -> tuple[str, ...]:
        """What the answer says nothing about."""
        q = self.question
        lines = [
            f"tensor parallelism other than {_listed(q.tensor_parallel_sizes)}, pipelines other "
            f"than {_listed(q.pipeline_parallel_sizes)}, chunks other than {_listed(q.chunks)}",
            f"schedulers other than {', '.join(q.schedulers)}; speculative decoding; quantisation",
            "mixtures of more than two kinds of engines",
        ]
        if not q.disaggregated:
            lines.append("prefill and decode on different engines")
        if not q.mixed:
            lines.append("mixtures of GPU types")
        return tuple(lines)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _best_by_type(together: Sequence[Capacity]) -> list[Capacity]:
    """The two kinds of each accelerator with the most requests for a dollar."""
    by_type: dict[str, list[Capacity]] = {}
    for one in together:
        by_type.setdefault(one.choice.shape.accelerator.name, []).append(one)
    worth: Callable[[Capacity], float] = lambda one: one.choice.price_per_hour / one.rate_per_s  # noqa: E731
    return [one for group in by_type.values() for one in sorted(group, key=worth)[:2]]


def _larger(found: Tried) -> list[Fleet]:
    """One engine more: of the phase that binds, or of each kind in a mixture."""
    engines = found.fleet.engines
    roles = [choice.role for choice, _ in engines]
    places = range(len(engines))
    if "prefill" in roles:
        places = range(roles.index("prefill" if found.binding == "TTFT" else "decode"), len(roles))
        places = range(places.start, places.start + 1)
    larger = []
    for place in places:
        grown = tuple((choice, count + (i == place)) for i, (choice, count) in enumerate(engines))
        larger.append(replace(found.fleet, engines=grown))
    return larger
