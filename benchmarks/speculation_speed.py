"""Tokens per step and time per token of speculation on the tiny models, against plain decoding.

    python benchmarks/speculation_speed.py [--batch 1 4 16] [--tokens 96] [--repeats 3]
        [--clock cpu] [--dtype auto] [--only plain chain4 penstock]

``models/tiny`` is served by one executor in this process, with ``models/tiny-draft`` beside it, on
one thread: greedy, beginnings of Python source as prompts, all of a batch at once. Each line is one
way to decode: chains of 2 to 6 draft tokens, AdaServe's trees, the priced speculator, which chooses
by the latencies measured when the models were loaded. ``tokens per step`` counts new tokens of a
request in a step of the target. ``ms`` is the time of a token of each request, from the first
decode step on; the fastest of the repeats. ``--clock cpu`` counts CPU seconds, fair on a busy
machine. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

from penstock.plan.settings import SpeculationSettings
from penstock.serve.pool import WorkerSpec
from penstock.serve.text import Tokenizer
from penstock.serve.wire import Begin, Decoding, Free, Sampling
from penstock.serve.worker.build import build_executor
from penstock.serve.worker.executor import Executor, Job, Work

ROOT = Path(__file__).resolve().parents[1] / "models"
LAYERS = 6
GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, 0, None, 0, (), 0)
SOURCES = (
    "def read_lines(path):\n",
    "class Queue:\n    def __init__(self, maxsize=0):\n",
    "import os\nimport sys\n\n\ndef main(argv):\n",
    'def parse(text):\n    """Return the tokens of text."""\n',
    "class Request(object):\n    def get_header(self, name, default=None):\n",
    "def walk(top, topdown=True):\n    names = os.listdir(top)\n",
    "    def test_empty(self):\n        self.assertEqual(",
    "try:\n    import threading\nexcept ImportError:\n",
    "def _format(value, spec):\n    if not isinstance(value, str):\n        raise TypeError(",
    "class Error(Exception):\n    pass\n\n\nclass ",
    "    def close(self):\n        if self._file is not None:\n",
    "for name in sorted(os.environ):\n    print(",
    "def encode(input, errors='strict'):\n    return codecs.",
    "    @property\n    def name(self):\n        return ",
    "async def connect(host, port):\n    loop = asyncio.get_event_loop()\n",
    "if __name__ == '__main__':\n    parser = argparse.ArgumentParser(",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """``ms`` a token of each request, ``tokens`` of a request in a step."""

    ms: float
    tokens: float


def methods() -> dict[str, SpeculationSettings | None]:
    draft = str(ROOT / "tiny-draft")
    found: dict[str, SpeculationSettings | None] = {"plain": None}
    for length in range(2, 7):
        found[f"chain{length}"] = SpeculationSettings(
            "chain", draft, num_speculative_tokens=length, max_num_seqs=16, max_model_len=512
        )
    for name in ("adaserve", "penstock"):
        found[name] = SpeculationSettings(name, draft, max_num_seqs=16, max_model_len=512)  # type: ignore[arg-type]
    return found


def load(settings: SpeculationSettings | None, dtype: str) -> Executor:
    return build_executor(
        WorkerSpec(
            name="w",
            node="here",
            checkpoint=str(ROOT / "tiny"),
            start_layer=0,
            end_layer=LAYERS,
            num_layers=LAYERS,
            num_pages=16 * 40 * LAYERS,
            dtype=dtype,
            speculation=settings,
        )
    )


def decode(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    outputs: int,
    clock: Callable[[], float],
    *,
    speculate: bool,
    repeat: int,
) -> tuple[float, int, int, list[list[int]]]:
    """(seconds of the decode steps, request-steps, tokens, outputs) of one batch."""
    base = 1000 * repeat
    tokens = {base + i: list(prompt) for i, prompt in enumerate(prompts)}
    jobs = []
    for seq, prompt in tokens.items():
        executor.apply(Begin(seq, GREEDY))
        jobs.append(Job(seq, 0, tuple(prompt), 0, LAYERS, True))
    for drawn in executor.run(Work(jobs)).drawn:
        tokens[drawn.seq].extend(drawn.tokens)
    made = dict.fromkeys(tokens, 1)
    live = list(tokens)
    steps = new = 0
    started = clock()
    while live:
        now = clock() - started
        jobs = [Job(seq, len(tokens[seq]) - 1, (tokens[seq][-1],), 0, LAYERS, True) for seq in live]
        view = _view(live, made, outputs, now) if speculate else None
        for drawn in executor.run(Work(jobs, decoding=view)).drawn:
            tokens[drawn.seq].extend(drawn.tokens)
            made[drawn.seq] += len(drawn.tokens)
            new += len(drawn.tokens)
            steps += 1
        live = [seq for seq in live if made[seq] < outputs]
    seconds = clock() - started
    for seq in tokens:
        executor.apply(Free(seq))
    made_tokens = [tokens[base + i][len(prompt) :] for i, prompt in enumerate(prompts)]
    return seconds, steps, new, made_tokens


def _view(live: Sequence[int], made: dict[int, int], outputs: int, now: float) -> Decoding:
    n = len(live)
    return Decoding(
        seqs=tuple(live),
        decode_s=(now,) * n,
        tokens=tuple(made[seq] for seq in live),
        tpot=(inf,) * n,
        relative=(False,) * n,
        kind=(0,) * n,
        most=tuple(outputs - made[seq] for seq in live),
        prefill_tokens=0,
        occupancy=n / 16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    tokenizer = Tokenizer.load(ROOT / "tiny")
    prompts = [tuple(tokenizer.encode(source)) for source in SOURCES]
    found: dict[str, dict[int, Figures]] = {}
    chosen = {k: v for k, v in methods().items() if not arguments.only or k in arguments.only}
    executors = {name: load(settings, arguments.dtype) for name, settings in chosen.items()}
    seconds: dict[Any, float] = {}
    for repeat in range(arguments.repeats):  # in turn, so that a busy moment strikes all alike
        for name, executor in executors.items():
            for batch in arguments.batch:
                total = steps = new = 0.0
                outputs: list[list[int]] = []
                for start in range(0, 16 if batch > 1 else 4, batch):
                    group = prompts[start : start + batch]
                    spent, s, n, made = decode(
                        executor,
                        group,
                        arguments.tokens,
                        clock,
                        speculate=chosen[name] is not None,
                        repeat=repeat,
                    )
                    total, steps, new = total + spent, steps + s, new + n
                    outputs += made
                key = (name, batch)
                seconds[key] = min(seconds.get(key, inf), 1e3 * total * batch / new)
                found.setdefault(name, {})[batch] = Figures(seconds[key], new / steps)
    print(
        f"{'':10}" + "".join(f"{f'batch {b}: ms':>16}{'tokens/step':>13}" for b in arguments.batch)
    )
    for name, row in found.items():
        print(f"{name:10}" + "".join(f"{row[b].ms:16.3f}{row[b].tokens:13.2f}" for b in row))
    print(
        json.dumps({n: {b: [f.ms, f.tokens] for b, f in row.items()} for n, row in found.items()})
    )


if __name__ == "__main__":
    main()
