"""Annealing of a placement on the price of pushing a demand through it (the compiled leaf).

Energy of a placement, for a demand of F tokens/s: the cheapest way to carry F from layer 0 to
layer L, per token, when a unit may use

* a node that holds [s, e): from boundary s to boundary e, up to min(T(e - s), F), at ``hop_price``;
* a link between nodes whose layers follow each other, up to its capacity, at ``leg_price``;
* no node at all: along the line of layer boundaries, either way, at ``unit`` per layer; and
  a hop between nodes that no link joins, at ``detour_price``.

So energy minus what nodes and links cost counts missing and misaligned layers; with prices of zero
it is 0 exactly when the max flow reaches F. It is smooth where the max flow is flat.

Prices are integers (``unit`` = one layer), flows are floats. The flow is found by the primal-dual
method: bucket-queue shortest paths on reduced prices, then a blocking flow on arcs of reduced
price zero. Both stop as soon as the price must exceed what the annealing step would accept.

Everything here runs unchanged as plain Python; ``compiled()`` gives the Numba form. It is one file
because Numba's disk cache notices changes of the compiled function's own file only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., object])


def leaf(function: F) -> F:
    """Let compiled code call ``function``; calls from Python stay plain Python."""
    jitable: Callable[[F], F] = register_jitable
    return jitable(function)


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MASK = 0xFFFFFFFF
ABORTED = -1.0


class Instance(NamedTuple):
    """What does not change during a search. n nodes, K most layers of any node.

    capacity     [n, K + 1] tokens/s of node i with k layers (NIC included)
    max_layers   [n]
    alike        [n]        nodes with the same number are interchangeable when links are free
    link         [n+1, n+1] tokens/s; index n = coordinator; ignored when ``free_links``
    leg_price    [n+1, n+1] price of a link
    """

    num_layers: int
    capacity: Floats
    max_layers: Ints
    alike: Ints
    free_links: bool
    link: Floats
    leg_price: Ints
    partial: bool


class Prices(NamedTuple):
    """All in the same integer unit; ``unit`` is the price of one missing layer."""

    unit: int
    hop: int
    detour: int


class Schedule(NamedTuple):
    """``hot`` and ``cold`` are temperatures in layers."""

    proposals: int
    hot: float
    cold: float
    seed: int


class Work(NamedTuple):
    """Scratch memory of one search."""

    vertex: Ints
    first: Ints
    succ: Ints
    head: Ints
    price: Ints
    residual: Floats
    potential: Ints
    distance: Ints
    bucket: Ints
    entry_vertex: Ints
    entry_next: Ints
    cursor: Ints
    state: Ints
    path: Ints
    by_start: Ints
    next_same: Ints
    remaining: Floats
    random: Ints
    sizes: Ints


class Outcome(NamedTuple):
    """Best by energy (in layers) and best by max flow (tokens/s), and proposals made."""

    energy: float
    max_flow: float
    proposals: int


def work_space(n: int, num_layers: int, unit: int) -> Work:
    """Allocate scratch memory for ``n`` nodes."""
    vertices = num_layers + 1 + 2 * n
    arcs = 2 * (2 * num_layers + 5 * n + n * n)

    def ints(size: int) -> Ints:
        return np.zeros(size, dtype=np.int64)

    return Work(
        vertex=ints(num_layers + 1),
        first=ints(vertices),
        succ=ints(arcs),
        head=ints(arcs),
        price=ints(arcs),
        residual=np.zeros(arcs),
        potential=ints(vertices),
        distance=ints(vertices),
        bucket=ints(num_layers * unit + 2),
        entry_vertex=ints(arcs + vertices),
        entry_next=ints(arcs + vertices),
        cursor=ints(vertices),
        state=ints(vertices),
        path=ints(vertices + 1),
        by_start=ints(num_layers + 1),
        next_same=ints(n),
        remaining=np.zeros(num_layers),
        random=ints(1),
        sizes=ints(2),
    )


@leaf
def draw(work: Work, below: int) -> int:
    """Return an integer in [0, below): xorshift32 (Marsaglia, 2003), kept inside 64 bits."""
    x = work.random[0]
    x ^= (x << 13) & MASK
    x ^= x >> 17
    x ^= (x << 5) & MASK
    work.random[0] = x
    drawn: int = (x * below) >> 32
    return drawn


@leaf
def add_arc(work: Work, tail: int, head: int, capacity: float, price: int) -> None:
    a = work.sizes[1]
    work.sizes[1] = a + 2
    work.head[a] = head
    work.residual[a] = capacity
    work.price[a] = price
    work.succ[a] = work.first[tail]
    work.first[tail] = a
    work.head[a + 1] = tail
    work.residual[a + 1] = 0.0
    work.price[a + 1] = -price
    work.succ[a + 1] = work.first[head]
    work.first[head] = a + 1


@leaf
def add_line(work: Work, size: int, demand: float, unit: int, partial: bool) -> int:
    """Number the used boundaries and, when ``unit`` > 0, join neighbours; return how many."""
    vertices = 0
    before = 0
    for b in range(size):
        if work.vertex[b] == 1:
            work.vertex[b] = vertices
            work.first[vertices] = -1
            if vertices > 0 and unit > 0:
                cost = (b - before) * unit
                add_arc(work, vertices - 1, vertices, demand, cost)
                # With partial inference, going back is what entering inside an interval costs.
                add_arc(work, vertices, vertices - 1, demand, 0 if partial else cost)
            vertices += 1
            before = b
    return vertices


@leaf
def build(
    inst: Instance,
    prices: Prices,
    start: Ints,
    end: Ints,
    demand: float,
    detours: bool,
    work: Work,
) -> None:
    """Build the network of a placement; without ``detours`` only what really exists."""
    n = len(start)
    layers = inst.num_layers
    vertex, first = work.vertex, work.first
    work.sizes[1] = 0
    for b in range(layers + 1):
        vertex[b] = -1
    vertex[0] = 1
    vertex[layers] = 1
    for i in range(n):
        vertex[start[i]] = 1
        vertex[end[i]] = 1
    nb = add_line(work, layers + 1, demand, prices.unit if detours else 0, inst.partial)
    if inst.free_links:
        for i in range(n):
            cap = min(inst.capacity[i, end[i] - start[i]], demand)
            add_arc(work, vertex[start[i]], vertex[end[i]], cap, prices.hop)
        if inst.partial and not detours:
            for v in range(1, nb):
                add_arc(work, v, v - 1, demand, 0)
        work.sizes[0] = nb
        return
    work.sizes[0] = nb + 2 * n
    by_start, next_same = work.by_start, work.next_same
    for b in range(layers + 1):
        by_start[b] = -1
    for i in range(n - 1, -1, -1):
        first[nb + 2 * i] = -1
        first[nb + 2 * i + 1] = -1
        next_same[i] = by_start[start[i]]
        by_start[start[i]] = i
    half = prices.detour // 2
    for i in range(n):
        into = nb + 2 * i
        cap = min(inst.capacity[i, end[i] - start[i]], demand)
        add_arc(work, into, into + 1, cap, prices.hop)
        if detours:
            add_arc(work, vertex[start[i]], into, cap, half)
            add_arc(work, into + 1, vertex[end[i]], cap, half)
        if start[i] == 0 and inst.link[n, i] > 0.0:
            add_arc(work, vertex[0], into, inst.link[n, i], inst.leg_price[n, i])
        if end[i] == layers:
            if inst.link[i, n] > 0.0:
                add_arc(work, into + 1, vertex[layers], inst.link[i, n], inst.leg_price[i, n])
        elif inst.partial:
            for j in range(n):
                if start[j] <= end[i] < end[j] and inst.link[i, j] > 0.0:
                    add_arc(work, into + 1, nb + 2 * j, inst.link[i, j], inst.leg_price[i, j])
        else:
            j = by_start[end[i]]
            while j >= 0:
                if inst.link[i, j] > 0.0:
                    add_arc(work, into + 1, nb + 2 * j, inst.link[i, j], inst.leg_price[i, j])
                j = next_same[j]


@leaf
def shortest(work: Work, source: int, sink: int, limit: int, tiny: float) -> int:
    """Set ``distance`` on reduced prices, up to the sink; return the sink's, or -1 beyond limit."""
    vertices = work.sizes[0]
    distance, bucket, potential = work.distance, work.bucket, work.potential
    head, residual, price, succ = work.head, work.residual, work.price, work.succ
    entry_vertex, entry_next = work.entry_vertex, work.entry_next
    for v in range(vertices):
        distance[v] = limit + 1
    distance[source] = 0
    entry_vertex[0] = source
    entry_next[0] = -1
    bucket[0] = 0
    entries = 1
    reach = 0
    d = 0
    found = -1
    while d <= reach:
        entry = bucket[d]
        if entry < 0:
            d += 1
            continue
        bucket[d] = entry_next[entry]
        u = entry_vertex[entry]
        if distance[u] != d:
            continue
        if u == sink:
            found = d
            break
        a = work.first[u]
        base = d + potential[u]
        while a >= 0:
            if residual[a] > tiny:
                v = head[a]
                through = base + price[a] - potential[v]
                if through < distance[v]:
                    distance[v] = through
                    while reach < through:
                        reach += 1
                        bucket[reach] = -1
                    entry_vertex[entries] = v
                    entry_next[entries] = bucket[through]
                    bucket[through] = entries
                    entries += 1
            a = succ[a]
    return found


@leaf
def augment(work: Work, source: int, sink: int, wanted: float, tiny: float) -> float:
    """Push up to ``wanted`` along arcs of reduced price zero (depth first); return the amount."""
    vertices = work.sizes[0]
    head, residual, price, succ = work.head, work.residual, work.price, work.succ
    potential, cursor, state, path = work.potential, work.cursor, work.state, work.path
    for v in range(vertices):
        cursor[v] = work.first[v]
        state[v] = 0
    total = 0.0
    depth = 0
    u = source
    state[u] = 1
    while True:
        if u == sink:
            amount = wanted - total
            for q in range(depth):
                amount = min(amount, residual[path[q]])
            total += amount
            keep = 0
            for q in range(depth - 1, -1, -1):
                a = path[q]
                residual[a] -= amount
                residual[a ^ 1] += amount
                if residual[a] <= tiny:
                    keep = q
            if wanted - total <= tiny:
                return total
            for q in range(keep, depth):
                state[head[path[q]]] = 0
            u = head[path[keep] ^ 1]
            depth = keep
            continue
        a = cursor[u]
        while a >= 0:
            v = head[a]
            if residual[a] > tiny and state[v] == 0 and potential[v] == potential[u] + price[a]:
                break
            a = succ[a]
        cursor[u] = a
        if a >= 0:
            path[depth] = a
            depth += 1
            u = head[a]
            state[u] = 1
        elif depth > 0:
            state[u] = 2
            depth -= 1
            u = head[path[depth] ^ 1]
            cursor[u] = succ[cursor[u]]
        else:
            return total


@leaf
def push(inst: Instance, work: Work, demand: float, unit: int, most: float) -> float:
    """Carry ``demand`` at the least price through the network in ``work``.

    Returns the total price, or ``ABORTED`` once it must exceed ``most``.
    """
    tiny = 1e-9 * demand
    source, sink = work.vertex[0], work.vertex[inst.num_layers]
    limit = inst.num_layers * unit
    for v in range(work.sizes[0]):
        work.potential[v] = 0
    pushed = 0.0
    total = 0.0
    while demand - pushed > tiny:
        nearest = shortest(work, source, sink, limit - work.potential[sink], tiny)
        if nearest < 0:
            return ABORTED
        if nearest > 0:
            for v in range(work.sizes[0]):
                work.potential[v] += min(nearest, work.distance[v])
        per_token = work.potential[sink]
        if total + (demand - pushed) * per_token > most:
            return ABORTED
        amount = augment(work, source, sink, demand - pushed, tiny)
        pushed += amount
        total += amount * per_token
    return total


@leaf
def true_flow(inst: Instance, prices: Prices, start: Ints, end: Ints, work: Work) -> float:
    """Max flow of a placement (tokens/s), by the same network without detours or prices."""
    n = len(start)
    huge = 0.0
    for i in range(n):
        huge += inst.capacity[i, end[i] - start[i]]
    build(inst, prices, start, end, huge, False, work)
    for a in range(work.sizes[1]):
        work.price[a] = 0
    for v in range(work.sizes[0]):
        work.potential[v] = 0
    source, sink = work.vertex[0], work.vertex[inst.num_layers]
    tiny = 1e-12 * huge
    total = 0.0
    while shortest(work, source, sink, 0, tiny) == 0:
        total += augment(work, source, sink, huge, tiny)
    return total


@leaf
def least_price(
    inst: Instance, prices: Prices, start: Ints, end: Ints, demand: float, work: Work
) -> float:
    """Bound the energy (times demand) from below, layer by layer.

    A unit served by a node with k layers pays hop_price / k on each; a unit that no node serves
    pays ``unit``. Filling each layer by itself with its cheapest nodes relaxes the path.
    """
    n = len(start)
    remaining = work.remaining
    layers = inst.num_layers
    for layer in range(layers):
        remaining[layer] = demand
    total = 0.0
    if prices.hop == 0:
        for i in range(n):
            cap = inst.capacity[i, end[i] - start[i]]
            for layer in range(start[i], end[i]):
                remaining[layer] -= cap
    else:
        by_length, next_same = work.by_start, work.next_same
        longest = 0
        for i in range(n):
            longest = max(longest, end[i] - start[i])
        for k in range(longest + 1):
            by_length[k] = -1
        for i in range(n):
            k = end[i] - start[i]
            next_same[i] = by_length[k]
            by_length[k] = i
        for k in range(longest, 0, -1):
            per_layer = prices.hop / k
            i = by_length[k]
            while i >= 0:
                cap = inst.capacity[i, k]
                for layer in range(start[i], end[i]):
                    taken = min(cap, remaining[layer])
                    remaining[layer] -= taken
                    total += taken * per_layer
                i = next_same[i]
    for layer in range(layers):
        if remaining[layer] > 0.0:
            total += remaining[layer] * prices.unit
    return total


@leaf
def propose(inst: Instance, start: Ints, end: Ints, work: Work) -> bool:
    """Change ``start`` and ``end`` by one random move; False when it changes nothing."""
    n = len(start)
    layers = inst.num_layers
    kind = draw(work, 100)
    i = draw(work, n)
    j = draw(work, n)
    if kind < 35:
        return relocate(inst, start, end, i, j, work)
    if kind < 45:
        which = draw(work, 4)
        step = 2 * draw(work, 2) - 1
        if which == 0 or which == 2:
            start[i] += step
        if which == 1 or which == 2:
            end[i] += step
        if which == 3:
            start[i] += step
            end[i] -= step
        held = end[i] - start[i]
        fits: bool = 1 <= held <= inst.max_layers[i] and start[i] >= 0 and end[i] <= layers
        return fits
    if kind < 65:
        if i == j or (inst.free_links and inst.alike[i] == inst.alike[j]):
            return False
        s, e = start[i], end[i]
        take_place(inst, start, end, i, start[j], end[j], work)
        take_place(inst, start, end, j, s, e, work)
        return True
    if kind < 85:
        if start[j] < end[i]:
            i, j = j, i
        if start[j] < end[i] or i == j:
            return False
        return shift(inst, start, end, end[i], start[j], 2 * draw(work, 2) - 1)
    if kind < 95:
        b = start[i] if draw(work, 2) == 0 else end[i]
        return shift(inst, start, end, b, b, 2 * draw(work, 2) - 1)
    if i == j or (start[i] == start[j] and end[i] == end[j]):
        return False
    take_place(inst, start, end, i, start[j], end[j], work)
    return True


@leaf
def relocate(inst: Instance, start: Ints, end: Ints, i: int, j: int, work: Work) -> bool:
    """Move node i so that an end of it meets an end of node j (or an end of the model)."""
    layers = inst.num_layers
    at = draw(work, 2)
    if i == j:
        b = 0 if at == 0 else layers
    else:
        b = start[j] if at == 0 else end[j]
    held = end[i] - start[i]
    if draw(work, 2) == 0:
        held = 1 + draw(work, inst.max_layers[i])
    begins = draw(work, 2) == 0
    if b + held > layers:
        begins = False
    if b - held < 0 and not begins:
        if b + held > layers:
            return False
        begins = True
    s = b if begins else b - held
    if s == start[i] and s + held == end[i]:
        return False
    start[i] = s
    end[i] = s + held
    return True


@leaf
def take_place(inst: Instance, start: Ints, end: Ints, i: int, s: int, e: int, work: Work) -> None:
    """Give node i the interval [s, e), cut at a random side if it is too long for i."""
    most = inst.max_layers[i]
    if e - s > most:
        if draw(work, 2) == 0:
            e = s + most
        else:
            s = e - most
    start[i] = s
    end[i] = e


@leaf
def shift(inst: Instance, start: Ints, end: Ints, low: int, high: int, step: int) -> bool:
    """Move every boundary in [low, high] by ``step``; False when an interval does not allow it."""
    layers = inst.num_layers
    if low <= 0 or high >= layers:
        return False
    for m in range(len(start)):
        if low <= start[m] <= high:
            start[m] += step
        if low <= end[m] <= high:
            end[m] += step
        held = end[m] - start[m]
        if held < 1 or held > inst.max_layers[m] or start[m] < 0 or end[m] > layers:
            return False
    return True


def anneal(
    inst: Instance,
    prices: Prices,
    schedule: Schedule,
    demand: float,
    start: Ints,
    end: Ints,
    work: Work,
    best: Ints,
) -> Outcome:
    """Anneal from (start, end), which end as the last state.

    ``best`` [4, n] receives the intervals of least energy (rows 0, 1) and of most flow (2, 3).
    With no hop or leg price the run ends when the demand is met.
    """
    n = len(start)
    work.random[0] = (schedule.seed * 2654435761 + 12345) & MASK
    if work.random[0] == 0:
        work.random[0] = 1
    for _ in range(8):
        draw(work, 2)
    scale = 1.0 / (demand * prices.unit)
    unlimited = 4.0 * inst.num_layers * prices.unit * demand
    build(inst, prices, start, end, demand, True, work)
    energy = push(inst, work, demand, prices.unit, unlimited) * scale
    least = energy
    most_flow = true_flow(inst, prices, start, end, work)
    flow_energy = energy
    for i in range(n):
        best[0, i] = start[i]
        best[1, i] = end[i]
        best[2, i] = start[i]
        best[3, i] = end[i]
    new_start = start.copy()
    new_end = end.copy()
    temperature = schedule.hot
    cooling = (schedule.cold / schedule.hot) ** (1.0 / max(1, schedule.proposals))
    made = 0
    while made < schedule.proposals:
        made += 1
        temperature *= cooling
        u = draw(work, 1 << 30) + 1
        accept_below = energy - temperature * log(u / (1 << 30))
        if propose(inst, new_start, new_end, work):
            most = accept_below / scale
            price = ABORTED
            if least_price(inst, prices, new_start, new_end, demand, work) <= most:
                build(inst, prices, new_start, new_end, demand, True, work)
                price = push(inst, work, demand, prices.unit, most)
            if price >= 0.0:
                energy = price * scale
                for i in range(n):
                    start[i] = new_start[i]
                    end[i] = new_end[i]
                if energy < least - 1e-12:
                    least = energy
                    for i in range(n):
                        best[0, i] = start[i]
                        best[1, i] = end[i]
                if energy < 1.0 and energy < flow_energy:
                    flow_energy = energy
                    flow = true_flow(inst, prices, start, end, work)
                    if flow > most_flow:
                        most_flow = flow
                        for i in range(n):
                            best[2, i] = start[i]
                            best[3, i] = end[i]
                    if energy <= 1e-9:
                        break
                continue
        for i in range(n):
            new_start[i] = start[i]
            new_end[i] = end[i]
    return Outcome(least, most_flow, made)


Anneal = Callable[[Instance, Prices, Schedule, float, Ints, Ints, Work, Ints], Outcome]


@cache
def compiled() -> Anneal:
    """Return ``anneal`` compiled by Numba (cached on disk after the first call)."""
    return cast(Anneal, njit(cache=True)(anneal))
