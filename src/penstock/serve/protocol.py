"""What the gateway asks of the runtime, and what it gets back: requests in, tokens out.

Text is the gateway's business: the runtime sees token ids only. Errors below are answers to a
client, not faults; the gateway turns each into its HTTP status.

ServeError
├── RequestTooLong     the prompt does not fit the model or the KV memory: 400
├── EngineRefused      another server behind an engine does not take it: 400
├── UnknownModel       404
├── Conflict           a change that running requests forbid: 409
├── Overloaded         too many requests wait: 429 with Retry-After
├── Unavailable        no engine can serve now, until the deadline: 503
└── DeadlineExceeded   the request's own deadline passed: 504
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort", "error"]


class ServeError(Exception):
    """A request that cannot be served."""

    status = 500
    code = "internal_error"


class RequestTooLong(ServeError):
    status = 400
    code = "context_length_exceeded"


class EngineRefused(ServeError):
    status = 400
    code = "invalid_value"


class UnknownModel(ServeError):
    status = 404
    code = "model_not_found"


class Conflict(ServeError):
    status = 409
    code = "conflict"


class Overloaded(ServeError):
    """``retry_after_s``: when room is expected."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ServeError):
    status = 503
    code = "service_unavailable"


class DeadlineExceeded(ServeError):
    status = 504
    code = "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; names and meanings as in vLLM.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 switch the filters off. ``logprobs``:
    None = none, n = the chosen token and the n most likely ones. ``stop_token_ids`` end a request
    like EOS; stop strings are matched by the gateway. Draws depend on (seed, position) alone, so
    that a request that is computed again continues as it would have.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0.0

    @property
    def penalised(self) -> bool:
        """Whether draws depend on the tokens so far."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to complete. ``deadline_s`` is a duration from its arrival.

    ``class_name`` names an SLO class of the workload the server was started with, "" = none;
    ``tpot_s`` is a limit that the request states itself.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    model: str = ""
    class_name: str = ""
    tpot_s: float | None = None
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of the chosen token, and (token, log probability) of the best ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New tokens of one request, in order; ``finish_reason`` is set on the last delta only.

    A stop token is not among ``tokens``. ``stop_token`` names it where one ended the request.
    ``queued_s``, where known, comes with the first tokens: seconds from the request's arrival at
    the runtime until its first batch began.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    cached_prompt_tokens: int = 0
    queued_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that is served: what ``/v1/models`` and the checks of a request need."""

    name: str
    max_model_len: int
    vocab_size: int
    checkpoint: str
    """Folder of the checkpoint: tokenizer and chat template lie there."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine as the live page and ``/metrics`` show it."""

    name: str
    role: str
    model: str
    nodes: tuple[str, ...]
    start_layer: int
    end_layer: int
    alive: bool
    draining: bool
    running: int
    waiting: int
    kv_use: float
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    busy_share: float


class Generator(Protocol):
    """The runtime behind the gateway. All methods are called on one event loop."""

    def models(self) -> tuple[ModelCard, ...]: ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Serve ``request``; closing the iterator cancels it and frees its KV memory at once.

        Raises ``ServeError`` before the first token for what is refused, and later where the
        request cannot be finished.
        """
        ...

    def engines(self) -> tuple[EngineStatus, ...]: ...

    def ready(self) -> bool: ...

    def counters(self) -> Mapping[str, float]:
        """Sums since the start, under names of ``docs/serving.md``."""
        ...

    def model_counters(self) -> Mapping[str, Mapping[str, float]]:
        """``counters`` of each model."""
        ...

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        """Change the pool: answers when done. Raises ``penstock.errors.InputError``,
        ``Infeasible`` or ``ServeError`` if refused.

        Actions: ``engines.add``, ``engines.remove``, ``engines.role``, ``operations``; of several
        models ``models.get``, ``models.add``, ``models.remove``, ``pool.get``, ``pool.set``.
        """
        ...
