"""A ``ModelSpec`` from a Hugging Face ``config.json``, and the bundled presets.

Repositories disagree on the names of the same number (``n_embd``, ``d_model``, ``hidden_size``);
``_ALIASES`` lists what we accept, first match wins. Keys that do not change the shape are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from penstock.errors import SpecError
from penstock.spec.files import PRESETS, is_finite_number, read_json, read_yaml
from penstock.spec.model import Dtype, LatentAttention, MixtureOfExperts, ModelSpec
from penstock.spec.names import did_you_mean, normalise

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate_size": (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "ffn_hidden_size",
        "decoder_ffn_dim",
    ),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
        "n_ctx",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_top_k",
    ),
}
# Families whose MLP is gated although their activation is not named silu, and the reverse.
_GATED = ("gemma", "glm", "chatglm", "gpt_oss")
_UNGATED = ("opt", "gpt2", "gptj", "gpt_neox", "gpt_bigcode", "falcon", "bloom", "mpt", "codegen")
# transformers ties input and output embeddings by default; these families default to untied.
_UNTIED = (
    "llama", "mistral", "mixtral", "qwen", "deepseek", "phi", "gptj", "gpt_neox", "internlm",
    "baichuan", "chatglm", "glm", "gpt_oss", "kimi", "olmo", "stablelm", "yi", "codegen",
    "starcoder2", "granite", "exaone", "minimax", "dbrx", "xverse", "aquila",
)  # fmt: skip
_LARGEST = 10**12
_LEARNED_POSITIONS = {"opt": 2, "gpt2": 0, "gpt_bigcode": 0}
_DTYPES: Mapping[str, Dtype] = {
    "float32": "fp16",
    "float": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}


class _Config:
    """Typed access to the keys of one config, with errors that name the key."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.model_type = str(data.get("model_type") or "")

    def get(self, key: str) -> Any:
        for alias in _ALIASES.get(key, (key,)):
            if self.data.get(alias) is not None:
                return self.data[alias]
        return None

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key)
        if value is None:
            if default is None:
                names = " or ".join(_ALIASES.get(key, (key,))[:3])
                raise SpecError("key is missing", key=key, fix=f"the model needs {names}")
            return default
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value == 0 and default == 0:
            return 0
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise SpecError("must be a whole number above 0", key=key, value=value)
        return value

    def is_family(self, names: tuple[str, ...]) -> bool:
        return self.model_type.startswith(names)


def model_from_config(
    config: Mapping[str, Any], *, name: str, source: str = "", hf_quant: Any = None
) -> ModelSpec:
    """Return the shape that ``config`` (the content of a ``config.json``) describes.

    A nested ``text_config`` (multimodal models) is unwrapped. An absent or float32 dtype is
    served in fp16, as vLLM's ``auto`` does. Where only some layers have a sliding window
    (``layer_types``), no window is assumed: KV memory is then an upper limit. Multi-token
    prediction layers are not counted. Raises ``SpecError`` with the key that is missing or wrong.
    """
    outer = config
    for nested in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(nested), Mapping):
            kept = ("torch_dtype", "dtype", "quantization_config", "architectures")
            inherited = {key: outer[key] for key in kept if key in outer}
            config = {**inherited, **config[nested]}
            break
    c = _Config(config)
    if config.get("is_encoder_decoder"):
        raise SpecError("encoder-decoder models are not supported", key="is_encoder_decoder")
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    named = config.get("architectures") or outer.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else c.model_type
    layers = c.size("num_hidden_layers")
    moe = _mixture_of_experts(c, layers)
    dtype = _dtype(c)
    quantisation = config.get("quantization_config") or outer.get("quantization_config") or hf_quant
    weight_dtype, kv_dtype = _quantisation(quantisation)
    return ModelSpec(
        name=name,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(c, heads),
        head_dim=_head_dim(c, hidden, heads),
        intermediate_size=_intermediate(c, hidden),
        vocab_size=c.size("vocab_size"),
        max_position_embeddings=c.size("max_position_embeddings", 2048),
        dtype=dtype,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        gated_mlp=_is_gated(c),
        tie_word_embeddings=_is_tied(c),
        sliding_window=_window(c),
        moe=moe,
        mla=_latent_attention(c),
        embedding_parameters_override=_embeddings(c, hidden),
        architecture=str(architecture),
        source=source,
    )


def _kv_heads(c: _Config, heads: int) -> int:
    if c.model_type in ("falcon", "RefinedWeb", "RefinedWebModel"):
        if c.get("new_decoder_architecture") or c.model_type == "RefinedWeb":
            key = "num_kv_heads" if c.get("num_kv_heads") is not None else "n_head_kv"
            return c.size(key, heads)
        return 1 if c.get("multi_query") is not False else heads
    attention = c.get("attn_config")
    if isinstance(attention, Mapping) and attention.get("kv_n_heads") is not None:
        return _Config(attention).size("kv_n_heads")
    if c.get("multi_query_attention"):
        return c.size("multi_query_group_num")
    if c.model_type == "gpt_bigcode" and c.get("multi_query") is not False:
        return 1
    kv_heads = c.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise SpecError(
            f"does not divide num_attention_heads ({heads})",
            key="num_key_value_heads",
            value=kv_heads,
        )
    return kv_heads


def _head_dim(c: _Config, hidden: int, heads: int) -> int:
    for key in ("head_dim", "kv_channels"):
        if c.get(key) is not None:
            return c.size(key)
    if hidden % heads and c.get("kv_lora_rank") is None:
        raise SpecError(
            f"hidden_size {hidden} is not a multiple of it",
            key="num_attention_heads",
            value=heads,
            fix="state head_dim",
        )
    return hidden // heads


def _intermediate(c: _Config, hidden: int) -> int:
    if c.model_type.startswith("llama4") and c.get("intermediate_size_mlp") is not None:
        return c.size("intermediate_size_mlp")
    ratio = c.get("expansion_ratio")
    default = int(hidden * ratio) if is_finite_number(ratio) else 4 * hidden
    return c.size("intermediate_size", default if c.is_family(_UNGATED) else None)


def _is_gated(c: _Config) -> bool:
    if c.is_family(_UNGATED):
        return False
    if c.is_family(_GATED):
        return True
    act = c.get("hidden_act") or c.get("activation_function") or c.get("hidden_activation")
    return act is None or str(act).lower() in ("silu", "swish", "swiglu", "swigluoai")


def _is_tied(c: _Config) -> bool:
    tied = c.get("tie_word_embeddings")
    return bool(tied) if tied is not None else not c.is_family(_UNTIED)


def _window(c: _Config) -> int | None:
    window = c.get("sliding_window")
    if window is None or c.get("use_sliding_window") is False:
        return None
    kinds = c.get("layer_types")
    if isinstance(kinds, list) and any(kind != "sliding_attention" for kind in kinds):
        return None
    alternating = ("gemma2", "gemma3", "gpt_oss", "cohere2", "llama4")
    if kinds is None and c.is_family(alternating):
        return None
    return c.size("sliding_window")


def _embeddings(c: _Config, hidden: int) -> int | None:
    """Parameters of embeddings that are more than vocabulary x hidden size."""
    if c.model_type not in _LEARNED_POSITIONS:
        return None
    vocab = c.size("vocab_size")
    width = c.size("word_embed_proj_dim", hidden)
    positions = c.size("max_position_embeddings", 2048) + _LEARNED_POSITIONS[c.model_type]
    projections = 2 * width * hidden if width != hidden else 0
    return vocab * width * (1 if _is_tied(c) else 2) + projections + positions * hidden


def _mixture_of_experts(c: _Config, layers: int) -> MixtureOfExperts | None:
    if c.get("experts") is None or c.size("experts") == 1:
        return None
    width = (
        c.size("moe_intermediate_size")
        if c.get("moe_intermediate_size") is not None
        else c.size("intermediate_size")
    )
    shared = c.size("n_shared_experts", 0) or c.size("num_shared_experts", 0)
    if c.get("shared_expert_intermediate_size"):
        # Qwen2-MoE has one wide shared expert; count it as several of the routed width.
        shared = max(1, round(c.size("shared_expert_intermediate_size") / width))
    elif c.model_type.startswith("llama4"):
        shared = 1
    step = c.size("decoder_sparse_step", c.size("interleave_moe_layer_step", 1))
    step = c.size("moe_layer_freq", step) if isinstance(c.get("moe_layer_freq"), int) else step
    dense = c.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int for i in dense):
        raise SpecError("must be a list of layer numbers", key="mlp_only_layers", value=dense)
    first_dense = c.get("first_k_dense_replace") or 0
    if type(first_dense) is not int or not 0 <= first_dense <= layers:
        raise SpecError(f"must be 0 to {layers}", key="first_k_dense_replace", value=first_dense)
    per_token = c.size("experts_per_token")
    if per_token > c.size("experts"):
        raise SpecError(
            f"more than the {c.size('experts')} experts", key="num_experts_per_tok", value=per_token
        )
    return MixtureOfExperts(
        num_experts=c.size("experts"),
        num_experts_per_token=per_token,
        intermediate_size=width,
        num_shared_experts=shared,
        first_dense_layers=first_dense,
        layer_step=step,
        dense_layers=tuple(dense),
    )


def _latent_attention(c: _Config) -> LatentAttention | None:
    if c.get("kv_lora_rank") is None:
        return None
    return LatentAttention(
        kv_lora_rank=c.size("kv_lora_rank"),
        q_lora_rank=None if c.get("q_lora_rank") is None else c.size("q_lora_rank"),
        qk_rope_head_dim=c.size("qk_rope_head_dim"),
        qk_nope_head_dim=c.size("qk_nope_head_dim"),
        v_head_dim=c.size("v_head_dim"),
    )


def _dtype(c: _Config) -> Dtype:
    raw = c.get("torch_dtype") or c.get("dtype") or "float16"
    found = _DTYPES.get(str(raw).removeprefix("torch."))
    if found is None:
        raise SpecError(
            "unknown dtype", key="torch_dtype", value=raw, fix=did_you_mean(str(raw), _DTYPES)
        )
    return found


def _quantisation(raw: Any) -> tuple[Dtype | None, Dtype | None]:
    """(weights, KV cache) of a ``quantization_config`` or ``hf_quant_config.json``."""
    if not isinstance(raw, Mapping):
        return None, None
    if isinstance(raw.get("quantization"), Mapping):
        raw = raw["quantization"]
    kv_name = str(raw.get("kv_cache_quant_algo") or raw.get("kv_cache_scheme") or "").lower()
    kv: Dtype | None = "fp8" if "fp8" in kv_name or "float" in kv_name else None
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower()
    for word, dtype in (("fp4", "fp4"), ("fp8", "fp8"), ("w8a8", "int8"), ("w4a", "int4")):
        if word in method or word in str(raw.get("quant_algo") or "").lower():
            return cast(Dtype, dtype), kv
    if raw.get("load_in_4bit"):
        return "int4", kv
    if raw.get("load_in_8bit"):
        return "int8", kv
    scheme: Mapping[str, Any] = raw
    groups = raw.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        group = next(iter(groups.values()))
        weights = group.get("weights") if isinstance(group, Mapping) else None
        scheme = weights if isinstance(weights, Mapping) else {}
    bits = scheme.get("bits", scheme.get("num_bits", scheme.get("w_bit")))
    by_bits: Mapping[Any, Dtype] = {3: "int4", 4: "int4", 8: "int8"}
    if isinstance(bits, int) and bits in by_bits:
        return ("fp8" if bits == 8 and scheme.get("type") == "float" else by_bits[bits]), kv
    raise SpecError(
        "unknown quantisation",
        key="quantization_config",
        value=method or [str(key) for key in raw],
        fix="known: gptq, awq, fp8, bitsandbytes, compressed-tensors, modelopt, mxfp4",
    )


def read_config(path: Path) -> ModelSpec:
    """Read a ``config.json``, or the folder that holds it (with ``hf_quant_config.json``)."""
    file = path / "config.json" if path.is_dir() else path
    data = read_json(file)
    if not isinstance(data, dict):
        raise SpecError("must hold one JSON object", source=file)
    quant_file = file.parent / "hf_quant_config.json"
    hf_quant = read_json(quant_file) if quant_file.is_file() else None
    named = str(data.get("_name_or_path") or "").rstrip("/").rsplit("/", maxsplit=1)[-1]
    folder = file.resolve().parent.name
    try:
        return model_from_config(
            data, name=named or folder or "model", source=str(file), hf_quant=hf_quant
        )
    except SpecError as error:
        raise error.at(file) from None


@dataclass(frozen=True, slots=True)
class ModelPreset:
    """A bundled shape and the total its makers publish."""

    spec: ModelSpec
    published_parameters: int
    aliases: tuple[str, ...]


@cache
def presets() -> Mapping[str, ModelPreset]:
    """The bundled models by name."""
    path = PRESETS / "models.yaml"
    found = {}
    for name, raw in read_yaml(path).items():
        entry = cast(Mapping[str, Any], raw)
        try:
            spec = model_from_config(
                entry["config"], name=name, source=f"huggingface.co/{entry['id']}"
            )
        except SpecError as error:
            raise error.at(path, name) from None
        aliases = (str(entry["id"]), *(str(alias) for alias in entry.get("aliases", ())))
        found[name] = ModelPreset(spec, int(entry["parameters"]), aliases)
    return found


_SIZE_POINT = re.compile(r"(?<=\d)\.(?=\d+[bm](?![a-z0-9]))")
_SUFFIXES = ("instruct", "chat", "base", "hf", "it")


def fold(name: str) -> str:
    """Fold a model name: no organisation, case, separators, or ``-hf``/``-Instruct`` ending.

    Only the point of a size stays: ``opt-1.3b`` is not ``opt-13b``.
    """
    base = name.rstrip("/").rsplit("/", maxsplit=1)[-1].lower()
    folded = normalise(_SIZE_POINT.sub("point", base))
    shorter = True
    while shorter:
        shorter = False
        for suffix in _SUFFIXES:
            if folded.endswith(suffix) and len(folded) > len(suffix):
                folded, shorter = folded.removesuffix(suffix), True
    return folded


@cache
def _folded_names() -> Mapping[str, str]:
    names: dict[str, str] = {}
    for name, preset in presets().items():
        for alias in (name, *preset.aliases):
            owner = names.setdefault(fold(alias), name)
            if owner != name:
                raise SpecError(f"{alias!r} names both {owner} and {name}", source="models.yaml")
    return names


def preset(name: str) -> ModelSpec | None:
    """The bundled model called ``name``, or None."""
    found = _folded_names().get(fold(name))
    return presets()[found].spec if found is not None else None
