"""Speed of the built-in layers against ``generate`` of transformers, on the CPU, in fp32.

    python benchmarks/model_speed.py [--threads 1] [--tokens 64] [--repeats 3] [--clock cpu]

One random model of 8 layers and hidden size 256. Decoding of one request; then 32 requests with
prompts of 16 to 128 tokens and outputs of 16 to 64: one after another, in one continuous batch,
and as one static batch of transformers (left padded, all decode until the longest is done).
``--clock cpu`` counts CPU seconds: with one thread the same on a quiet machine, and fair on a
busy one. Prints a table and one JSON line. Needs transformers (the ``oracle`` extra).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import transformers

from penstock.serve.model import (
    Draw,
    LayerSlice,
    SequencePages,
    StepInput,
    StepItem,
    load_slice,
    sample,
)
from penstock.serve.protocol import SamplingParams

_GREEDY = Draw(SamplingParams(temperature=0.0))
_VOCAB = 4096


def make_model(folder: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.06)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return model


def generate(
    model: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[list[int]]:
    """Greedy tokens of one static batch of transformers."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            padded, attention_mask=mask, max_new_tokens=max(counts), do_sample=False, pad_token_id=0
        )
    rows = out[:, longest:].tolist()
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def serve(
    model: LayerSlice, prompts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[list[int]]:
    """Greedy tokens of one continuous batch: all begin at once and each leaves when it is done."""
    layout = model.cache.layout
    pages = [SequencePages(model.pool, layout.page_size, 0, model.end) for _ in prompts]
    done: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    feed = [list(prompt) for prompt in prompts]
    context = [0] * len(prompts)
    while live:
        items, tokens, last = [], [], []
        for i in live:
            rows = len(feed[i])
            pages[i].reserve(context[i] + rows)
            items.append(StepItem(rows, context[i], pages[i].table, 0, model.end))
            tokens += feed[i]
            last.append(len(tokens) - 1)
            context[i] += rows
        hidden = model.forward(StepInput(items, tokens=torch.tensor(tokens)))
        if len(last) < len(tokens):
            hidden = hidden[torch.tensor(last)]
        drawn = sample(model.head(hidden), [_GREEDY] * len(live))
        for i, token in zip(live, drawn.tokens, strict=True):
            done[i].append(token)
            feed[i] = [token]
        for i in live:
            if len(done[i]) == counts[i]:
                pages[i].release()
        live = [i for i in live if len(done[i]) < counts[i]]
    return done


Run = Callable[[], list[list[int]]]


def measure(runs: dict[str, Run], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Best tokens/s of each run; rounds take turns, so that a busy machine hurts all alike."""
    best = dict.fromkeys(runs, 0.0)
    for _ in range(repeats):
        for name, run in runs.items():
            began = clock()
            tokens = run()
            best[name] = max(best[name], sum(map(len, tokens)) / (clock() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    random = Random(1)
    prompts = [
        [random.randrange(3, _VOCAB) for _ in range(random.randint(16, 128))] for _ in range(32)
    ]
    counts = [random.randint(16, 64) for _ in prompts]
    first, length = prompts[:1], [options.tokens]
    with tempfile.TemporaryDirectory() as folder:
        oracle = make_model(folder)
        ours = load_slice(folder, num_pages=8000)
    oracle = oracle.eval()
    runs = {
        "decode of one, generate": lambda: generate(oracle, first, length),
        "decode of one, penstock": lambda: serve(ours, first, length),
        "32 static batch, generate": lambda: generate(oracle, prompts, counts),
        "32 one by one, penstock": lambda: [
            serve(ours, [p], [n])[0] for p, n in zip(prompts, counts, strict=True)
        ],
        "32 continuous, penstock": lambda: serve(ours, prompts, counts),
    }
    tokens = {name: run() for name, run in runs.items()}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    speeds = measure(runs, options.repeats, clock)
    for name, speed in speeds.items():
        print(f"{name:<28}{speed:>10.0f} tokens/s")
    one, batch = "decode of one, penstock", "32 continuous, penstock"
    figures = {
        "threads": options.threads,
        "clock": options.clock,
        "tokens_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "decode_over_generate": _ratio(speeds, one, "decode of one, generate"),
        "batch_over_one_by_one": _ratio(speeds, batch, "32 one by one, penstock"),
        "batch_over_static": _ratio(speeds, batch, "32 static batch, generate"),
        "same_tokens_as_generate": tokens[one] == tokens["decode of one, generate"],
        "same_tokens_batched": tokens[batch] == tokens["32 one by one, penstock"],
    }
    print(json.dumps(figures))


def _ratio(speeds: dict[str, float], over: str, under: str) -> float:
    return round(speeds[over] / speeds[under], 2)


if __name__ == "__main__":
    main()
