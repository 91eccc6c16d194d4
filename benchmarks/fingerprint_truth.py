"""How well cuts of one and two layers tell whole models on this machine.

    python benchmarks/fingerprint_truth.py [--repeat 5] [--only NAME] [--dtype float32]

Measures the fingerprint of every model, then the model itself: models/tiny and random checkpoints
of 8 to 24 layers and hidden size 128 to 512, alone, over two ranks and as a pipeline of two.
Prompt lengths and batch sizes of the whole models are none of those of the cuts. Prints absolute
errors (median / P90 / largest, percent) of our estimator and of MaverIQ's from the same cuts, and
one JSON line. Memory is compared with KV memory for just the batch. Takes some minutes a model;
the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from penstock.cost.fingerprint import Configuration, Demand, Estimator
from penstock.cost.fingerprint_file import FingerprintFile, read_fingerprint, write_fingerprint
from penstock.cost.fingerprint_local import estimator_from
from penstock.errors import InputError
from penstock.profile.batches import Batch, Runner, kv_tokens, measure
from penstock.profile.fingerprint import FingerprintSettings, fingerprint
from penstock.spec.load import load_model
from penstock.spec.variants import Precision

TINY = Path(__file__).parents[1] / "models" / "tiny"
SHAPES = {"8 x 128": (8, 128), "12 x 512": (12, 512), "24 x 256": (24, 256)}
"""Layers and hidden size."""
HELD_OUT = (Batch(1, 48), Batch(1, 700), Batch(3, 160), Batch(6, 100), Batch(12, 40), Batch(24, 24))
"""No length and no size beside 1 is one that cuts are measured with."""
OUTPUTS = (6, 15, 20)
LAYOUTS = ((1, 1), (2, 1), (1, 2))


@dataclass(frozen=True)
class Case:
    model: str
    layout: tuple[int, int]
    demand: Demand
    latency_s: float
    memory_bytes: float


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


async def truth(name: str, folder: Path, dtype: str, repeat: int) -> list[Case]:
    """Measure the whole model in every layout."""
    layers, cases = load_model(folder).num_hidden_layers, []
    for tp, pp in LAYOUTS:
        room = kv_tokens(HELD_OUT)
        runner = Runner("whole", folder, layers, tp, pp, dtype, room)
        found = await measure([runner], HELD_OUT, repeat)
        for (_, batch), timing in found.items():
            cases += [
                Case(
                    name,
                    (tp, pp),
                    Demand(batch.prompt_tokens, outputs, batch.size),
                    timing.latency_s(outputs),
                    0.0,
                )
                for outputs in OUTPUTS
            ]
        for batch in (HELD_OUT[1], HELD_OUT[4]):
            runner = Runner("whole", folder, layers, tp, pp, dtype, kv_tokens([batch]))
            found = await measure([runner], [batch], 1)
            demand = Demand(batch.prompt_tokens, 20, batch.size)
            cases += [Case(name, (tp, pp), demand, 0.0, t.memory_bytes) for t in found.values()]
    return cases


def errors(
    cases: list[Case], document: FingerprintFile, precision: Precision
) -> list[dict[str, object]]:
    """One row for each case and method: the relative error of what it estimates, percent."""
    rows: list[dict[str, object]] = []
    for case in cases:
        where = Configuration(*case.layout, precision)
        for method in ("penstock", "maveriq"):
            try:
                one: Estimator = estimator_from(document, method, case.demand.prompt_tokens)
                if case.latency_s:
                    off = one.latency_s(where, case.demand) / case.latency_s - 1
                else:
                    off = one.memory_bytes(where, case.demand) / case.memory_bytes - 1
            except InputError as error:
                print(f"{case.model}: {method}: {error}", file=sys.stderr)
                continue
            rows.append(
                {
                    "model": case.model,
                    "layout": f"TP{case.layout[0]} PP{case.layout[1]}",
                    "what": "latency" if case.latency_s else "memory",
                    "batch": f"batch {case.demand.batch}",
                    "prompt": case.demand.prompt_tokens,
                    "method": method,
                    "percent": 100 * off,
                }
            )
    return rows


def report(rows: list[dict[str, object]]) -> dict[str, dict[str, list[float]]]:
    """Print a Markdown table; returns its figures."""
    print("| cases | n | penstock median / P90 / max | maveriq median / P90 / max |")
    print("| --- | ---: | ---: | ---: |")
    figures: dict[str, dict[str, list[float]]] = {}
    for what in ("latency", "memory"):
        own = [row for row in rows if row["what"] == what]
        groups = {f"{what}, all": own}
        for key in ("model", "layout", "batch"):
            for value in dict.fromkeys(row[key] for row in own):
                groups[f"{what}, {value}"] = [row for row in own if row[key] == value]
        for name, group in groups.items():
            figures[name] = {}
            for method in ("penstock", "maveriq"):
                off = [abs(float(str(r["percent"]))) for r in group if r["method"] == method]
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
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"tiny, 6 x 256": TINY}
        for name, (layers, hidden) in SHAPES.items():
            folders[name] = make_checkpoint(Path(temporary) / name.replace(" ", ""), layers, hidden)
        for name, folder in folders.items():
            if options.only not in name:
                continue
            document = asyncio.run(measured(folder, options))
            cases = asyncio.run(truth(name, folder, options.dtype, options.repeat))
            rows += errors(cases, document, Precision(options.dtype))
            print(f"{name}: {len(cases)} cases", file=sys.stderr)
    summary = report(rows)
    print(json.dumps({"benchmark": "fingerprint_truth", "error_percent": summary}))


async def measured(folder: Path, options: argparse.Namespace) -> FingerprintFile:
    """The fingerprint of ``folder``, through its file."""
    settings = FingerprintSettings((options.dtype,), repeat=options.repeat, server=False)
    document = await fingerprint(folder, settings)
    keep = options.keep or Path(tempfile.mkdtemp())
    path = keep / f"{folder.name}.yaml"
    write_fingerprint(document, path)
    return read_fingerprint(path)


if __name__ == "__main__":
    main()
