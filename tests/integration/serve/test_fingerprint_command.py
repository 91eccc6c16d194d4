"""A fingerprint of a small checkpoint, measured by real workers and a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from math import isfinite
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from penstock.cost.fingerprint import Configuration, Demand
from penstock.cost.fingerprint_file import read_fingerprint
from penstock.cost.fingerprint_local import estimator_from
from penstock.spec.variants import Precision

TINY = Path(__file__).parents[3] / "models" / "tiny"
LAYERS, HIDDEN, VOCAB = 4, 64, 4096


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four random layers and the tokenizer of the tiny model; sequences of 160 tokens at most."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config |= {"max_position_embeddings": 160, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(TINY / name)
    torch.manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN) * 0.1}
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    sizes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64)}
    sizes |= {"self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64)}
    sizes |= {"mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
    for i in range(LAYERS):
        for name, shape in sizes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = torch.randn(shape) * 0.1
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = torch.ones(HIDDEN)
    save_file(tensors, folder / "model.safetensors")
    return folder


def start(folder: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock", "profile", "--fingerprint", str(folder)]
    command += ["-o", str(output), "--repeat", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_cuts_are_measured_and_tell_the_whole(checkpoint: Path, tmp_path: Path) -> None:
    """All kinds of cuts, a server, and from them estimates; ours grow with the work."""
    output = tmp_path / "f.yaml"
    child = start(checkpoint, output)
    shown, error = child.communicate(timeout=240)
    assert child.returncode == 0, error
    assert "layer, ms" in shown
    found = read_fingerprint(output)
    assert {(run.tp, run.pp, run.layers) for run in found.runs} == {
        (1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (1, 2, 2), (1, 2, 3),
    }  # fmt: skip
    assert found.shape.layers == LAYERS
    assert found.server is not None
    assert found.server.request > 0
    for method in ("penstock", "maveriq"):
        one = estimator_from(found, method)
        for tp, pp in ((1, 1), (2, 1), (1, 2)):
            where = Configuration(tp, pp, Precision("float32"))
            short, long = Demand(100, 2), Demand(100, 60)
            times = one.latency_s(where, short), one.latency_s(where, long)
            # MaverIQ's differences of single runs may come out below zero on a busy machine.
            assert times[1] > times[0] > 0 if method == "penstock" else all(map(isfinite, times))
            assert one.memory_bytes(where, short) > LAYERS * found.shape.layer_parameters * 4


@pytest.mark.slow
def test_an_interrupted_fingerprint_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C: no file, no process, no traceback."""
    output = tmp_path / "f.yaml"
    child = start(checkpoint, output)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    end_s = time.monotonic() + 60
    below: list[str] = []
    while not below and time.monotonic() < end_s:
        time.sleep(0.2)
        below = children.read_text().split()
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "Traceback" not in error
    assert not output.exists()
    assert below
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
