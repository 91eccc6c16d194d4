"""Fit step times to an endpoint that others run, from what a client sees.

A client sees the time to first token t(n) of n prompt tokens and the gaps between tokens. A chunk
of very few tokens takes about as long as a decode step of one sequence, so the smallest prompt
tells what a request takes outside of steps: host = t(n_min) - decode(1). Steps of prompts are
then t(n) - host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock import __version__
from penstock.cost.step_table import HostTimes, StepTableFile, TableTimer, decode_lines
from penstock.errors import InputError
from penstock.measure.loadgen.bench import BenchSettings, open_client
from penstock.profile.drive import Seen, drive
from penstock.profile.fit import Row, decode_error, decode_point, prefill_points
from penstock.profile.probes import Bounds, Probe, probes
from penstock.spec.model import ModelSpec

Report = Callable[[str, float], None]
_LONGEST = 4096
_UNKNOWN_KV_TOKENS = 1 << 17
_LEAST_STEP_S = 1e-6


@dataclass(frozen=True, slots=True)
class CalibrateSettings:
    """``seconds``: no probe starts later. ``chunk_tokens``: the server's prefill chunk."""

    url: str
    model: ModelSpec
    accelerator: str
    served_model_name: str | None = None
    api_key: str | None = None
    seconds: float = 300.0
    max_concurrency: int = 64
    chunk_tokens: int = 512
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1


async def calibrate_endpoint(
    settings: CalibrateSettings, report: Report = lambda _text, _share: None
) -> StepTableFile:
    """Ask the endpoint and return the fitted profile.

    Raises ``InputError`` where it cannot be reached, a request fails, or the time is too short
    for a fit.
    """
    bench = BenchSettings(settings.url, model=settings.served_model_name, api_key=settings.api_key)
    async with open_client(bench) as client:
        longest = client.abilities.max_model_len or settings.model.max_position_embeddings
        bounds = Bounds(
            min(longest, settings.model.max_position_embeddings, _LONGEST),
            settings.chunk_tokens,
            settings.max_concurrency,
            _UNKNOWN_KV_TOKENS,
        )

        def show(_done: int, probe: Probe) -> None:
            text = f"{probe.kind}: {probe.seqs} x {probe.prompt_tokens} tokens"
            report(text, min(1.0, client.clock() / settings.seconds))

        # From outside nobody sees which prompts shared a step with decodes.
        own = (probe for probe in probes(bounds, 3) if probe.kind != "mixed")
        wanted = sorted(own, key=_importance)
        seen = await drive(client, wanted, show, until_s=settings.seconds)
    return fitted_profile(settings, seen)


def fitted_profile(settings: CalibrateSettings, seen: Sequence[Seen]) -> StepTableFile:
    """The profile of what a client saw. Raises ``InputError`` where that is too little."""
    stages = settings.pipeline_parallel_size
    decode = []
    for item in seen:
        if item.probe.kind == "decode":
            point = decode_point(client_rows(item), stages)
            if point is not None:
                decode.append(point)
    first_s = [
        (item.probe.prompt_tokens, _ttft_s(item)) for item in seen if item.probe.kind == "prefill"
    ]
    alone = [point for point in decode if point.seqs == 1]
    if not alone or not first_s:
        raise InputError("too little time for prompts and decodes both; give more --seconds")
    median, worst = decode_error(decode)
    timer = TableTimer(decode_lines(decode), [(1, 1.0)], 0.0, 1)
    smallest = min(tokens for tokens, _ in first_s)
    quick = sorted(seconds for tokens, seconds in first_s if tokens == smallest)
    host_s = max(0.0, quick[len(quick) // 2] - timer.decode_s(1, smallest))
    steps = [(tokens, max(seconds - host_s, _LEAST_STEP_S)) for tokens, seconds in first_s]
    return StepTableFile(
        model=settings.model.name,
        accelerator=settings.accelerator,
        source=f"penstock calibrate {__version__}, from the client's side",
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=stages,
        provenance="fitted",
        error=f"decode lines: residual {median:.1%} median, {worst:.1%} largest; "
        f"prompts spread {_spread(first_s):.1%}",
        host=HostTimes(fixed=host_s),
        decode=tuple(decode),
        prefill=prefill_points(steps, settings.chunk_tokens),
    )


def client_rows(item: Seen) -> list[Row]:
    """The requests of a probe as their client saw them."""
    return [
        Row(one.request.prompt_tokens, one.sent_s, one.stream.times_s()) for one in item.outcomes
    ]


def _importance(probe: Probe) -> tuple[int, int, int]:
    """Warm-up, then what every fit needs; large batches last, where time may have run out."""
    if probe.kind != "decode":
        return (0 if probe.kind == "warm-up" else 2), 0, 0
    return (1 if probe.seqs == 1 else 3), probe.seqs, probe.prompt_tokens


def _ttft_s(item: Seen) -> float:
    outcome = item.outcomes[0]
    return outcome.stream.times_s()[0] - outcome.sent_s


def _spread(first_s: Sequence[tuple[int, float]]) -> float:
    """Largest relative distance of equal prompts from their median."""
    sizes: dict[int, list[float]] = {}
    for tokens, seconds in first_s:
        sizes.setdefault(tokens, []).append(seconds)
    worst = 0.0
    for own in sizes.values():
        middle = sorted(own)[len(own) // 2]
        worst = max(worst, *(abs(seconds / middle - 1) for seconds in own))
    return worst
