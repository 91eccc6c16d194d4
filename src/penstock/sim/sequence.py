"""One life of a request: from admission to its end or its preemption."""

from __future__ import annotations

from penstock.policy.admission import Ticket
from penstock.policy.route import Hop


class Sequence:
    """A request on its way. It has one iteration at a time, so the two share an object.

    ``row`` is its row in the result. ``tokens`` new tokens run after ``context`` cached ones;
    ``hop`` is the hop it is at or travels to, ``layer`` the next layer to run. A request that is
    preempted ends this life (``dead``) and starts another from its prompt and what it generated.
    """

    __slots__ = (
        "arrived_s",
        "context",
        "dead",
        "generated_tokens",
        "hop",
        "hops",
        "layer",
        "legs",
        "order",
        "output_tokens",
        "prefill",
        "prompt_tokens",
        "row",
        "sent_s",
        "ticket",
        "tokens",
    )

    def __init__(
        self, row: int, prompt_tokens: int, output_tokens: int, generated_tokens: int = 0
    ) -> None:
        self.row = row
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.generated_tokens = generated_tokens
        self.tokens = prompt_tokens + generated_tokens
        self.context = 0
        self.prefill = True
        self.layer = 0
        self.hop = 0
        self.hops: list[Hop] = []
        self.legs: list[int] = []
        self.order = 0
        self.ticket: Ticket | None = None
        self.dead = False
        self.arrived_s = 0.0
        self.sent_s = 0.0

    def next_life(self) -> Sequence:
        """Return the sequence that recomputes this one."""
        return Sequence(self.row, self.prompt_tokens, self.output_tokens, self.generated_tokens)
