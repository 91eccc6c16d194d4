"""How well cuts of one and two layers tell whole models on this machine.

    python benchmarks/fingerprint_truth.py [--repeat 5] [--only NAME] [--dtype float32]

Models: models/tiny and random checkpoints of 8 to 24 layers and hidden size 128 to 512; alone,
over two ranks and as a pipeline of two. The whole model runs beside its cuts, in the same rounds,
with prompt lengths and batch sizes that no cut has. Prints absolute errors (median / P90 /
largest, percent) of our estimator and of MaverIQ's from the same cuts, and one JSON line. Takes
some minutes a model; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from penstock.cost.fingerprint import Configuration, Demand
from penstock.cost.fingerprint_file import CutRun, FingerprintFile, write_fingerprint
from penstock.cost.fingerprint_local import estimator_from
from penstock.profile.batches import Batch
from penstock.profile.fingerprint import FingerprintSettings, fingerprint
from penstock.spec.variants import Precision

TINY = Path(__file__).parents[1] / "models" / "tiny"
SHAPES = {"8 x 128": (8, 128), "12 x 512": (12, 512), "24 x 256": (24, 256)}
"""Layers and hidden size."""
HELD_OUT = (Batch(1, 48), Batch(1, 700), Batch(3, 160), Batch(6, 100), Batch(12, 40), Batch(24, 24))
"""No length and no size beside 1 is one that cuts are measured with."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Row:
    """An estimate: its error in percent of what was measured."""

    model: str
    layout: str
    what: str
    batch: int
    method: str
    percent: float


def make_checkpoint(folder: Path, layers: int, hidden: int) -> Path:
    """A random Llama of float32 weights without a tokenizer."""
    folder.mkdir(parents=True)
    heads, kv_heads, width, vocab = hidden // 32, hidden // 64, 3 * hidden, 4096
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.02

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden)}
    tensors["model.norm.weight"] = torch.ones(hidden)
    for i in range(layers):
        at = f"model.layers.{i}"
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv_heads * 32, hidden),
            ("self_attn.v_proj", kv_heads * 32, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", width, hidden),
            ("mlp.up_proj", width, hidden),
            ("mlp.down_proj", hidden, width),
        ):
            tensors[f"{at}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = torch.ones(hidden)
    save_file(tensors, folder / "model.safetensors")
    return folder


def errors(name: str, whole: Sequence[CutRun], document: FingerprintFile) -> list[Row]:
    """One row for each run of the whole model and method: relative errors, percent."""
    rows: list[Row] = []
    for run in whole:
        where = Configuration(run.tp, run.pp, Precision(run.dtype))
        demand = Demand(run.prompt_tokens, run.output_tokens, run.batch)
        pages = -(-(run.prompt_tokens + run.output_tokens) // 16) * 16
        spare = ITEM_BYTES[run.dtype] * document.shape.kv_values * document.shape.layers
        spare *= run.kv_tokens - run.batch * pages
        for method in ("penstock", "maveriq"):
            one = estimator_from(document, method, run.prompt_tokens)
            # Ours counts KV memory for just the batch; both were measured with room for more.
            memory = one.memory_bytes(where, demand) + (spare if method == "penstock" else 0)
            what = {
                "latency": one.latency_s(where, demand) / run.latency,
                "memory": memory / run.memory,
            }
            rows += [
                Row(name, f"TP{run.tp} PP{run.pp}", kind, run.batch, method, 100 * (ratio - 1))
                for kind, ratio in what.items()
            ]
    return rows


def report(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Print a Markdown table; returns its figures."""
    print("| cases | n | penstock median / P90 / max | maveriq median / P90 / max |")
    print("| --- | ---: | ---: | ---: |")
    figures: dict[str, dict[str, list[float]]] = {}
    for what in ("latency", "memory"):
        own = [row for row in rows if row.what == what]
        groups = {f"{what}, all": own}
        for key in ("model", "layout", "batch"):
            for value in dict.fromkeys(getattr(row, key) for row in own):
                label = f"batch {value}" if key == "batch" else value
                groups[f"{what}, {label}"] = [row for row in own if getattr(row, key) == value]
        for name, group in groups.items():
            figures[name] = {}
            for method in ("penstock", "maveriq"):
                off = [abs(row.percent) for row in group if row.method == method]
                figures[name][method] = [
                    round(float(x), 1) for x in (*np.quantile(off, (0.5, 0.9)), max(off))
                ]
            cells = (" / ".join(map(str, figures[name][m])) for m in ("penstock", "maveriq"))
            print(f"| {name} | {len(group) // 2} | {' | '.join(cells)} |")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--keep", type=Path, help="folder for the fingerprints and the truth")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"tiny, 6 x 256": TINY}
        for name, (layers, hidden) in SHAPES.items():
            folders[name] = make_checkpoint(Path(temporary) / name.replace(" ", ""), layers, hidden)
        for name, folder in folders.items():
            if options.only not in name:
                continue
            whole, document = asyncio.run(measured(folder, options))
            rows += errors(name, whole, document)
            print(f"{name}: {len(whole)} runs of the whole model", file=sys.stderr)
    summary = report(rows)
    print(json.dumps({"benchmark": "fingerprint_truth", "error_percent": summary}))


async def measured(
    folder: Path, options: argparse.Namespace
) -> tuple[list[CutRun], FingerprintFile]:
    """Runs of the whole model, and the fingerprint without them."""
    settings = FingerprintSettings(
        (options.dtype,), repeat=options.repeat, server=False, whole=HELD_OUT
    )
    document = await fingerprint(folder, settings)
    if options.keep:
        write_fingerprint(document, options.keep / f"{folder.name}.yaml")
    return split(document)


def split(document: FingerprintFile) -> tuple[list[CutRun], FingerprintFile]:
    """The runs of all layers, and a document of the others."""
    layers = document.shape.layers
    whole = [run for run in document.runs if run.layers == layers]
    cuts = tuple(run for run in document.runs if run.layers < layers)
    return whole, document.model_copy(update={"runs": cuts})


if __name__ == "__main__":
    main()
