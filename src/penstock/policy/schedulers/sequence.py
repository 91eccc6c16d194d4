"""What a batch scheduler moves about: sequences, the decodes that step together, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf

Stay = tuple[int, int, int, int]
"""(row, track, first step, end): a sequence took part in steps first..end-1 of a cohort."""


class Sequence:
    """One request inside an engine.

    ``computed`` counts processed tokens n: during the prompt those with KV entries; the step that
    completes the prompt also yields a token, so n jumps to P + 1, and each decode step feeds token
    n (whose KV entry it writes) and makes the next. Complete at n = ``total_tokens``. While the
    sequence is in a cohort n is ``offset + cohort.clock``; ask ``Cohort.computed``.
    ``blocks`` counts KV blocks it holds for itself, ``shared`` cached prompt pieces it uses.
    """

    __slots__ = (
        "arrival_s",
        "blocks",
        "client",
        "computed",
        "deadline_s",
        "finish_at",
        "hashes",
        "joined",
        "offset",
        "preemptions",
        "priority",
        "prompt_tokens",
        "row",
        "shared",
        "total_tokens",
    )

    def __init__(
        self,
        row: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        *,
        hashes: tuple[int, ...] = (),
        client: str = "",
        priority: int = 0,
        deadline_s: float = inf,
    ) -> None:
        self.row = row
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.total_tokens = prompt_tokens + output_tokens
        self.computed = 0
        self.blocks = 0
        self.shared: tuple[int, ...] = ()
        self.hashes = hashes
        self.client = client
        self.priority = priority
        self.deadline_s = deadline_s
        self.preemptions = 0
        self.offset = 0
        self.joined = 0
        self.finish_at = 0

    def __lt__(self, other: Sequence) -> bool:
        return self.row < other.row


class Cohort:
    """Decoding sequences that step together, with running sums instead of a loop over them.

    ``clock`` counts the decode steps of the cohort; a sequence finishes when the clock reaches its
    ``finish_at``. ``kv_tokens`` sums the KV entries before the next step. ``_needs[c % block]`` is
    the number of members that need a new block in the step at clock c: positions move in lock
    step, so the place in the cycle never changes. Joining, leaving and finishing cost O(log n),
    any number of steps O(1).
    """

    __slots__ = (
        "_block_size",
        "_ends",
        "_grows",
        "_needs",
        "clock",
        "kv_tokens",
        "members",
        "seqs",
        "track",
    )

    def __init__(self, track: int, block_size: int, *, grows: bool = True) -> None:
        self.track = track
        self.clock = 0
        self.seqs = 0
        self.kv_tokens = 0
        self.members: dict[int, Sequence] = {}
        self._ends: list[tuple[int, int, Sequence]] = []
        self._block_size = block_size
        self._needs = [0] * (2 * block_size)
        self._grows = grows

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.members.values())

    def __contains__(self, seq: Sequence) -> bool:
        return seq.row in self.members

    def computed(self, seq: Sequence) -> int:
        return seq.offset + self.clock

    def join(self, seq: Sequence) -> None:
        """Add a sequence whose prompt is complete, at the end of the order."""
        clock = self.clock
        n = seq.computed
        seq.offset = n - clock
        seq.joined = clock
        seq.finish_at = finish_at = seq.total_tokens - n + clock
        heappush(self._ends, (finish_at, seq.row, seq))
        self.members[seq.row] = seq
        self.seqs += 1
        self.kv_tokens += n - 1
        if self._grows:
            size = self._block_size
            phase = (clock - n + 1) % size
            self._needs[phase] += 1
            self._needs[phase + size] += 1

    def leave(self, seq: Sequence) -> Stay:
        """Take a sequence out; its ``computed`` and ``blocks`` are made current."""
        del self.members[seq.row]
        seq.finish_at = -1
        if len(self._ends) > 2 * len(self.members) + 16:
            self._ends = [e for e in self._ends if e[2].finish_at == e[0] and e[1] in self.members]
            heapify(self._ends)
        return self._settle(seq)

    def _settle(self, seq: Sequence) -> Stay:
        clock = self.clock
        seq.computed = n = seq.offset + clock
        self.seqs -= 1
        self.kv_tokens -= n - 1
        if self._grows:
            size = self._block_size
            phase = (clock - n + 1) % size
            self._needs[phase] -= 1
            self._needs[phase + size] -= 1
            before = seq.offset + seq.joined
            seq.blocks += (n - 2) // size - (before - 2) // size
        return (seq.row, self.track, seq.joined, clock)

    def need(self) -> int:
        """Blocks the next step needs."""
        return self._needs[self.clock % self._block_size]

    def _need_after(self, steps: int) -> int:
        """Blocks the ``steps`` steps after the next one need."""
        size = self._block_size
        cycles, rest = divmod(steps, size)
        start = (self.clock + 1) % size
        return cycles * self.seqs + sum(self._needs[start : start + rest])

    def _next_end(self) -> int:
        ends = self._ends
        while True:
            at, row, seq = ends[0]
            if seq.finish_at == at and self.members.get(row) is seq:
                return at
            heappop(ends)

    def steady_steps(self, free_blocks: int) -> int:
        """Steps until a member finishes or ``free_blocks`` are used up; the next one is paid."""
        at, row, seq = self._ends[0]
        if seq.finish_at != at or row not in self.members:
            at = self._next_end()
        steps = at - self.clock
        if not self._grows or steps == 1:
            return steps
        size = self._block_size
        if self.seqs * ((steps - 1) // size + 1) <= free_blocks:
            return steps
        if self._need_after(steps - 1) <= free_blocks:
            return steps
        done = max(0, free_blocks) // self.seqs * size
        left = free_blocks - self._need_after(done)
        while left >= 0 and done < steps - 1:
            done += 1
            left -= self._needs[(self.clock + done) % size]
        return max(1, done + (left >= 0))

    def advance(self, steps: int) -> tuple[int, list[Sequence]]:
        """Run ``steps`` steps, the first already paid; return blocks taken and who finished."""
        clock = self.clock
        taken = 0
        if steps > 1 and self._grows:
            size = self._block_size
            cycles, rest = divmod(steps - 1, size)
            first = (clock + 1) % size
            taken = cycles * self.seqs + sum(self._needs[first : first + rest])
        clock = self.clock = clock + steps
        self.kv_tokens += steps * self.seqs
        finished: list[Sequence] = []
        ends = self._ends
        while ends and ends[0][0] <= clock:
            at, row, seq = heappop(ends)
            if seq.finish_at == at and self.members.get(row) is seq:
                del self.members[row]
                finished.append(seq)
        return taken, finished

    def finish(self, seq: Sequence) -> Stay:
        """Settle a member that ``advance`` reported."""
        return self._settle(seq)

    def reorder(self, rows: Iterable[int]) -> None:
        """Put the members in the order of ``rows`` (all of them, each once)."""
        members = self.members
        self.members = {row: members[row] for row in rows}


class Batch:
    """One step of an engine: all members of ``cohort`` decode, ``prefill`` advances prompts.

    ``chunks`` are (tokens, tokens already computed) of the prefills, as cost models take them;
    ``seqs`` and ``kv_tokens`` describe the decodes at the first step. ``admitted``: sequences that
    left the waiting queue for this batch.
    """

    __slots__ = ("admitted", "chunks", "cohort", "kv_tokens", "prefill", "seqs")

    def __init__(
        self,
        cohort: Cohort,
        prefill: list[tuple[Sequence, int]],
        admitted: list[Sequence],
    ) -> None:
        self.cohort = cohort
        self.seqs = cohort.seqs
        self.kv_tokens = cohort.kv_tokens
        self.prefill = prefill
        self.admitted = admitted
        self.chunks = [(tokens, seq.computed) for seq, tokens in prefill] if prefill else []

    @property
    def num_tokens(self) -> int:
        return self.seqs + sum(tokens for tokens, _ in self.chunks)

    @property
    def ending(self) -> list[Sequence]:
        """Those whose only output token comes with their prompt, in this batch."""
        return [
            seq
            for (seq, tokens), (_, before) in zip(self.prefill, self.chunks, strict=True)
            if before + tokens >= seq.total_tokens - 1
        ]
