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
from typing import Protocol

from penstock.cost.steps import StepCostModel
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.fleet import EngineChoice, Phase
from penstock.plan.goodput.layout import Layout, Share, layout_plan
from penstock.plan.goodput.machines import Machines, machines_of, shape_on
from penstock.plan.goodput.publish import Outcome
from penstock.plan.plan import Plan
from penstock.plan.planner import Progress, ProgressCallback, silent
from penstock.spec.cluster import Cluster

TOLERANCE = 0.06
LEAST_RATE = 0.02
MEASURED = 4
SPLITS = 5
KINDS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """Shares of the requests of one run: good ones, and those within each limit."""

    good: float
    ttft: float = 1.0
    tpot: float = 1.0
    queue: float = 1.0

    @property
    def binding(self) -> str:
        """The limit that fewest requests met."""
        shares = {"TPOT": self.tpot, "TTFT": self.ttft, "queueing": self.queue}
        return min(shares, key=lambda name: shares[name])


class PlanProbes(Protocol):
    """Runs a plan at a rate (requests/s); ``phase`` leaves the other phase of requests out."""

    def __call__(self, plan: Plan, rate_per_s: float, phase: Phase = "both") -> Seen: ...


@dataclass(frozen=True)
class Task:
    """What is asked: a cluster, a model with its costs, traffic, and what may be tried."""

    cluster: Cluster
    cost: StepCostModel
    mean_prompt_tokens: float
    mean_output_tokens: float
    probes: PlanProbes
    attainment: float = 0.9
    pipeline_parallel_sizes: tuple[int, ...] = (1, 2)
    schedulers: tuple[str, ...] = ("vllm",)
    chunks: tuple[int, ...] = (512, 2048)
    disaggregated: bool = True
    gpu_memory_utilization: float = 0.9
    planner: str = "goodput"
    seed: int = 0
    progress: ProgressCallback = silent


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
    """The plan with the highest measured rate. Raises ``Infeasible`` with what binds."""
    search = Search(task)
    search.rate()
    return search.best()


@dataclass
class Search:
    """Capacities first, then layouts."""

    task: Task
    rated: list[Rated] = field(default_factory=list)

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
        for done, (machines, choice) in enumerate(kinds):
            task.progress(Progress(f"capacity of {choice}", 0.6 * done / len(kinds)))
            self.rated.append(self.capacity(machines, choice))

    def _roles(self) -> list[tuple[Phase, str, int]]:
        task = self.task
        roles: list[tuple[Phase, str, int]] = [
            ("both", scheduler, chunk) for scheduler in task.schedulers for chunk in task.chunks
        ]
        if task.disaggregated:
            roles += [("prefill", "vllm", max(task.chunks)), ("decode", "vllm", max(task.chunks))]
        return roles

    def capacity(self, machines: Machines, choice: EngineChoice) -> Rated:
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
        plan = self.plan(alone)
        rate, seen = self.bisect(plan, most, choice.role)
        if rate > 0:
            return Rated(machines, choice, rate)
        binding = seen.binding
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

    def bisect(self, plan: Plan, most: float, phase: Phase = "both") -> tuple[float, Seen]:
        """(largest rate that is good enough, what was seen there); 0 where there is none."""
        low, high = LEAST_RATE * most, most
        seen = self.task.probes(plan, low, phase)
        if seen.good < self.task.attainment:
            return 0.0, seen
        while high - low > TOLERANCE * high:
            rate = (low + high) / 2
            last = self.task.probes(plan, rate, phase)
            if last.good >= self.task.attainment:
                low, seen = rate, last
            else:
                high = rate
        return low, seen

    # -- layouts ------------------------------------------------------------------------------

    def best(self) -> Plan:
        """Measure the layouts with the highest estimates; the best one becomes the plan."""
        layouts = self.layouts()
        if not layouts:
            raise self.infeasible()
        found: list[tuple[float, Seen, Layout]] = []
        for done, layout in enumerate(layouts):
            share = 0.6 + 0.4 * done / len(layouts)
            self.task.progress(Progress(f"measuring {layout}", share))
            try:
                plan = self.plan(layout)
            except SpecError:
                continue  # engines that are not joined cannot hand over
            rate, seen = self.bisect(plan, 1.6 * layout.estimate_per_s)
            found.append((rate, seen, layout))
        rate, seen, layout = max(
            found, key=lambda one: one[0], default=(0.0, Seen(0.0), Layout(()))
        )
        if rate <= 0:
            raise self.infeasible()
        return self.publish(layout, rate, seen, found)

    def publish(
        self, layout: Layout, rate: float, seen: Seen, found: Sequence[tuple[float, Seen, Layout]]
    ) -> Plan:
        """The plan of ``layout`` with the reasons for it."""
        task = self.task
        others = sorted((one for one in found if one[2] is not layout), key=lambda one: -one[0])
        reasons = [
            f"{layout} sustain {rate:.3g} requests/s with {100 * seen.good:.1f} % within limits",
            *(f"{other} sustain {less:.3g} requests/s" for less, _, other in others[:MEASURED]),
            f"{seen.binding} binds first; no bound is stated: the search is not exhaustive",
        ]
        outcome = Outcome(
            rate, seen.good, task.mean_prompt_tokens, task.planner, tuple(reasons), task.seed
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
