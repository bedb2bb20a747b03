"""Our model shapes as Hugging Face configurations and back; what we cannot compute exactly is refused, not ignored.

Parameter names need no map: our modules are named as theirs, and a tied model has no `lm_head.weight` in either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from model.network.shape import ModelConfig, RopeKind, RopeScaling
from model.settings import reasons

# What each field must say, where present, for our arithmetic to be the model's.
_REQUIRED = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "use_sliding_window": (False, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
}
_ROPE_NAMES = {  # transformers' name -> RopeScaling's
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_ROPE_FIELDS = {  # what transformers expects of each type; it warns of any other
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
    "dynamic": ("factor",),  # it starts beyond max_position_embeddings
}


@dataclass(frozen=True)
class SpecialIds:
    """Token ids that a generator needs: what opens a text, what ends one (several), what pads."""

    bos: int
    eos: tuple[int, ...]
    pad: int


def to_hf_config(config: ModelConfig, ids: SpecialIds) -> dict[str, Any]:
    """The content of `config.json`: Qwen3 with QK-norm, Llama without."""
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",  # the master weights'; transformers 4 called it torch_dtype
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos[0] if len(ids.eos) == 1 else list(ids.eos),
        "pad_token_id": ids.pad,
        **_rope_fields(config),
    }
    if config.qk_norm:
        special = {"use_sliding_window": False, "sliding_window": None}
        return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **common, **special}
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"transformers' Llama needs hidden_size ({config.hidden_size}) to be a multiple of num_heads "
            f"({config.num_heads}); change one, or set qk_norm, which exports as Qwen3."
        )
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **common, "mlp_bias": False}


def from_hf_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The shape that a `config.json` of type llama or qwen3 describes (transformers 4 and 5 spellings).

    Raises ValueError for any feature that our model does not compute: biases, sliding windows, other activations.
    """
    try:
        return _shape(hf)
    except ValidationError as error:
        raise ValueError(f"config.json describes a model that cannot be: {reasons(error)}.") from error


def _shape(hf: Mapping[str, Any]) -> ModelConfig:
    family = hf.get("model_type")
    if family not in ("llama", "qwen3"):
        raise ValueError(f"config.json: model_type is {family!r}; this pipeline reads 'llama' and 'qwen3'.")
    for name, accepted in _REQUIRED.items():
        if hf.get(name, accepted[0]) not in accepted:
            raise ValueError(f"config.json: {name} is {hf[name]!r}, but this model only computes {accepted[0]!r}.")
    if "sliding_attention" in (hf.get("layer_types") or ()):
        raise ValueError("config.json: layer_types has 'sliding_attention'; this model only attends to the full past.")
    heads = _integer(hf, "num_attention_heads")
    default_head_dim = 128 if family == "qwen3" else _integer(hf, "hidden_size") // heads  # Qwen3Config's own default
    theta, scaling = _rope_from_hf(hf)
    return ModelConfig(
        vocab_size=_integer(hf, "vocab_size"),
        hidden_size=_integer(hf, "hidden_size"),
        num_layers=_integer(hf, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=int(hf.get("num_key_value_heads") or heads),  # null or absent: without groups
        head_dim=int(hf.get("head_dim") or default_head_dim),
        intermediate_size=_integer(hf, "intermediate_size"),
        context_length=_integer(hf, "max_position_embeddings"),
        rope_theta=theta,
        rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        qk_norm=family == "qwen3",
        tied_embeddings=bool(hf.get("tie_word_embeddings", False)),
        rope_scaling=scaling,
    )


def _integer(hf: Mapping[str, Any], name: str) -> int:
    value = hf.get(name)
    if not isinstance(value, int):
        raise ValueError(f"config.json: {name} must be an integer, found {value!r}.")
    return value


def _rope_fields(config: ModelConfig) -> dict[str, Any]:
    """Rotary positions as transformers 5 spells them, and as 4 and what was built on it do, which skip the former."""
    parameters = _rope_parameters(config)
    older = {} if config.rope_scaling.kind == "default" else {"rope_scaling": parameters}
    return {"rope_parameters": parameters, "rope_theta": config.rope_theta, **older}


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    found: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": config.rope_theta}
    for name in _ROPE_FIELDS[scaling.kind]:
        value = getattr(scaling, _ROPE_NAMES[name])
        if name != "attention_factor" or value:  # 0 is our name for the paper's formula, theirs is to leave it out
            found[name] = value
    return found


def _rope_from_hf(hf: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """(theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    found = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = float(found.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0)  # both families' default
    kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
    found.pop("type", None)
    if kind not in _ROPE_FIELDS:
        raise ValueError(f"config.json: rope_type is {kind!r}; this model computes {', '.join(_ROPE_FIELDS)}.")
    if found.get("partial_rotary_factor", 1.0) == 1.0:
        found.pop("partial_rotary_factor", None)
    if kind in ("llama3", "yarn"):
        found.setdefault("original_max_position_embeddings", hf["max_position_embeddings"])
    unknown = {name: value for name, value in found.items() if name not in _ROPE_FIELDS[kind] and value is not None}
    if unknown:
        raise ValueError(f"config.json: rope_parameters of type {kind!r} has {unknown}, which this model ignores.")
    values = {_ROPE_NAMES[name]: found[name] for name in _ROPE_FIELDS[kind] if found.get(name) is not None}
    if kind == "dynamic":
        values["original_context_length"] = _integer(hf, "max_position_embeddings")
    return theta, RopeScaling(kind=cast(RopeKind, kind), **values)
