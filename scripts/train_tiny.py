"""Train the tiny target and its draft: `python scripts/train_tiny.py --minutes 35`.

Reads the standard library of the running Python, needs no network, and writes `models/tiny` and
`models/tiny-draft`. A second call continues from the checkpoints in `--work`.
"""

import argparse
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from numpy.typing import NDArray
from tiny.acceptance import Acceptance, greedy, in_generation, on_text
from tiny.corpus import Corpus, read_corpus
from tiny.export import write_checkpoint
from tiny.tokens import (
    encode_documents,
    held_out_documents,
    train_tokenizer,
    training_documents,
)
from tiny.training import (
    Outcome,
    Schedule,
    distillation_loss,
    draft_config,
    held_out_loss,
    next_token_loss,
    target_config,
    train,
)
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
DEPTH = 4
TARGET_SHARE_OF_TIME = 0.68
PROMPTS = (
    "def read_lines(path):\n",
    "class Queue:\n    def __init__(self, maxsize=0):\n",
    "<|begin|><|user|>Write the function is_empty. Return True if the queue is empty.<|end|>"
    "<|assistant|>",
)


@dataclass(frozen=True, slots=True)
class Data:
    """The tokenizer and both streams of token ids."""

    tokenizer: Tokenizer
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def main() -> None:
    """Train both models in as many processes as asked, measure them, write them."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    meeting = options.work / "processes"
    meeting.unlink(missing_ok=True)
    corpus = read_corpus(options.seed, options.samples)
    data = _data(corpus, options)
    arguments = (meeting, corpus, data, options)
    torch.multiprocessing.spawn(_process, arguments, nprocs=options.processes)


def _process(
    rank: int, meeting: Path, corpus: Corpus, data: Data, options: argparse.Namespace
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=options.processes
    )
    target, target_end = _train_target(data, options)
    if rank == 0:
        write_checkpoint(options.out / "tiny", target, data.tokenizer)
    draft, draft_end = _train_draft(data, target, options)
    if rank == 0:
        write_checkpoint(options.out / "tiny-draft", draft, data.tokenizer)
        _report(corpus, data, (target, draft), (target_end, draft_end), options)
    dist.destroy_process_group()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35.0, help="stop training after this")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the target")
    parser.add_argument("--draft-steps", type=int, default=2000, help="steps of the draft")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=3000, help="questions with answers")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "models")
    return parser.parse_args()


def _data(corpus: Corpus, options: argparse.Namespace) -> Data:
    saved = options.work / "tokenizer.json"
    if saved.exists():
        tokenizer = Tokenizer.from_file(str(saved))
    else:
        tokenizer = train_tokenizer(corpus, options.vocab_size)
        tokenizer.save(str(saved))
    data = Data(
        tokenizer,
        encode_documents(tokenizer, training_documents(corpus, options.seed)),
        encode_documents(tokenizer, held_out_documents(corpus)),
    )
    print(
        f"{len(corpus.train)} files and {len(corpus.samples)} questions: {len(data.train)} tokens;"
        f" held out {len(corpus.held_out)} files: {len(data.held_out)} tokens"
    )
    return data


def _train_target(data: Data, options: argparse.Namespace) -> tuple[LlamaForCausalLM, Outcome]:
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(target_config(data.tokenizer.get_vocab_size()))
    limit_s = options.minutes * 60 * TARGET_SHARE_OF_TIME
    schedule = Schedule(options.steps, limit_s, 2e-3, options.seed)
    outcome = train(model, next_token_loss(model), data.train, schedule, options.work / "target.pt")
    return _as_stored(model), outcome


def _train_draft(
    data: Data, target: LlamaForCausalLM, options: argparse.Namespace
) -> tuple[LlamaForCausalLM, Outcome]:
    torch.manual_seed(options.seed + 1)
    model = LlamaForCausalLM(draft_config(data.tokenizer.get_vocab_size()))
    limit_s = options.minutes * 60 * (1 - TARGET_SHARE_OF_TIME)
    schedule = Schedule(options.draft_steps, limit_s, 4e-3, options.seed + 1)
    loss_of = distillation_loss(model, target)
    outcome = train(model, loss_of, data.train, schedule, options.work / "draft.pt")
    return _as_stored(model), outcome


def _as_stored(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Round the weights as the file will hold them, so that what is measured is what is kept."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    return model.eval()


def _report(
    corpus: Corpus,
    data: Data,
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
    ends: tuple[Outcome, Outcome],
    options: argparse.Namespace,
) -> None:
    target, draft = models
    starts = np.linspace(0, len(data.held_out) - 200, 256).astype(int)
    contexts = torch.from_numpy(np.stack([data.held_out[s : s + 128] for s in starts]))
    report = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": options.seed,
        "corpus_sha256": corpus.sha256,
        "train_tokens": len(data.train),
        "target": _quality(target, data, ends[0]),
        "draft": _quality(draft, data, ends[1]),
        "acceptance_on_text": _shown(on_text(target, draft, contexts, DEPTH)),
        "acceptance_in_generation": _shown(
            in_generation(target, draft, contexts[::16, :64], 96, DEPTH)
        ),
        "held_out": list(corpus.held_out_names),
    }
    (options.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "held_out"}, indent=2))
    for prompt in PROMPTS:
        ids = torch.tensor(data.tokenizer.encode(prompt).ids)
        text = data.tokenizer.decode(greedy(target, ids, 80).tolist(), skip_special_tokens=False)
        print(f"---\n{text}")


def _quality(model: LlamaForCausalLM, data: Data, end: Outcome) -> dict[str, object]:
    nats, predicted = held_out_loss(model, data.held_out, sequences=64)
    text = data.tokenizer.decode(predicted, skip_special_tokens=True)
    bits = nats * len(predicted) / math.log(2) / len(text.encode())
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": end.steps,
        "all_steps_done": end.complete,
        "held_out_nats_per_token": round(nats, 3),
        "held_out_bits_per_byte": round(bits, 3),
    }


def _shown(acceptance: Acceptance) -> dict[str, object]:
    return {
        "by_position": [round(share, 3) for share in acceptance.by_position],
        "tokens_per_step": round(acceptance.tokens_per_step, 2),
    }


if __name__ == "__main__":
    main()
