"""A Hugging Face checkpoint folder: what it holds, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import SpecError
from penstock.serve.model.config import ModelConfig, config_from_dict
from penstock.spec.files import read_json

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``files`` are the ``*.safetensors``; ``weight_bytes`` is their size on disk.

    ``tokenizer`` is None where the folder has no ``tokenizer.json``. ``eos_token_ids`` come from
    ``generation_config.json``, else from ``config.json``; they may be none.
    """

    folder: Path
    config: ModelConfig
    files: tuple[Path, ...]
    weight_bytes: int
    eos_token_ids: tuple[int, ...]
    tokenizer: Path | None


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Raises ``SpecError`` that names the file where something is missing or cannot be served."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SpecError(
            "no such checkpoint folder", source=folder, fix="give a folder with config.json"
        )
    path = folder / "config.json"
    data = _object(path)
    config = config_from_dict(data, path)
    files = _weight_files(folder)
    tokenizer = folder / "tokenizer.json"
    return Checkpoint(
        folder=folder,
        config=config,
        files=files,
        weight_bytes=sum(file.stat().st_size for file in files),
        eos_token_ids=_eos(folder, data),
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def weight_map(folder: Path) -> Mapping[str, str] | None:
    """Tensor name -> file name of a sharded checkpoint; None where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    found = _object(path).get("weight_map")
    if not isinstance(found, Mapping) or not found:
        raise SpecError("must map tensor names to files", source=path, key="weight_map")
    return {str(name): str(file) for name, file in found.items()}


def _weight_files(folder: Path) -> tuple[Path, ...]:
    mapped = weight_map(folder)
    if mapped is not None:
        files = tuple(folder / name for name in sorted(set(mapped.values())))
        for file in files:
            if file.parent.resolve() != folder.resolve() or not file.is_file():
                raise SpecError(
                    f"file {file.name} is missing", source=folder / INDEX, fix="download it again"
                )
        return files
    single = folder / "model.safetensors"
    files = (single,) if single.is_file() else tuple(sorted(folder.glob("*.safetensors")))
    if files:
        return files
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
    raise SpecError(
        "no *.safetensors file" + (", only pickled weights, which are not read" if pickled else ""),
        source=folder,
        fix="save it with save_pretrained(safe_serialization=True)" if pickled else None,
    )


def _object(path: Path) -> Mapping[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise SpecError("must hold one JSON object", source=path)
    return data


def _eos(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    generation = _object(path) if path.is_file() else {}
    for source, data in ((path, generation), (folder / "config.json", config)):
        raw = data.get("eos_token_id")
        if raw is None:
            continue
        ids: Iterable[object] = raw if isinstance(raw, list) else [raw]
        found = tuple(token for token in ids if type(token) is int and token >= 0)
        if len(found) != len(list(ids)):
            raise SpecError("must be token ids", source=source, key="eos_token_id", value=raw)
        return found
    return ()
