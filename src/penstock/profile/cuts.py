"""A checkpoint cut to its first layers: a folder of links beside a config that says fewer."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.errors import SpecError
from penstock.serve.model.checkpoint import read_checkpoint
from penstock.spec.files import read_json

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PER_LAYER = ("layer_types",)


def cut_checkpoint(folder: Path, layers: int, into: Path) -> Path:
    """Make ``into``: the first ``layers`` of the checkpoint in ``folder``, its embedding and head.

    Weights are linked, not copied. Raises ``SpecError`` where ``folder`` is no checkpoint or has
    fewer layers.
    """
    held = read_checkpoint(folder).config.num_layers
    if not 1 <= layers <= held:
        raise SpecError(
            f"the checkpoint has {held} layers", source=folder, key="layers", value=layers
        )
    into.mkdir(parents=True)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != "config.json":
            (into / file.name).symlink_to(file.resolve())
    data = read_json(folder / "config.json")
    assert isinstance(data, dict)
    config = dict(data)
    for key in _LAYERS:
        if key in config:
            config[key] = layers
    for key in _PER_LAYER:
        if isinstance(config.get(key), list):
            config[key] = config[key][:layers]
    (into / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return into
