"""Checkpoints on disk: what is read, and one clear line for each way in which they are wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_oracle import save
from safetensors.torch import load_file, save_file

from penstock.errors import SpecError
from penstock.serve.model import load_slice, read_checkpoint
from penstock.serve.model.config import config_from_dict

Saved = Callable[[str], tuple[Path, Any]]


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(saved("llama")[0], tmp_path / "copy"))


def change(folder: Path, file: str = "config.json", **changes: object) -> None:
    path = folder / file
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def retensor(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_checkpoint_says_what_it_holds(folder: Path) -> None:
    """Config, EOS ids, files, bytes and tokenizer."""
    (folder / "tokenizer.json").write_text("{}")
    change(folder, "generation_config.json", eos_token_id=[7, 9])
    found = read_checkpoint(folder)
    assert found.eos_token_ids == (7, 9)
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert found.config.num_layers == 4
    (folder / "generation_config.json").unlink()
    assert read_checkpoint(folder).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "supported: LlamaForCausalLM, Mistral"),
        ({"architectures": None, "model_type": "gpt_neox"}, "cannot be served .got 'gpt_neox'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: quantised"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map: .*never run"),
        ({"hidden_act": "gelu"}, "hidden_act: .*known: silu"),
        ({"dtype": "int8"}, "torch_dtype: .*int8"),
        ({"rope_parameters": {"rope_type": "lunar"}}, "rope_type: .*'lunar'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_scaling.factor: key is missing"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta: must be a number above 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: must be a number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: does not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be a whole number"),
    ],
)
def test_configs_that_cannot_be_served_are_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    """The line names the file, the key and what would do."""
    change(folder, **changes)
    with pytest.raises(SpecError, match=message) as error:
        read_checkpoint(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_layer_norm_before": False}, "350m"),
        ({"word_embed_proj_dim": 32}, "projected embeddings"),
    ],
)
def test_variants_of_opt_that_differ_are_refused(
    saved: Saved, changes: dict[str, object], message: str
) -> None:
    """Norms after the blocks and projected embeddings belong to one small OPT only."""
    source = saved("opt")[0] / "config.json"
    data = json.loads(source.read_text())
    with pytest.raises(SpecError, match=message):
        config_from_dict({**data, **changes}, source)


def test_old_and_new_spellings_of_positions_mean_the_same(folder: Path) -> None:
    """``rope_theta`` with ``rope_scaling`` was replaced by ``rope_parameters``."""
    scaling = {"factor": 3.0, "rope_type": "linear"}
    data = json.loads((folder / "config.json").read_text())
    new = {**data, "rope_parameters": {**scaling, "rope_theta": 7.0}}
    old = {k: v for k, v in data.items() if k != "rope_parameters"}
    old |= {"rope_theta": 7.0, "rope_scaling": {"factor": 3.0, "type": "linear"}}
    assert config_from_dict(old, "x/c").rope == config_from_dict(new, "x/c").rope


def test_a_missing_tensor_is_named(folder: Path) -> None:
    """With the file that should hold it."""
    retensor(folder, **{"model.layers.2.mlp.up_proj.weight": None})
    load_slice(folder, 0, 2, num_pages=1)
    with pytest.raises(
        SpecError, match=r"model\.safetensors: tensor model\.layers\.2\.mlp\.up_proj\.weight is mi"
    ):
        load_slice(folder, 2, 4, num_pages=1)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    """With both shapes."""
    retensor(folder, **{"model.norm.weight": torch.ones(63)})
    with pytest.raises(SpecError, match=r"model\.norm\.weight has shape \[63\].*\[64\]"):
        load_slice(folder, num_pages=1)


def test_a_tensor_of_integers_is_refused(folder: Path) -> None:
    """Packed weights are not floats."""
    retensor(folder, **{"model.norm.weight": torch.ones(64, dtype=torch.int32)})
    with pytest.raises(SpecError, match=r"model\.norm\.weight is of dtype I32"):
        load_slice(folder, num_pages=1)


@pytest.mark.parametrize("size", [0, 5, 4000, 200_000])
def test_a_cut_file_is_refused(folder: Path, size: int) -> None:
    """Wherever the download stopped."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SpecError, match=r"model\.safetensors: not a readable safetensors file"):
        load_slice(folder, num_pages=1)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    """The folder, its config, its weights, a shard of its index."""
    with pytest.raises(SpecError, match="no such checkpoint folder"):
        read_checkpoint(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(SpecError, match="file model-00002-of-00002"):
        read_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match="only pickled weights, which are not read"):
        read_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SpecError, match=r"config\.json: file not found"):
        read_checkpoint(folder)


def test_an_index_cannot_reach_outside_its_folder(folder: Path) -> None:
    """Files of a checkpoint lie beside its index."""
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}})
    )
    with pytest.raises(SpecError, match=r"index\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 9)])
def test_layers_beyond_the_model_are_refused(folder: Path, start: int, end: int) -> None:
    """A slice holds at least one layer of those there are."""
    with pytest.raises(SpecError, match="not within the 4"):
        load_slice(folder, start, end, num_pages=1)


def test_only_the_tensors_of_a_slice_are_read(folder: Path) -> None:
    """A middle slice loads where embeddings, head and all other layers are gone."""
    path = folder / "model.safetensors"
    kept = {name: t for name, t in load_file(path).items() if name.startswith("model.layers.1.")}
    save_file(kept, path)
    middle = load_slice(folder, 1, 2, num_pages=1)
    assert not middle.holds_embedding
    assert not middle.holds_head


def test_a_checkpoint_of_the_inner_model_is_read(tmp_path: Path) -> None:
    """Its tensor names lack the leading ``model.``."""
    save("llama-tied", tmp_path, seed=4)
    want = load_slice(tmp_path, num_pages=1).head(torch.ones(1, 64))
    path = tmp_path / "model.safetensors"
    save_file({n.removeprefix("model."): t for n, t in load_file(path).items()}, path)
    assert torch.equal(load_slice(tmp_path, num_pages=1).head(torch.ones(1, 64)), want)
