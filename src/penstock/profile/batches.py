"""Batches from start to end on workers of this machine, timed step by step.

Runners that are compared are measured in turns, so that a busy moment of the machine does not
fall on one of them; of many equal steps the quick ones count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.profile.workers import Post, workers
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Begin, Free, Hop, Item, Sampling, Step, StepDone
from penstock.spec.load import load_model

OUTPUTS = (10, 20)
_PAGE = 16
_QUICK = 10
"""One in so many equal steps may be quicker than what counts: others only make steps slower."""
_CALM = 0.02
_WARM_UP = 3
_GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, 0, None, 0, (), 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """``size`` prompts of ``prompt_tokens`` each, all at once."""

    size: int
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        return self.size * self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Runner:
    """A checkpoint on ``pp`` workers of ``tp`` ranks, with KV memory for ``kv_tokens``."""

    name: str
    checkpoint: Path
    layers: int
    tp: int
    pp: int
    dtype: str
    kv_tokens: int
    threads: int = 1

    @property
    def hops(self) -> tuple[Hop, ...]:
        cuts = [self.layers * i // self.pp for i in range(self.pp + 1)]
        return tuple(Hop(f"{self.name}.{i}", cuts[i], cuts[i + 1]) for i in range(self.pp))

    def specs(self) -> list[WorkerSpec]:
        model = load_model(self.checkpoint)
        return [
            WorkerSpec(
                name=hop.worker,
                node="here",
                checkpoint=str(self.checkpoint),
                start_layer=hop.start_layer,
                end_layer=hop.end_layer,
                num_layers=self.layers,
                num_pages=(hop.end_layer - hop.start_layer) * (-(-self.kv_tokens // _PAGE)),
                page_size=_PAGE,
                tensor_parallel_size=self.tp,
                dtype=self.dtype,
                threads=self.threads,
                kv_bytes_per_token_per_layer=model.kv_bytes_per_token_per_layer,
            )
            for hop in self.hops
        ]


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of a step, and those in which its workers were ready but others had the CPU."""

    seconds: float
    waited_s: float

    @property
    def running_s(self) -> float:
        # Ranks of a stage wait at different times: their sum may exceed what the step lost.
        return max(self.seconds - self.waited_s, 0.2 * self.seconds)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until first tokens, and of a decode step; resident bytes after the first run."""

    prefill_s: float
    decode_s: float
    memory_bytes: int

    def latency_s(self, output_tokens: int) -> float:
        return self.prefill_s + (output_tokens - 1) * self.decode_s


def kv_tokens(batches: Sequence[Batch], output_tokens: int = max(OUTPUTS)) -> int:
    """KV memory for the largest of ``batches``, in whole pages for each sequence."""
    return max(b.size * (-(-(b.prompt_tokens + output_tokens) // _PAGE) * _PAGE) for b in batches)


async def measure(
    wanted: Mapping[Runner, Sequence[Batch]],
    repeat: int,
    report: Callable[[Batch, float], None] = lambda _batch, _share: None,
) -> dict[tuple[Runner, Batch], Timing]:
    """Run the batches of every runner in ``repeat`` rounds, smallest batches first.

    Rounds lie apart, so that a busy time of the machine does not fall on one size.
    Raises ``InputError`` where a worker does not start or ends.
    """
    seen: dict[tuple[Runner, Batch], list[list[Sample]]] = {}
    memory: dict[tuple[Runner, Batch], int] = {}
    every = {batch for batches in wanted.values() for batch in batches}
    ordered = sorted(every, key=lambda b: (b.tokens, b.size))
    async with workers(*(spec for runner in wanted for spec in runner.specs())) as post:
        for runner in wanted:
            for _ in range(_WARM_UP):
                await _steps(post, runner, ordered[0])
        for number in range(repeat):
            for i, batch in enumerate(ordered):
                report(batch, (number + i / len(ordered)) / repeat)
                for runner in [one for one, own in wanted.items() if batch in own]:
                    key = runner, batch
                    seen.setdefault(key, []).append(await _steps(post, runner, batch))
                    if number == 0:
                        memory[key] = sum(post.resident_bytes(h.worker) for h in runner.hops)
    return {key: _timing(rounds, memory[key]) for key, rounds in seen.items()}


def _timing(rounds: Sequence[Sequence[Sample]], memory_bytes: int) -> Timing:
    decode = [sample for one in rounds for sample in one[1:]]
    return Timing(quick([one[0] for one in rounds]), quick(decode), memory_bytes)


async def measure_chunks(
    runners: Sequence[Runner], chunks: Sequence[tuple[int, int]], repeat: int
) -> dict[tuple[Runner, tuple[int, int]], float]:
    """Seconds of chunks: (tokens, tokens of the same prompt that came before)."""
    found: dict[tuple[Runner, tuple[int, int]], float] = {}
    async with workers(*(spec for runner in runners for spec in runner.specs())) as post:
        for chunk in chunks:
            seen: dict[Runner, list[Sample]] = {runner: [] for runner in runners}
            for _ in range(repeat):
                for runner in runners:
                    seen[runner].append(await _chunk(post, runner, chunk))
            found.update(((runner, chunk), quick(times)) for runner, times in seen.items())
    return found


def quick(samples: Sequence[Sample]) -> float:
    """Seconds of a step on an idle machine, from steps on one that is not always idle.

    Steps in which all had their CPU count where there are some: of few the quickest, of many one
    near it. Else what the steps took less the waiting, their median.
    """
    calm = sorted(one.seconds for one in samples if one.waited_s <= _CALM * one.seconds)
    if len(calm) >= min(3, len(samples)):
        return calm[len(calm) // _QUICK]
    return float(np.median([one.running_s for one in samples]))


async def _steps(
    post: Post, runner: Runner, batch: Batch, output_tokens: int = max(OUTPUTS)
) -> list[Sample]:
    """The step of all prompts and every decode step after it."""
    hops, seqs = runner.hops, range(1, batch.size + 1)
    begin = tuple(Begin(seq, _GREEDY) for seq in seqs)
    prompt = _prompt(batch.prompt_tokens)
    items = tuple(Item(seq, 0, prompt, True, True) for seq in seqs)
    samples = []
    for number in range(output_tokens):
        step = Step(number + 1, items, begin if number == 0 else (), hops)
        done, sample = await _ask(post, hops, step)
        samples.append(sample)
        context = batch.prompt_tokens + number
        items = tuple(Item(one.seq, context, one.tokens, True) for one in done.drawn)
    post.tell(hops[0].worker, Step(0, (), tuple(Free(seq) for seq in seqs), hops))
    return samples


async def _chunk(post: Post, runner: Runner, chunk: tuple[int, int]) -> Sample:
    """The second chunk of a prompt of two."""
    (tokens, cached), hops = chunk, runner.hops
    prompt = _prompt(cached + tokens)
    for number, (start, end) in enumerate(((0, cached), (cached, cached + tokens)), start=1):
        commands = (Begin(1, _GREEDY),) if start == 0 else ()
        item = Item(1, start, prompt[start:end], start > 0, True)
        step = Step(number, (item,), commands, hops)
        _, sample = await _ask(post, hops, step)
    post.tell(hops[0].worker, Step(0, (), (Free(1),), hops))
    return sample


async def _ask(post: Post, hops: Sequence[Hop], step: Step) -> tuple[StepDone, Sample]:
    names = [hop.worker for hop in hops]
    before_s = post.waited_s(names)
    done, seconds = await post.answer(names[0], step, StepDone)
    return done, Sample(seconds, max(0.0, post.waited_s(names) - before_s))


def _prompt(tokens: int) -> tuple[int, ...]:
    """Token numbers that every vocabulary has."""
    return tuple(5 + i % 64 for i in range(tokens))
