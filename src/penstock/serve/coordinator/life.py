"""What the coordinator knows of requests on per-request paths, and of the nodes they cross."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.policy.admission import Ticket
from penstock.policy.kv import KVPool
from penstock.policy.route import Hop as PlannedHop
from penstock.serve.coordinator.live import Live
from penstock.serve.wire import Begin, Item


@dataclass(slots=True, eq=False)
class Life:
    """A request from its admission to its end, its preemption or the loss of a node.

    ``number`` counts admissions and names it to the workers; ``context`` tokens have KV entries on
    every hop, ``fed`` more run now.
    """

    live: Live
    number: int = 0
    context: int = 0
    fed: int = 0
    ticket: Ticket | None = None
    hops: tuple[PlannedHop, ...] = ()
    legs: tuple[int, ...] = ()
    since_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return self.live.prompt_tokens

    @property
    def generated_tokens(self) -> int:
        return self.live.output_tokens


@dataclass(slots=True)
class NodeView:
    """What the coordinator knows of a node. ``pool`` counts (token, layer) entries in pages."""

    pool: KVPool
    alive: bool = False
    queued_first: int = 0
    running: int = 0
    busy_s: float = 0.0
    batches: int = 0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    outgoing: list[Item] = field(default_factory=list)
    begins: list[Begin] = field(default_factory=list)
