"""Random checkpoints, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from model_oracle import save

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """(folder, model of transformers) of a variant."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(variant: str) -> tuple[Path, Any]:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            made[variant] = (folder, save(variant, folder))
        return made[variant]

    return make
