"""KV memory of one engine in blocks: counted exactly, shared by prefix, never handed out twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from penstock.errors import InputError


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold ``tokens`` entries."""
    return -(-tokens // block_size)


def chain_hashes(contents: Iterable[Sequence[int]], parent: int = 0) -> tuple[int, ...]:
    """A name for each full piece of a prompt that depends on all pieces before it.

    ``contents`` are the token ids of successive pieces. The same prompt gives the same 63-bit
    names in every process, so that they can be written to a trace.
    """
    names = []
    for tokens in contents:
        text = f"{parent}:{','.join(map(str, tokens))}".encode()
        parent = int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1
        names.append(parent)
    return tuple(names)


class BlockManager:
    """Counts the blocks of one engine; the schedulers ask, nobody else touches blocks.

    ``free`` counts blocks that can be taken now, including cached ones that no sequence uses.
    ``watermark`` is the share of all blocks an admission must leave free.

    Prefix cache: prompts come in pieces of ``piece_tokens`` tokens, each named by a chained hash
    (``Request.prefix_hashes``; Mooncake names pieces of 512). A computed piece stays cached with
    a reference count; pieces nobody uses are evicted least recently used first, the tail of a
    prompt before its head (vLLM's order). A driver with real memory sets ``changes`` to a list: it
    then collects ("store" | "evict", piece) in order.
    """

    __slots__ = (
        "_idle",
        "_idle_blocks",
        "_references",
        "block_size",
        "changes",
        "free",
        "hit_tokens",
        "least_free",
        "num_blocks",
        "piece_blocks",
        "piece_tokens",
        "queried_tokens",
        "watermark",
        "watermark_blocks",
    )

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        watermark: float = 0.0,
        piece_tokens: int = 512,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise InputError(
                f"an engine needs at least one KV block (got {num_blocks} of {block_size} tokens)"
            )
        if piece_tokens % block_size:
            raise InputError(
                f"prefix pieces of {piece_tokens} tokens are not whole blocks of {block_size}; "
                "choose a block_size that divides them"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.watermark = watermark
        self.watermark_blocks = int(watermark * num_blocks)
        self.piece_tokens = piece_tokens
        self.piece_blocks = piece_tokens // block_size
        self.free = num_blocks
        self.least_free = num_blocks
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.changes: list[tuple[str, int]] | None = None
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._idle_blocks = 0

    @property
    def used(self) -> int:
        return self.num_blocks - self.free

    @property
    def idle_blocks(self) -> int:
        """Blocks of cached pieces that no sequence uses; they count as free."""
        return self._idle_blocks

    @property
    def peak_fraction(self) -> float:
        """The largest share of the blocks that was in use at once."""
        return 1.0 - self.least_free / self.num_blocks

    def can_admit(self, blocks: int) -> bool:
        """Whether a new sequence may take ``blocks`` and leave the watermark free."""
        return self.free - blocks >= self.watermark_blocks

    def can_take(self, blocks: int) -> bool:
        return blocks <= self.free

    def take(self, blocks: int) -> None:
        """Take what ``can_take`` or ``can_admit`` allowed; evicts cached pieces nobody uses."""
        free = self.free = self.free - blocks
        if free < self.least_free:  # noqa: PLR1730 - twice as fast as min()
            self.least_free = free
        if self._idle_blocks > free:
            self._evict(free)

    def give(self, blocks: int) -> None:
        self.free += blocks

    def resize(self, num_blocks: int) -> bool:
        """Have ``num_blocks`` from now on; False, and nothing has changed, while more are used."""
        more = num_blocks - self.num_blocks
        if self.free + more < 0 or num_blocks < 1:
            return False
        self.num_blocks = num_blocks
        self.watermark_blocks = int(self.watermark * num_blocks)
        self.free += more
        self.least_free = max(0, min(self.least_free + more, self.free))
        if self._idle_blocks > self.free:
            self._evict(self.free)
        return True

    def _evict(self, keep: int) -> None:
        assert keep >= 0, "blocks are asked for before they are taken"
        while self._idle_blocks > keep:
            piece, _ = self._idle.popitem(last=False)
            del self._references[piece]
            self._idle_blocks -= self.piece_blocks
            if self.changes is not None:
                self.changes.append(("evict", piece))

    def cached_pieces(self, hashes: Sequence[int]) -> int:
        """How many leading pieces of a prompt are cached."""
        references = self._references
        count = 0
        for piece in hashes:
            if piece not in references:
                break
            count += 1
        return count

    def idle_of(self, hashes: Sequence[int]) -> int:
        """Blocks of cached pieces nobody uses, which sharing them would make unavailable."""
        idle = self._idle
        return self.piece_blocks * sum(1 for piece in hashes if piece in idle)

    def share(self, hashes: Sequence[int]) -> None:
        """Use cached pieces (all of ``hashes`` must be cached)."""
        for piece in hashes:
            self._references[piece] += 1
            if piece in self._idle:
                del self._idle[piece]
                self._idle_blocks -= self.piece_blocks
                self.free -= self.piece_blocks
        self.least_free = min(self.least_free, self.free)

    def store(self, piece: int) -> bool:
        """Cache a computed piece whose blocks the caller holds; they become shared.

        False when another sequence computed the same piece first: the caller keeps its copy.
        """
        if piece in self._references:
            return False
        self._references[piece] = 1
        if self.changes is not None:
            self.changes.append(("store", piece))
        return True

    def unshare(self, hashes: Sequence[int]) -> None:
        """Stop using cached pieces; those nobody uses any more can be evicted, tail first."""
        for piece in reversed(hashes):
            self._references[piece] -= 1
            if not self._references[piece]:
                self._idle[piece] = None
                self._idle_blocks += self.piece_blocks
                self.free += self.piece_blocks

    def count_query(self, prompt_tokens: int, hit_tokens: int) -> None:
        """Book an admission for the prefix hit rate."""
        self.queried_tokens += prompt_tokens
        self.hit_tokens += hit_tokens

    def check(self, held_blocks: int, shared: Iterable[Sequence[int]]) -> None:
        """Recount: blocks of sequences, shared pieces and free ones add up to all (invariant).

        ``held_blocks`` sums what sequences hold for themselves; ``shared`` lists the pieces each
        sequence uses.
        """
        counts: dict[int, int] = {}
        for pieces in shared:
            for piece in pieces:
                counts[piece] = counts.get(piece, 0) + 1
        for piece, references in self._references.items():
            assert counts.get(piece, 0) == references, f"piece {piece} is miscounted"
            assert (references == 0) == (piece in self._idle), f"piece {piece} is on the wrong list"
        assert all(piece in self._references for piece in counts), "a used piece is not cached"
        assert self._idle_blocks == len(self._idle) * self.piece_blocks
        used = held_blocks + len(counts) * self.piece_blocks
        assert used + self.free == self.num_blocks, (
            f"{held_blocks} held + {len(counts)} shared pieces + {self.free} free "
            f"are not {self.num_blocks} blocks"
        )
        assert 0 <= self._idle_blocks <= self.free
