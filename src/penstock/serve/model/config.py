"""What the layers must know of a checkpoint beyond its shape: norms, biases, positions, windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.errors import SpecError
from penstock.serve.model.rope import RopeConfig, rope_from_config
from penstock.spec.model import ModelSpec
from penstock.spec.models import model_from_config

Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Family:
    """Where architectures differ; ``default_window`` is what transformers assumes if unsaid."""

    name: str
    qkv_bias: bool | None = None
    """None: the config says (``attention_bias``), which then counts for the output too."""
    qk_norm: bool = False
    default_window: int | None = None
    has_window: bool = False


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("mistral", False, default_window=4096, has_window=True),
    "MixtralForCausalLM": Family("mixtral", False, has_window=True),
    "Qwen2ForCausalLM": Family("qwen2", True, default_window=4096, has_window=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, default_window=4096, has_window=True),
    "OPTForCausalLM": Family("opt", True),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How to compute a checkpoint. ``shape`` holds every size; the rest is behaviour.

    ``windows`` has one entry per layer: tokens a token sees, itself included, or None for all.
    ``rope`` is None where positions are learned; ``learned_position_offset`` then says at which
    row of the table position 0 lies. ``dtype`` is torch's name of what the weights are stored in.
    """

    shape: ModelSpec
    family: str
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    final_norm: bool
    norm_weights: bool
    rope: RopeConfig | None
    learned_position_offset: int
    windows: tuple[int | None, ...]
    dtype: str

    @property
    def num_layers(self) -> int:
        return self.shape.num_hidden_layers


def config_from_dict(data: Mapping[str, Any], source: str | Path) -> ModelConfig:
    """Return what ``data`` (the content of a ``config.json``) asks for.

    Raises ``SpecError`` for an architecture, activation, quantisation or variant that is not
    supported, and for missing or wrong keys.
    """
    try:
        family = _family(data)
        _refuse(data)
        shape = model_from_config(data, name=Path(source).parent.name, source=str(source))
        return _opt(data, shape) if family.name == "opt" else _llama_like(data, shape, family)
    except SpecError as error:
        raise error.at(source) from None


def _family(data: Mapping[str, Any]) -> Family:
    named = data.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else None
    if architecture is not None and architecture in FAMILIES:
        return FAMILIES[architecture]
    if architecture is None:
        for family in FAMILIES.values():
            if data.get("model_type") == family.name:
                return family
    raise SpecError(
        "this architecture cannot be served",
        key="architectures",
        value=architecture or data.get("model_type"),
        fix=f"supported: {', '.join(FAMILIES)}",
    )


def _refuse(data: Mapping[str, Any]) -> None:
    if data.get("quantization_config"):
        raise SpecError(
            "quantised checkpoints cannot be served by the built-in layers",
            key="quantization_config",
            fix="use the unquantised checkpoint, or an external vLLM engine",
        )
    if data.get("auto_map"):
        raise SpecError(
            "the checkpoint asks to run its own code", key="auto_map", fix="it is never run"
        )


def _llama_like(data: Mapping[str, Any], shape: ModelSpec, family: Family) -> ModelConfig:
    asked = bool(data.get("attention_bias", False))
    return ModelConfig(
        shape=shape,
        family=family.name,
        norm="rms",
        norm_eps=_number(data, "rms_norm_eps", 1e-5 if family.name == "mixtral" else 1e-6),
        activation=_activation(data, "hidden_act", gated=True),
        qkv_bias=asked if family.qkv_bias is None else family.qkv_bias,
        output_bias=asked if family.qkv_bias is None else False,
        mlp_bias=bool(data.get("mlp_bias", False)) and family.name == "llama",
        qk_norm=family.qk_norm,
        final_norm=True,
        norm_weights=True,
        rope=rope_from_config(data, shape),
        learned_position_offset=0,
        windows=_windows(data, shape.num_hidden_layers, family),
        dtype=_dtype(data),
    )


def _opt(data: Mapping[str, Any], shape: ModelSpec) -> ModelConfig:
    if data.get("do_layer_norm_before") is False:
        raise SpecError(
            "OPT with norms after its blocks (the 350m variant) cannot be served",
            key="do_layer_norm_before",
            fix="use another size of OPT",
        )
    if data.get("word_embed_proj_dim", shape.hidden_size) != shape.hidden_size:
        raise SpecError(
            f"OPT with projected embeddings cannot be served: hidden_size is {shape.hidden_size}",
            key="word_embed_proj_dim",
            value=data["word_embed_proj_dim"],
            fix="use another size of OPT",
        )
    biased = bool(data.get("enable_bias", True))
    return ModelConfig(
        shape=shape,
        family="opt",
        norm="layer",
        norm_eps=1e-5,
        activation=_activation(data, "activation_function", gated=False),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        qk_norm=False,
        final_norm=not data.get("_remove_final_layer_norm", False),
        norm_weights=bool(data.get("layer_norm_elementwise_affine", True)),
        rope=None,
        learned_position_offset=2,
        windows=(None,) * shape.num_hidden_layers,
        dtype=_dtype(data),
    )


def _activation(data: Mapping[str, Any], key: str, *, gated: bool) -> Activation:
    name = str(data.get(key) or ("silu" if gated else "relu"))
    found = _ACTIVATIONS.get(name)
    if found is None or (gated and found != "silu"):
        known = "silu" if gated else ", ".join(_ACTIVATIONS)
        raise SpecError(
            "this activation is not supported",
            key=key,
            value=name,
            fix=f"known: {known}",
        )
    return found


def _windows(data: Mapping[str, Any], layers: int, family: Family) -> tuple[int | None, ...]:
    """The rules of transformers: Qwen slides from ``max_window_layers`` on and only if told to."""
    window = data.get("sliding_window", family.default_window) if family.has_window else None
    if window is not None and (type(window) is not int or window < 1):
        raise SpecError("must be a whole number above 0", key="sliding_window", value=window)
    if family.name not in ("qwen2", "qwen3"):
        return (window,) * layers
    if not data.get("use_sliding_window", False):
        return (None,) * layers
    kinds = data.get("layer_types")
    if isinstance(kinds, list):
        if len(kinds) != layers:
            raise SpecError(f"must name {layers} layers", key="layer_types", value=len(kinds))
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = int(_number(data, "max_window_layers", 28))
    return tuple(window if layer >= first else None for layer in range(layers))


def _dtype(data: Mapping[str, Any]) -> str:
    raw = data.get("dtype") or data.get("torch_dtype") or "float32"
    name = str(raw).removeprefix("torch.")
    if name not in DTYPES:
        raise SpecError(
            "weights of this dtype cannot be served",
            key="torch_dtype",
            value=raw,
            fix=f"known: {', '.join(DTYPES)}",
        )
    return name


def _number(data: Mapping[str, Any], key: str, default: float) -> float:
    value = data.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise SpecError("must be a number of 0 or above", key=key, value=value)
    return float(value)
