"""Whole engines on the machines of a cluster, for the highest rate within their limits.

Every shape that the machines allow gets a capacity for both phases and for each alone: the largest
rate one engine sustains, found by bisection with probes that the caller passes in. Layouts are
ranked by the sum of their engines' capacities; the best few are measured as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import inf
from typing import Literal

from penstock.cost.steps import StepCostModel
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.chains import Chain, Probes, run_chains
from penstock.plan.goodput.fleet import EngineChoice, Phase
from penstock.plan.goodput.layout import Layout, Share, layout_plan
from penstock.plan.goodput.machines import Machines, machines_of, shape_on
from penstock.plan.goodput.publish import Outcome
from penstock.plan.goodput.rates import (
    OPTIMISM,
    Ask,
    Judged,
    answer_chain,
    capacity_chain,
    short_rate_chain,
)
from penstock.plan.plan import Plan
from penstock.plan.planner import Progress, ProgressCallback, silent
from penstock.spec.cluster import Cluster

Effort = Literal["verdict", "answer", "shares"]
MEASURED = 4
WAVE = 4
NEAR = 0.9
TOGETHER = 2
"""Layouts that get long runs side by side; fixed, so that cores do not matter."""
SPLITS = 5
KINDS = 3


@dataclass(frozen=True, slots=True)
class PlanJob:
    """A run to make: ``plan`` at ``rate_per_s`` requests/s.

    ``phase`` leaves the other phase of requests out. ``effort``: ``verdict`` is a short run that
    ends when it is certain to pass or to fail; ``answer`` a long one that ends when it is certain
    to fail; ``shares`` a short one to its end, for the share of each limit on its own.
    """

    plan: Plan
    rate_per_s: float
    seed: int = 0
    phase: Phase = "both"
    effort: Effort = "answer"


@dataclass(frozen=True)
class Task:
    """What is asked: a cluster, a model with its costs, traffic, and what may be tried."""

    cluster: Cluster
    cost: StepCostModel
    mean_prompt_tokens: float
    mean_output_tokens: float
    probes: Probes[PlanJob]
    attainment: float = 0.9
    pipeline_parallel_sizes: tuple[int, ...] = (1, 2)
    schedulers: tuple[str, ...] = ("vllm",)
    chunks: tuple[int, ...] = (512, 2048)
    disaggregated: bool = True
    gpu_memory_utilization: float = 0.9
    planner: str = "goodput"
    seeds: tuple[int, ...] = (0,)
    progress: ProgressCallback = silent

    @property
    def seed(self) -> int:
        return self.seeds[0]


@dataclass(frozen=True, slots=True)
class Rated:
    """A kind of engine with the rate that one sustains, or what keeps it from any."""

    machines: Machines
    choice: EngineChoice
    rate_per_s: float
    binding: str = ""
    reason: str = ""

    @property
    def worth(self) -> float:
        return self.rate_per_s / self.choice.num_gpus


def plan_for_goodput(task: Task) -> Plan:
    """The plan with the highest measured rate; Ctrl-C gives the best one so far.

    Raises ``Infeasible`` with what binds.
    """
    search = Search(task)
    try:
        search.rate()
        search.measure()
    except KeyboardInterrupt:
        if search.best is None:
            raise
        search.interrupted = True
    return search.publish()


@dataclass
class Search:
    """Capacities first, then layouts."""

    task: Task
    rated: list[Rated] = field(default_factory=list)
    found: list[tuple[Layout, Judged]] = field(default_factory=list)
    beaten: list[tuple[Layout, float]] = field(default_factory=list)
    interrupted: bool = False

    @cached_property
    def groups(self) -> tuple[Machines, ...]:
        return machines_of(self.task.cluster)

    # -- capacities ---------------------------------------------------------------------------

    def rate(self) -> None:
        """The capacity of every kind of engine that the machines allow."""
        task = self.task
        kinds = [
            (machines, EngineChoice(shape, scheduler, chunk, role))
            for machines in self.groups
            for tensor, stages in product(
                machines.tensor_parallel_sizes, task.pipeline_parallel_sizes
            )
            if tensor * stages <= machines.num_gpus
            for shape in [shape_on(machines, tensor, stages, task.gpu_memory_utilization)]
            for role, scheduler, chunk in self._roles()
        ]
        rated: dict[int, Rated] = {}
        for place, one in run_chains((self.capacity(*kind) for kind in kinds), task.probes):
            rated[place] = one
            task.progress(Progress(f"capacity of {one.choice}", 0.6 * len(rated) / len(kinds)))
        self.rated = [rated[place] for place in range(len(kinds))]

    def _roles(self) -> list[tuple[Phase, str, int]]:
        task = self.task
        roles: list[tuple[Phase, str, int]] = [
            ("both", scheduler, chunk) for scheduler in task.schedulers for chunk in task.chunks
        ]
        if task.disaggregated:
            roles += [("prefill", "vllm", max(task.chunks)), ("decode", "vllm", max(task.chunks))]
        return roles

    def capacity(self, machines: Machines, choice: EngineChoice) -> Chain[PlanJob, Rated]:
        """What one engine sustains of its phase."""
        cost, task = self.task.cost, self.task
        try:
            tokens = cost.kv_capacity_tokens(choice.shape)
            cost.step_timer(choice.shape)
        except Infeasible as error:
            return Rated(machines, choice, 0.0, "accelerator memory", error.reason)
        except SpecError as error:
            return Rated(machines, choice, 0.0, "shape", error.problem)
        prompt, output = task.mean_prompt_tokens, task.mean_output_tokens
        if tokens < prompt + output:
            return Rated(machines, choice, 0.0, "KV memory", f"it holds {tokens} tokens")
        most = self.most(choice)
        alone = Layout((self.share(machines, replace(choice, role="both")),))
        ask = asking(self.plan(alone), choice.role)
        good, last = yield from capacity_chain(ask, most, task.seed, task.attainment)
        if good:
            return Rated(machines, choice, good[-1][0])
        binding = last.binding
        return Rated(machines, choice, 0.0, binding, f"misses {binding} at any rate")

    def most(self, choice: EngineChoice) -> float:
        """A rate that one engine cannot exceed: its prompts one by one, all it holds decoding."""
        cost, task = self.task.cost, self.task
        prompt, output = task.mean_prompt_tokens, task.mean_output_tokens
        timer, stages = cost.step_timer(choice.shape), choice.shape.pipeline_parallel_size
        most = inf
        if choice.role != "decode":
            most = 1.2 / timer.step_s([(max(1, round(prompt)), 0)], 0, 0)
        if choice.role != "prefill":
            held = min(cost.kv_capacity_tokens(choice.shape) / (prompt + output / 2), 256.0)
            token_s = timer.decode_s(1, round(prompt)) * stages
            most = min(most, 1.2 * held / (max(1.0, output) * token_s))
        return most

    def share(self, machines: Machines, choice: EngineChoice) -> Share:
        """One engine of a kind on the first machines."""
        tensor, stages = choice.shape.tensor_parallel_size, choice.shape.pipeline_parallel_size
        return Share(machines, choice, tensor, 0, stages, 1.0)

    def plan(self, layout: Layout, outcome: Outcome | None = None) -> Plan:
        task = self.task
        empty = Outcome(1.0, 1.0, task.mean_prompt_tokens, task.planner, (), task.seed)
        return layout_plan(
            layout, task.cluster, task.cost, outcome or empty, task.mean_output_tokens
        )

    # -- layouts ------------------------------------------------------------------------------

    @property
    def best(self) -> tuple[Layout, Judged] | None:
        good = [one for one in self.found if one[1].passed]
        return max(good, key=lambda one: one[1].rate_per_s, default=None)

    def measure(self) -> None:
        """Measure the layouts with the highest estimates, each only if it beats those before.

        Waves of a fixed size: the answer does not depend on how many probes run at once.
        """
        queue = [(layout, plan) for layout in self.layouts() if (plan := self._joined(layout))]
        total = len(queue)
        while queue:
            wave, queue = queue[:WAVE], queue[WAVE:]
            floor = self._floor_per_s()
            wave = [one for one in wave if OPTIMISM * one[0].estimate_per_s > floor]
            short = self._short(wave, floor)
            while short and short[0][0] > self._floor_per_s():
                near = [one for one in short[:TOGETHER] if one[0] > NEAR * short[0][0]]
                self._answer(near)
                short = short[len(near) :]
            floor = self._floor_per_s()
            self.beaten += [(layout, rate or floor) for rate, layout, _ in short]
            done = 1 - len(queue) / total
            self.task.progress(Progress(f"measured {total - len(queue)} layouts", 0.6 + 0.4 * done))

    def _floor_per_s(self) -> float:
        return 0.0 if self.best is None else self.best[1].rate_per_s

    def _short(
        self, wave: Sequence[tuple[Layout, Plan]], floor_per_s: float
    ) -> list[tuple[float, Layout, Plan]]:
        """Layouts with their rates by short runs, highest first."""
        task, rates = self.task, dict[int, float]()
        chains = [
            short_rate_chain(
                asking(plan), task.seed, task.attainment, layout.estimate_per_s, floor_per_s
            )
            for layout, plan in wave
        ]
        for place, (rate, _) in run_chains(chains, task.probes):
            rates[place] = rate
        places = sorted(rates, key=lambda place: -rates[place])
        return [(rates[place], *wave[place]) for place in places]

    def _answer(self, short: Sequence[tuple[float, Layout, Plan]]) -> None:
        """Long runs on every seed of what seems best."""
        task, floor = self.task, self._floor_per_s()
        chains = [
            answer_chain(asking(plan), task.seeds, task.attainment, rate, floor)
            for rate, _, plan in short
        ]
        done: dict[int, Judged] = {}
        try:
            for place, judged in run_chains(chains, task.probes):
                done[place] = judged
                task.progress(Progress(f"measured {short[place][1]}", 0.7))
        finally:
            self.found += [(short[place][1], done[place]) for place in sorted(done)]

    def _joined(self, layout: Layout) -> Plan | None:
        """The plan of a layout; None where engines are not joined and cannot hand over."""
        try:
            return self.plan(layout)
        except SpecError:
            return None

    def publish(self) -> Plan:
        """The plan of the best layout with the reasons for it."""
        if self.best is None:
            raise self.infeasible()
        task = self.task
        layout, judged = self.best
        interval = judged.interval
        others = [(one.rate_per_s, other, one.passed) for other, one in self.found]
        others += [(rate, other, False) for other, rate in self.beaten]
        others = sorted((o for o in others if o[1] is not layout), key=lambda one: -one[0])
        reasons = [
            f"{layout} sustain {judged.rate_per_s:.3g} requests/s with "
            f"{100 * judged.attainment:.1f} % within limits (95 % interval "
            f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %, {len(task.seeds)} seeds)",
            *(
                f"{other} sustain {'' if exact else 'less than '}{less:.3g} requests/s"
                for less, other, exact in others[:MEASURED]
            ),
            f"{judged.probe.binding} binds first; no bound is stated: the search is not exhaustive",
        ]
        if self.interrupted:
            reasons.append("the search was stopped before its end; this is the best so far")
        outcome = Outcome(
            judged.rate_per_s,
            judged.attainment,
            task.mean_prompt_tokens,
            task.planner,
            tuple(reasons),
            task.seed,
        )
        return self.plan(layout, outcome)

    def layouts(self) -> list[Layout]:
        """The most promising layouts of engines together, and of phases apart."""
        together = self._together()
        apart = self._apart() if self.task.disaggregated else []
        ranked = sorted(apart, key=lambda layout: -layout.estimate_per_s)[: 2 * MEASURED]
        return together[:MEASURED] + ranked

    def kinds(self, machines: Machines, role: Phase) -> list[Rated]:
        """Kinds of engines of a role with capacity on ``machines``, most requests a GPU first."""
        own = [
            one
            for one in self.rated
            if one.machines is machines and one.choice.role == role and one.rate_per_s > 0
        ]
        return sorted(own, key=lambda one: (-one.worth, one.choice.num_gpus))

    def _together(self) -> list[Layout]:
        """All machines with their best kind; then with the next ones of the largest group."""
        groups = [g for g in self.groups if self.kinds(g, "both")]
        if not groups:
            return []
        groups.sort(key=lambda g: -self.kinds(g, "both")[0].worth * g.num_gpus)
        rest = tuple(self._whole(g, self.kinds(g, "both")[0]) for g in groups[1:])
        firsts = self.kinds(groups[0], "both")[: 2 * KINDS]
        layouts = [Layout((self._whole(groups[0], one), *rest)) for one in firsts]
        layouts = [one for one in layouts if one.estimate_per_s > 0]
        return sorted(layouts, key=lambda layout: -layout.estimate_per_s)

    def _whole(self, machines: Machines, one: Rated) -> Share:
        tensor = one.choice.shape.tensor_parallel_size
        units = machines.num_gpus // tensor
        return Share(machines, one.choice, tensor, 0, units, one.rate_per_s)

    def _apart(self) -> list[Layout]:
        """Machines in order of how much better they are at prompts; one group holds both phases."""
        groups = [g for g in self.groups if self.kinds(g, "prefill") or self.kinds(g, "decode")]
        groups.sort(key=lambda g: -self._advantage(g))
        layouts = []
        for place, group in enumerate(groups):
            before = [self._phase(g, "prefill") for g in groups[:place]]
            after = [self._phase(g, "decode") for g in groups[place + 1 :]]
            rest = tuple(share for share in (*before, *after) if share is not None)
            layouts += self._splits(group, rest)
        return [layout for layout in layouts if layout.estimate_per_s > 0]

    def _advantage(self, machines: Machines) -> float:
        prefill, decode = self.kinds(machines, "prefill"), self.kinds(machines, "decode")
        if not decode:
            return inf
        return prefill[0].worth / decode[0].worth if prefill else 0.0

    def _phase(self, machines: Machines, role: Phase) -> Share | None:
        kinds = self.kinds(machines, role)
        return self._whole(machines, kinds[0]) if kinds else None

    def _splits(self, machines: Machines, rest: tuple[Share, ...]) -> list[Layout]:
        """Cut one group between the phases where prompts and decodes are about even."""
        found = []
        first, second = self.kinds(machines, "prefill")[:KINDS], self.kinds(machines, "decode")
        for prompts, decodes in product(first, second[:KINDS]):
            sizes = (
                prompts.choice.shape.tensor_parallel_size,
                decodes.choice.shape.tensor_parallel_size,
            )
            unit = max(sizes)
            if unit % min(sizes):
                continue
            units = machines.num_gpus // unit
            layouts = []
            for taken in range(units + 1):
                shares = (
                    Share(machines, prompts.choice, unit, 0, taken, prompts.rate_per_s),
                    Share(machines, decodes.choice, unit, taken, units - taken, decodes.rate_per_s),
                )
                layouts.append(Layout((*(one for one in shares if one.engines), *rest)))
            layouts.sort(key=lambda layout: -layout.estimate_per_s)
            found += layouts[: max(1, SPLITS // KINDS)]
        if not found and rest:
            found.append(Layout(rest))
        return found

    # -- when there is none -------------------------------------------------------------------

    def infeasible(self) -> Infeasible:
        """Which limit binds most shapes, and what would help."""
        failed = [one for one in self.rated if not one.rate_per_s and one.choice.role == "both"]
        near = [one for one in failed if one.binding in ("TTFT", "TPOT", "queueing")] or failed
        counts: dict[str, int] = {}
        for one in near:
            counts[one.binding] = counts.get(one.binding, 0) + 1
        binding = max(counts, key=lambda name: counts[name]) if counts else "links between engines"
        example = next((one for one in near if one.binding == binding), None)
        memory = binding in ("accelerator memory", "KV memory", "shape")
        return Infeasible(
            f"no engines of {self.task.cost.model.name} on {self.task.cluster.name} meet the limits"
            + (f" ({example.choice}: {example.reason})" if example else ""),
            binding=binding,
            fix="machines with more GPU memory, or longer pipelines"
            if memory
            else f"a wider {binding} limit, or faster GPUs",
        )


def asking(plan: Plan, phase: Phase = "both") -> Ask[PlanJob]:
    """Jobs of ``plan``."""

    def ask(rate_per_s: float, seed: int, verdict_only: bool) -> PlanJob:
        return PlanJob(plan, rate_per_s, seed, phase, "verdict" if verdict_only else "answer")

    return ask
