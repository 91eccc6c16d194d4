"""Published placements as plans, and plans as Helix files.

A placement of the Helix artifact is two ini files: a solution (layers of each node) and a
simulator cluster (KV capacities, and the links requests may take, whose order is the order in
which the published schedulers look at them). Specification sections 1 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from penstock import __version__
from penstock.cost.base import CostModel
from penstock.errors import InputError, SpecError
from penstock.plan import build
from penstock.plan.flow import max_flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.plan import AdmissionName, Engine, Leg, Plan, Routing
from penstock.plan.problem import placement_problem
from penstock.spec.cluster import COORDINATOR, Cluster
from penstock.spec.helix_ini import (
    SimulatorCluster,
    format_simulator_cluster,
    format_solution,
    read_simulator_cluster,
    read_solution,
)
from penstock.storage import write_text

EdgeFlows = Mapping[tuple[str, str], float]
_ENDS = {"source": COORDINATOR, "sink": COORDINATOR}


def import_placement(
    simulator_cluster_ini: str | Path,
    solution_ini: str | Path,
    cost: CostModel,
    *,
    flows: EdgeFlows | None = None,
    force_set: bool = False,
    throughput_cluster: Cluster | None = None,
    routing: Routing | None = None,
    admission: AdmissionName = "drop",
) -> Plan:
    """Return exactly the placement of the two files: nodes, KV capacities, legs in file order.

    ``flows`` (tokens/s by (src, dst) name; ``source`` and ``sink`` name the coordinator) sets the
    router weights; default: a max flow. ``force_set`` accepts nodes with more layers than
    ``cost.max_layers``, whose T(k) rests on the settings of the largest profiled count.
    ``throughput_cluster`` is the fleet whose mix sets T(k) (default: the nodes of the file).

    Raises ``SpecError`` where the files disagree, a leg joins layers that do not follow each
    other, or a node holds too many layers.
    """
    placed = read_simulator_cluster(simulator_cluster_ini)
    solution = read_solution(solution_ini)
    mix = placed.cluster if throughput_cluster is None else throughput_cluster
    problem = placement_problem(placed.cluster, cost, composition=mix, over_full=True)
    placement = _placement(problem, solution, simulator_cluster_ini, solution_ini)
    if not force_set:
        _check_recommended(problem, placement, solution_ini)
    index = placed.cluster.index
    pairs = [(index[src], index[dst]) for src, dst in placed.cluster.pair_links]
    try:
        flow = max_flow(problem, placement, legs=pairs)
    except SpecError as error:
        raise error.at(simulator_cluster_ini, "Links") from None
    engines, reasons = _engines(problem, placement, placed)
    legs = build.legs(problem, flow)
    value = flow.value
    if flows is not None:
        legs, value = _given_flows(legs, flows)
    return Plan(
        cluster=placed.cluster,
        model=cost.model,
        engines=engines,
        legs=legs,
        planner="imported",
        objective="maxflow",
        value=value,
        max_flow_tokens_per_s=flow.value,
        routing=Routing() if routing is None else routing,
        admission=admission,
        unused=build.all_unused(problem, placement, ()),
        reasons=(f"imported from {Path(solution_ini).name}", *reasons),
        cost=cost.to_dict(),
        version=__version__,
    )


def _placement(
    problem: PlacementProblem,
    solution: Mapping[str, tuple[int, int]],
    cluster_path: str | Path,
    solution_path: str | Path,
) -> Placement:
    index = problem.cluster.index
    for name, (_, end) in solution.items():
        if name not in index or name == COORDINATOR:
            raise SpecError(
                f"the node is not in {cluster_path}", source=solution_path, key=f"Solution.{name}"
            )
        if end > problem.num_layers:
            raise SpecError(
                f"{problem.model.name} has {problem.num_layers} layers",
                source=solution_path,
                key=f"Solution.{name}",
                value=end - 1,
            )
    return Placement(tuple(solution.get(node.name) for node in problem.cluster.nodes))


def _check_recommended(
    problem: PlacementProblem, placement: Placement, solution_path: str | Path
) -> None:
    for node, interval in zip(problem.cluster.nodes, placement.intervals, strict=True):
        most = problem.cost.max_layers(node)
        if interval is not None and interval[1] - interval[0] > most:
            raise SpecError(
                f"holds more than the {most} layers its type is profiled for",
                source=solution_path,
                key=f"Solution.{node.name}",
                value=interval[1] - interval[0],
                fix="import with force_set to extrapolate",
            )


def _engines(
    problem: PlacementProblem, placement: Placement, placed: SimulatorCluster
) -> tuple[tuple[Engine, ...], list[str]]:
    """Engines with the file's KV capacities; a capacity the file leaves open comes from cost."""
    given = placed.kv_capacity_layer_tokens
    built, open_names = [], []
    for engine in build.engines(problem, placement):
        if given[engine.name] > 0:
            engine = replace(engine, kv_capacity_layer_tokens=given[engine.name])
        else:
            open_names.append(engine.name)
        built.append(engine)
    reasons = []
    if open_names:
        reasons.append(f"KV capacity not in the file, computed: {', '.join(open_names)}")
    return tuple(built), reasons


def _given_flows(legs: tuple[Leg, ...], flows: EdgeFlows) -> tuple[tuple[Leg, ...], float]:
    """Legs with the given flows, and the total leaving the coordinator."""
    given = {(_ENDS.get(a, a), _ENDS.get(b, b)): amount for (a, b), amount in flows.items()}
    known = {(leg.src, leg.dst) for leg in legs}
    for src, dst in given:
        if (src, dst) not in known:
            raise SpecError("a flow is given for a leg that is not in the file", key=f"{src} {dst}")
    weighted = tuple(
        replace(leg, flow_tokens_per_s=given.get((leg.src, leg.dst), 0.0)) for leg in legs
    )
    return weighted, sum(leg.flow_tokens_per_s for leg in weighted if leg.src == COORDINATOR)


def helix_files(plan: Plan) -> dict[str, str]:
    """The texts of ``solution.ini`` and ``simulator_cluster.ini`` for ``plan``.

    Raises ``InputError`` for what the format cannot say: an engine of several stages or roles,
    node names other than words.
    """
    for engine in plan.engines:
        if len(engine.stages) != 1 or engine.role != "both":
            raise InputError(
                f"{engine.name}: Helix files hold engines of one stage that prefill and decode; "
                "export this plan in another format"
            )
    held = {e.stages[0].node: (e.start_layer, e.end_layer) for e in plan.engines}
    node_of = {e.name: e.stages[0].node for e in plan.engines} | {COORDINATOR: COORDINATOR}
    used = [node for node in plan.cluster.nodes if node.name in held]
    links = {}
    for leg in plan.legs:
        pair = (node_of[leg.src], node_of[leg.dst])
        link = plan.cluster.link(*pair)
        if link is None:
            raise InputError(f"the plan uses a link that the cluster lacks: {pair[0]} -> {pair[1]}")
        links[pair] = link
    placed = SimulatorCluster(
        Cluster(plan.cluster.name, tuple(used), plan.cluster.coordinator, {}, links),
        {node.name: node.machine_type for node in used},
        {node_of[e.name]: e.kv_capacity_layer_tokens for e in plan.engines},
    )
    return {
        "solution.ini": format_solution(held, [node.name for node in plan.cluster.nodes]),
        "simulator_cluster.ini": format_simulator_cluster(placed),
    }


def export_placement(plan: Plan, directory: str | Path) -> tuple[Path, ...]:
    """Write ``helix_files`` into ``directory`` (made if absent); return the paths written."""
    files = helix_files(plan)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in files.items():
        write_text(folder / name, text)
        paths.append(folder / name)
    return tuple(paths)
