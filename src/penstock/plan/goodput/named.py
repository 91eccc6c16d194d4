"""The planners of whole engines by name: our search, DistServe's two and Vidur-Search."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.distserve import (
    Bisection,
    Candidate,
    Passes,
    Shape,
    colocated_instances,
    pairs_of_instances,
    phases_apart,
    search_goodput,
)
from penstock.plan.goodput.fleet import EngineChoice, Phase, Probe
from penstock.plan.goodput.layout import Layout, Share, link_handoff
from penstock.plan.goodput.machines import Machines, machines_of
from penstock.plan.goodput.planner import PlanJob, Search, Task, plan_for_goodput
from penstock.plan.goodput.publish import Outcome, Placed, engine_plan
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Plan, Routing

CHUNK = 2048
STEPS = 32
"""The published search halves rates from 0 to 5 per GPU down to 0.25; here 1/32 of the most."""


def plan_engines(task: Task, rate_per_s: float | None = None) -> Plan:
    """The plan of the planner that ``task`` names.

    ``rate_per_s``: what ``distserve-high`` replicates its instances for; None = as much as the
    machines carry. Raises ``Infeasible`` with what binds.
    """
    if task.planner == "distserve-high":
        return _DistServe(task).high(rate_per_s)
    if task.planner == "distserve-low":
        return _DistServe(task).low()
    if task.planner == "vidur-search":
        return plan_for_goodput(replace(task, disaggregated=False, schedulers=("vllm", "sarathi")))
    return plan_for_goodput(task)


class _DistServe:
    """DistServe's algorithms on the machines of a cluster, which must be equal."""

    def __init__(self, task: Task) -> None:
        groups = machines_of(task.cluster)
        if len(groups) > 1:
            kinds = ", ".join(f"{g.gpus_per_machine} x {g.accelerator.name}" for g in groups)
            raise SpecError(
                f"{task.planner} places equal machines, and the cluster has {kinds}",
                key="--planner",
                value=task.planner,
                fix="use --planner goodput, or a cluster of one kind of machine",
            )
        self._task = task
        self._search = Search(task)
        self._machines: Machines = groups[0]

    # -- algorithm 1: every pair of GPUs is well connected ------------------------------------

    def high(self, rate_per_s: float | None) -> Plan:
        """The best instance of each phase, replicated for a rate.

        An instance takes half of the GPUs at most, so that there is one of each.
        """
        total, sizes = self._machines.num_gpus, self._machines.tensor_parallel_sizes
        shapes = [
            shape
            for shape in colocated_instances(self._task.cost.model, total // 2)
            if shape.prefill_tp in sizes
        ]
        bisection = self._bisection(shapes)
        wanted = rate_per_s or 1.0
        found = phases_apart(
            shapes, wanted, self._passes("prefill"), self._passes("decode"), bisection
        )
        assert found.decode is not None
        if rate_per_s is None:
            wanted = self._most(found.prefill, found.decode)
        counts = [ceil(wanted / one.rate_per_s - 1e-9) for one in (found.prefill, found.decode)]
        layout = self._layout(found.prefill, found.decode, counts)
        return self._measured(layout, wanted, rate_per_s is not None)

    def _most(self, prefill: Candidate, decode: Candidate) -> float:
        """The largest rate whose instances the machines hold."""
        total = self._machines.num_gpus
        rates = {n * one.rate_per_s for one in (prefill, decode) for n in range(1, total + 1)}
        fitting = [
            rate
            for rate in rates
            if sum(
                ceil(rate / one.rate_per_s - 1e-9) * one.shape.num_gpus for one in (prefill, decode)
            )
            <= total
        ]
        if not fitting:
            need = prefill.shape.num_gpus + decode.shape.num_gpus
            raise Infeasible(
                f"one instance of each phase needs {need} GPUs, the cluster has {total}",
                binding="GPUs",
                fix="more machines, or --planner goodput",
            )
        return max(fitting)

    def _layout(self, prefill: Candidate, decode: Candidate, counts: list[int]) -> Layout:
        unit = max(prefill.shape.prefill_tp, decode.shape.prefill_tp)
        shares, first = [], 0
        roles: tuple[Phase, Phase] = ("prefill", "decode")
        for role, one, count in zip(roles, (prefill, decode), counts, strict=True):
            units = ceil(count * one.shape.num_gpus / unit)
            choice = self._choice(one.shape.prefill_tp, one.shape.prefill_pp, role)
            shares.append(Share(self._machines, choice, unit, first, units, one.rate_per_s))
            first += units
        if first * unit > self._machines.num_gpus:
            raise Infeasible(
                f"the rate needs {first * unit} GPUs, the cluster has {self._machines.num_gpus}",
                binding="GPUs",
                fix="a lower --rate, or more machines",
            )
        return Layout(tuple(shares))

    # -- algorithm 2: the same layers of both phases share a machine --------------------------

    def low(self) -> Plan:
        """The best pair of instances, replicated over all machines."""
        machines, model = self._machines, self._task.cost.model
        sizes = machines.tensor_parallel_sizes
        shapes = [
            shape
            for shape in pairs_of_instances(
                model, "low", len(machines.names), machines.gpus_per_machine
            )
            if shape.prefill_tp in sizes and shape.decode_tp in sizes
        ]

        def passes(shape: Shape, rate: float) -> bool:
            return self._good(self._pairs(shape, 1), rate, "both")

        best = search_goodput(shapes, passes, self._bisection(shapes)).best
        segments, per_machine = self._segments(best.shape)
        copies = len(machines.names) // segments * per_machine
        plan = self._pairs(best.shape, copies)
        rate = best.rate_per_s * copies
        seen = self._probe(plan, rate)
        reasons = [
            f"{copies} x ({best.shape}) over {segments} machines each sustain {rate:.3g} requests/s"
        ]
        if copies > 1:
            reasons.append("pairs are not tied: KV memory may also go to the decodes of another")
        return self._pairs(
            best.shape,
            copies,
            Outcome(
                rate,
                seen.joint,
                self._task.mean_prompt_tokens,
                self._task.planner,
                tuple(reasons),
                self._task.seed,
            ),
        )

    def _segments(self, shape: Shape) -> tuple[int, int]:
        """(machines of one pair, pairs that fit side by side)."""
        gpus, most = shape.num_gpus, self._machines.gpus_per_machine
        for segments in range(1, len(self._machines.names) + 1):
            even = shape.prefill_pp % segments == 0 and shape.decode_pp % segments == 0
            if even and gpus // segments <= most:
                return segments, most // (gpus // segments)
        raise SpecError("the pair fits no machines", key="shape", value=str(shape))

    def _pairs(self, shape: Shape, copies: int, outcome: Outcome | None = None) -> Plan:
        task, machines = self._task, self._machines
        segments, per_machine = self._segments(shape)
        prompts, decodes = shape.prefill_pp // segments, shape.decode_pp // segments
        sizes = (shape.prefill_tp,) * prompts + (shape.decode_tp,) * decodes
        left = machines.gpus_per_machine - per_machine * sum(sizes)
        cuts = sizes * per_machine + ((left,) if left else ())
        parts = {name: Parts(name, cuts) for name in machines.names}
        divided = cut(task.cluster, list(parts.values()))
        placed: list[Placed] = []
        kinds: tuple[tuple[Phase, int, int, int, int], ...] = (
            ("prefill", shape.prefill_tp, shape.prefill_pp, 0, prompts),
            ("decode", shape.decode_tp, shape.decode_pp, prompts, prompts + decodes),
        )
        for copy in range(copies):
            row, place = divmod(copy, per_machine)
            own = machines.names[row * segments : (row + 1) * segments]
            base = place * len(sizes)
            for role, tensor, stages, start, end in kinds:
                choice = self._choice(tensor, stages, role)
                nodes = [n for name in own for n in parts[name].names[base + start : base + end]]
                tokens = task.cost.kv_capacity_tokens(choice.shape)
                placed.append(Placed(f"{role}-{copy}", tuple(nodes), tokens, role, choice.settings))
        used = {name for one in placed for name in one.nodes}
        empty = Outcome(1.0, 1.0, task.mean_prompt_tokens, task.planner)
        return engine_plan(
            divided,
            task.cost,
            placed,
            outcome or empty,
            routing=Routing(expected_output_tokens=task.mean_output_tokens),
            handoff=link_handoff(divided, placed, task.cost.model.num_hidden_layers),
            unused={n.name: "left over" for n in divided.nodes if n.name not in used},
        )

    # -- what both share ----------------------------------------------------------------------

    def _choice(self, tensor: int, stages: int, role: Phase) -> EngineChoice:
        memory = self._task.gpu_memory_utilization
        shape = EngineShape(self._machines.accelerator, tensor, stages, memory)
        return EngineChoice(shape, "vllm", CHUNK, role)

    def _passes(self, phase: Phase) -> Passes:
        def passes(shape: Shape, rate: float) -> bool:
            choice = self._choice(shape.prefill_tp, shape.prefill_pp, "both")
            self._task.cost.kv_capacity_tokens(choice.shape)
            layout = Layout((self._search.share(self._machines, choice),))
            return self._good(self._search.plan(layout), rate, phase)

        return passes

    def _good(self, plan: Plan, rate: float, phase: Phase) -> bool:
        """Percentiles of TTFT and of TPOT apart from each other, as published."""
        seen = self._probe(plan, rate, phase)
        return min(seen.ttft_share, seen.tpot_share) >= self._task.attainment

    def _probe(self, plan: Plan, rate: float, phase: Phase = "both") -> Probe:
        job = PlanJob(plan, rate, self._task.seed, phase, "shares")
        return self._task.probes.submit(job).result()

    def _bisection(self, shapes: list[Shape]) -> Bisection:
        most = 0.0
        for shape in shapes:
            choice = self._choice(shape.prefill_tp, shape.prefill_pp, "prefill")
            try:
                most = max(most, self._search.most(choice) / choice.num_gpus)
            except (SpecError, Infeasible):
                continue
        if most <= 0:
            raise Infeasible(
                f"{self._task.cost.model.name} fits no instance on {self._task.cluster.name}",
                binding="accelerator memory",
                fix="machines with more GPU memory",
            )
        return Bisection(most, most / STEPS)

    def _measured(self, layout: Layout, rate: float, asked: bool) -> Plan:
        task = self._task
        seen = self._probe(self._search.plan(layout), rate)
        text = f"{layout} for {rate:.3g} requests/s: {100 * seen.joint:.1f} % within limits"
        why = "the rate that was asked for" if asked else "the most that the machines hold"
        outcome = Outcome(
            rate, seen.joint, task.mean_prompt_tokens, task.planner, (text, why), task.seed
        )
        return self._search.plan(layout, outcome)
