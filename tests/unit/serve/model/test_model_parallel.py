"""Tensor parallelism: two processes give the tokens of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_oracle import greedy
from model_pipeline import prompt_of

from penstock.errors import SpecError
from penstock.serve.model import SingleRank, load_slice

Saved = Callable[[str], tuple[Path, Any]]

RANK = """
import json, sys
import torch
import torch.distributed as dist
from model_pipeline import Pipeline, prompt_of
from penstock.serve.model import ProcessGroup, load_slice

torch.set_num_threads(1)
rank, store, folders = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
tp = ProcessGroup()
found = []
for folder in folders:
    line = Pipeline([load_slice(folder, a, b, tp=tp, num_pages=200) for a, b in ((0, 2), (2, 4))])
    found.append(line.generate(prompt_of(19, seed=3), 6, chunk=7))
gathered = tp.all_gather(torch.full((2, 1), float(rank)))
print(json.dumps([found, gathered.tolist()]))
dist.destroy_process_group()
"""


def test_two_ranks_generate_what_one_does(saved: Saved, tmp_path: Path) -> None:
    """Heads, MLPs and experts are split over two gloo processes."""
    variants = ["llama-biased", "qwen2", "qwen3", "mixtral", "opt"]
    folders = [str(saved(variant)[0]) for variant in variants]
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), *folders],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs[0][1] + outputs[1][1]
    want = [greedy(saved(variant)[1], prompt_of(19, seed=3), 6) for variant in variants]
    assert outputs[0][0] == outputs[1][0]
    found, gathered = json.loads(outputs[0][0])
    assert found == want
    assert gathered == [[0.0, 1.0], [0.0, 1.0]]


class ThreeRanks(SingleRank):
    """Rank 0 of 3."""

    size = 3


def test_heads_that_cannot_be_shared_are_refused(saved: Saved) -> None:
    """The line names the key of the model and a fix."""
    with pytest.raises(
        SpecError, match=r"tensor_parallel_size: num_attention_heads 4 .* divisor of 4"
    ):
        load_slice(saved("llama")[0], tp=ThreeRanks(), num_pages=1)
