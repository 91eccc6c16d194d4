"""Mangled files: whatever people (or disks) do to a file, they get a value or one clear line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from penstock.errors import PenstockError, StorageError
from penstock.spec.load import (
    cluster_from_dict,
    cluster_to_dict,
    load_cluster,
    load_workload,
    model_from_dict,
    workload_from_dict,
)
from penstock.spec.models import model_from_config
from penstock.spec.templates import example_files
from penstock.spec.traces import write_trace
from penstock.spec.workload import Request

ODD: list[Any] = [
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "", "x", "1e9", "5 ms", "é", [],
    {}, [1], ["a", "b"], {"a": 1}, [[1, 2], [3]], "inf", "coordinator", b"x",
]  # fmt: skip
CONFIG = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [0],
    "layer_types": ["full_attention"],
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 2,
    "qk_nope_head_dim": 2,
    "v_head_dim": 2,
    "architectures": ["X"],
    "sliding_window": 4,
    "quantization_config": {"config_groups": {"g": {"weights": {"num_bits": 4}}}},
}
MODEL = {"preset": "llama2-7b", "moe": {"num_experts": 8, "num_experts_per_token": 2,
         "intermediate_size": 3, "dense_layers": [1]}, "name": "x"}  # fmt: skip


def documents() -> dict[str, tuple[Any, Any]]:
    cluster = yaml.safe_load(example_files()["cluster.yaml"])
    workload = yaml.safe_load(example_files()["workload.yaml"])
    workload["lengths"] = {"prompt": {"lognormal": {"mean": 5, "cv": 1}}, "output": 3}
    plain = cluster_to_dict(load_cluster("distributed24-a100"))
    return {
        "cluster": (cluster, cluster_from_dict),
        "plain cluster": (plain, cluster_from_dict),
        "workload": (workload, workload_from_dict),
        "model": (MODEL, model_from_dict),
        "config": (CONFIG, lambda data: model_from_config(data, name="m")),
    }


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside ``data``."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


def message_of(read: Callable[[Any], object], data: Any) -> str:
    """The one line a user sees, or nothing when the file is accepted."""
    try:
        read(data)
    except PenstockError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", list(documents()))
def test_odd_values_anywhere_are_one_line(kind: str) -> None:
    """Replacing, removing or adding any value gives a value or a one-line error, never a crash."""
    original, read = documents()[kind]
    rng = Random(11)
    everywhere = places(original)
    for _ in range(400):
        data = copy.deepcopy(original)
        *parents, last = rng.choice(everywhere)
        at = data
        for part in parents:
            at = at[part]
        change = rng.random()
        if change < 0.1:
            del at[last]
        elif change < 0.2 and isinstance(at, dict):
            at[rng.choice(["x", "", "name", "count"])] = rng.choice(ODD)
        else:
            at[last] = rng.choice(ODD)
        assert "\n" not in message_of(read, data)


@pytest.mark.parametrize("name", ["cluster.yaml", "workload.yaml", "trace.csv"])
def test_cut_and_scrambled_text_is_one_line(tmp_path: Path, name: str) -> None:
    """Text with bytes lost or doubled is refused or read, never a crash."""
    rng = Random(name)
    texts = {
        **example_files(),
        "trace.csv": "arrival_s,prompt_tokens,output_tokens\n0,1,2\n3,4,5\n",
    }
    read = load_cluster if name == "cluster.yaml" else load_workload
    path = tmp_path / name
    for _ in range(150):
        text = texts[name]
        i, width = rng.randrange(len(text)), rng.choice([1, 3, 40, 400])
        path.write_text(
            text[:i] + rng.choice(["", ":", '"', "\0", text[i : i + 9]]) + text[i + width :]
        )
        message = message_of(read, path)
        assert "\n" not in message
        assert not message or str(path) in message


def test_nothing_half_written(tmp_path: Path) -> None:
    """When requests run out with an error midway, the old file stays as it was."""
    path = tmp_path / "t.csv"
    write_trace(path, [Request(0, 0.0, 1, 1)])
    before = path.read_bytes()

    def broken() -> Any:
        yield Request(0, 0.0, 2, 2)
        raise PenstockError("stop")

    with pytest.raises(PenstockError, match="stop"):
        write_trace(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot be written"):
        write_trace(tmp_path / "no" / "t.csv", [])
