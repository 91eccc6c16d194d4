"""Models as files: a preset with changes, a whole ``config``, or every field of the shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from penstock.errors import SpecError
from penstock.spec.model import Dtype, LatentAttention, MixtureOfExperts, ModelSpec
from penstock.spec.models import model_from_config, preset, presets
from penstock.spec.names import did_you_mean
from penstock.spec.strict import Bytes, Count, Strict, validate


class ExpertsFile(Strict):
    num_experts: Count
    num_experts_per_token: Count
    intermediate_size: Count
    num_shared_experts: int = Field(default=0, ge=0)
    first_dense_layers: int = Field(default=0, ge=0)
    layer_step: Count = 1
    dense_layers: tuple[int, ...] = ()


class LatentFile(Strict):
    kv_lora_rank: Count
    q_lora_rank: Count | None = None
    qk_rope_head_dim: Count
    qk_nope_head_dim: Count
    v_head_dim: Count


class ModelFile(Strict):
    """A transformer. Start from a ``preset`` or a Hugging Face ``config``, then change fields."""

    preset: str | None = None
    config: dict[str, Any] | None = None
    name: str | None = None
    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    vocab_size: Count | None = None
    max_position_embeddings: Count | None = None
    dtype: Dtype | None = None
    weight_dtype: Dtype | None = None
    kv_dtype: Dtype | None = None
    gated_mlp: bool | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: Count | None = None
    moe: ExpertsFile | None = None
    mla: LatentFile | None = None
    layer_weight_bytes_override: Bytes | None = None
    embedding_parameters_override: Count | None = None
    architecture: str | None = None
    source: str | None = None


def model_from_dict(data: object, source: str | Path = "model") -> ModelSpec:
    """Return the model that ``data`` (the content of a model file) describes."""
    file = validate(ModelFile, data, source)
    changes = {
        key: value
        for key, value in file.model_dump(exclude_unset=True).items()
        if key not in ("preset", "config", "moe", "mla")
    }
    if file.moe is not None:
        changes["moe"] = MixtureOfExperts(**file.moe.model_dump())
    if file.mla is not None:
        changes["mla"] = LatentAttention(**file.mla.model_dump())
    try:
        return _checked(_from_file(file, changes, source))
    except SpecError as error:
        raise error.at(source) from None


def _from_file(file: ModelFile, changes: dict[str, Any], source: str | Path) -> ModelSpec:
    if file.preset is not None and file.config is not None:
        raise SpecError("give a preset or a config, not both", key="preset")
    if file.preset is not None:
        base = preset(file.preset)
        if base is None:
            fix = did_you_mean(file.preset, presets())
            raise SpecError("unknown model", key="preset", value=file.preset, fix=fix)
        return replace(base, **changes)
    if file.config is not None:
        name = file.name or Path(str(source)).stem
        try:
            return replace(model_from_config(file.config, name=name, source=str(source)), **changes)
        except SpecError as error:
            raise error.at(source, "config") from None
    changes.setdefault("name", Path(str(source)).stem)
    for field in fields(ModelSpec):
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in changes:
            raise SpecError(
                "key is missing", key=field.name, fix="or start from `preset:` or `config:`"
            )
    return ModelSpec(**changes)


def _checked(spec: ModelSpec) -> ModelSpec:
    if spec.num_attention_heads % spec.num_key_value_heads:
        raise SpecError(
            f"does not divide num_attention_heads ({spec.num_attention_heads})",
            key="num_key_value_heads",
            value=spec.num_key_value_heads,
        )
    return spec


def model_to_dict(model: ModelSpec) -> dict[str, object]:
    """Return every field that is not at its default; ``model_from_dict`` gives the model back."""
    data: dict[str, object] = {}
    for field in fields(ModelSpec):
        value = getattr(model, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        data[field.name] = value
    for key in ("moe", "mla"):
        value = getattr(model, key)
        if value is not None:
            data[key] = {
                name: list(entry) if isinstance(entry, tuple) else entry
                for name, entry in asdict(value).items()
            }
    return data


def model_mapping(data: Mapping[str, object]) -> bool:
    """Whether plain JSON looks like a Hugging Face config rather than our own model file."""
    return any(key in data for key in ("architectures", "model_type", "text_config"))
