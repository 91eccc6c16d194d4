"""Messages between coordinator and workers.

A worker holds one stage: layers ``[start, end)`` of one model. The coordinator decides (policies
live there, except where a node of a per-request path batches what reaches it); workers compute.

Life of a step on a whole engine: the coordinator sends ``Step`` to the worker of the first stage;
each worker runs it and sends it on with the hidden states as one buffer; the last one draws tokens
and sends ``StepDone`` to the coordinator. On a per-request path each item carries its own hops;
workers batch what waits (``policy/batching.py``) and send each item on to its next hop.

Order: messages from one sender to one receiver arrive in order. Commands that concern a
sequence travel inside the step that follows them, so that every stage sees them before it.

Encoding: msgspec MessagePack for the message, one raw buffer for tensors.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

COORDINATOR = "coordinator"


class Hop(msgspec.Struct, frozen=True, array_like=True):
    """Layers ``[start_layer, end_layer)`` at ``worker``."""

    worker: str
    start_layer: int
    end_layer: int


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How tokens of a sequence are drawn: ``SamplingParams`` with the seed resolved.

    ``stop`` are EOS and stop ids, which ``min_tokens`` masks. ``prompt`` and ``output`` are set
    only where penalties need them; ``position`` counts the output tokens so far.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    logprobs: int | None
    min_tokens: int
    stop: tuple[int, ...]
    position: int
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Draw the tokens of sequence ``seq`` so from now on.

    On a per-request path it travels with the item of ``seq`` in the same step to the last hop.
    The numbers of paths that were released are never used again.
    """

    seq: int
    sampling: Sampling


class Share(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first pages of ``seq`` are those of these cached prompt pieces, in order."""

    seq: int
    pieces: tuple[int, ...]


class Store(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Piece number ``index`` of ``seq`` is complete: keep its pages under ``piece`` too."""

    seq: int
    index: int
    piece: int


class Evict(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Free the pages of a cached piece that no sequence uses."""

    piece: int


class Free(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Free all pages of ``seq`` but stored ones, and forget its sampling."""

    seq: int


Command: TypeAlias = Store | Evict | Free | Begin | Share
"""What a worker does before it runs a step, in the order given."""


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's part in a step: ``tokens`` follow ``context`` tokens that have KV entries.

    ``draw``: the last stage draws one token after the last of these. ``hops`` is empty on whole
    engines, where all items take the stages of the engine; else it is the whole path and ``hop``
    the index of the one to run. ``prefill`` tells prompts from decodes.
    """

    seq: int
    context: int
    tokens: tuple[int, ...]
    draw: bool
    prefill: bool = False
    hops: tuple[Hop, ...] = ()
    hop: int = 0


class Decoding(msgspec.Struct, frozen=True, array_like=True):
    """A speculative step over the decodes among the items: a ``DecodeView`` by columns.

    ``tpot`` are limits in seconds (inf = none), where ``relative`` multiples of the time of one
    decode step alone, which the worker has measured. ``most`` bounds the new tokens of each
    sequence (its output may end sooner).
    """

    seqs: tuple[int, ...]
    decode_s: tuple[float, ...]
    tokens: tuple[int, ...]
    tpot: tuple[float, ...]
    relative: tuple[bool, ...]
    kind: tuple[int, ...]
    most: tuple[int, ...]
    prefill_tokens: int
    occupancy: float


class Step(msgspec.Struct, frozen=True, tag=True):
    """Run ``items``; the buffer holds hidden states ``[tokens, hidden_size]`` after layer 0.

    No items: only the commands count, and no ``StepDone`` follows. ``stages`` are the engine's,
    ``stage`` the index of this worker; empty where each item carries its hops. ``null_s``: seconds
    that a null executor takes on each stage.
    """

    number: int
    items: tuple[Item, ...]
    commands: tuple[Command, ...] = ()
    stages: tuple[Hop, ...] = ()
    stage: int = 0
    decoding: Decoding | None = None
    null_s: tuple[float, ...] = ()


class Drawn(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of ``seq``: one per step, or several of a speculative step, in order.

    ``logprobs`` has one entry per token where asked for: (chosen, ((token, logprob), ...)).
    """

    seq: int
    tokens: tuple[int, ...]
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()


class Verified(msgspec.Struct, frozen=True, array_like=True):
    """What a speculative step verified: sequences with draft tokens, these tokens, those kept."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """The last stage has run step ``number``. ``busy_s`` are the seconds of that stage's work.

    Of per-request paths, ``number`` counts the worker's batches and ``seqs`` lists the items that
    are done, drawn or not. ``verified`` is set by speculative steps.
    """

    number: int
    worker: str
    drawn: tuple[Drawn, ...]
    busy_s: float
    seqs: tuple[int, ...] = ()
    verified: Verified | None = None


class NodeBatch(msgspec.Struct, frozen=True, tag=True):
    """A node of per-request paths has run a batch: what the coordinator and reports need.

    It comes before the ``StepDone`` of the same batch.

    ``queued_first``: iterations that wait for the first layer, for routers that ask.
    """

    worker: str
    seqs: tuple[int, ...]
    prefill_tokens: int
    decode_seqs: int
    busy_s: float
    queued_first: int


class PushKV(msgspec.Struct, frozen=True, tag=True):
    """Send the first ``tokens`` KV entries of ``seq`` to the workers that hold its layers.

    ``targets`` cover this worker's layers; there the sequence is ``target_seq``.
    """

    transfer: int
    seq: int
    target_seq: int
    tokens: int
    targets: tuple[Hop, ...]


class KVLayer(msgspec.Struct, frozen=True, tag=True):
    """The KV pages of one layer that hold ``tokens`` entries, as a buffer, with its CRC-32.

    ``layout`` names what both sides must agree on; the receiver waits for all its layers.
    """

    transfer: int
    seq: int
    layer: int
    tokens: int
    layout: str
    crc32: int


class KVReceived(msgspec.Struct, frozen=True, tag=True):
    """All layers of ``transfer`` for ``worker`` are in place, or ``problem`` says why not."""

    transfer: int
    worker: str
    problem: str = ""


class Release(msgspec.Struct, frozen=True, tag=True):
    """Free sequences at once (paths of requests; whole engines use ``Free``)."""

    seqs: tuple[int, ...]


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answer with ``Pong`` of the same number, behind all that was sent before."""

    number: int


class Pong(msgspec.Struct, frozen=True, tag=True):
    """``pages_used`` counts KV pages of sequences, ``pages_cached`` those of prompt pieces."""

    number: int
    worker: str
    pages_used: int
    pages_cached: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the worker."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker hit a fault of its own and ends."""

    worker: str
    problem: str


ToWorker: TypeAlias = Step | PushKV | KVLayer | Release | Ping | Stop
ToCoordinator: TypeAlias = StepDone | NodeBatch | KVReceived | Pong | Failed
Message: TypeAlias = ToWorker | ToCoordinator

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _ENCODER.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """Raises ``msgspec.DecodeError`` for anything that is no message."""
    return _DECODER.decode(data)
