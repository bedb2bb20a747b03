"""Configurations both ways, and logits equal to transformers' for every combination of what the model can be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from model.decoding.generate import TorchDecoder, generate
from model.network.hf import SpecialIds, from_hf_config, to_hf_config
from model.network.rope import RopeScaling, rope_frequencies
from model.network.transformer import ModelConfig, Transformer

IDS = SpecialIds(bos=1, eos=(1, 3), pad=4)
SCALINGS = {
    "default": RopeScaling(),
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling("llama3", factor=8.0, original_context_length=32),
    "yarn": RopeScaling("yarn", factor=4.0, original_context_length=32),
    "yarn_tuned": RopeScaling("yarn", 2.0, 32, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3),
    "dynamic": RopeScaling("dynamic", factor=4.0, original_context_length=128),
}
SMALL = ModelConfig(
    vocab_size=67,
    hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=12,
    intermediate_size=80,
    context_length=128,
)


def build(config: ModelConfig) -> Transformer:
    """A model with no weight at its neutral value."""
    model = Transformer(config)
    model.initialize(0, "depth")
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream))
    return model


def export(model: Transformer, folder: Path) -> Any:
    """The same weights under transformers' own class, from files."""
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config, IDS)))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    found, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_logits_equal_transformers(kv_heads: int, qk_norm: bool, tied: bool, scaling: str, tmp_path: Path) -> None:
    config = replace(
        SMALL, num_kv_heads=kv_heads, qk_norm=qk_norm, tied_embeddings=tied, rope_scaling=SCALINGS[scaling]
    )
    model = build(config)
    ids = torch.randint(67, (2, 90), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(model(ids), export(model, tmp_path)(ids).logits)


def test_head_dim_need_not_divide_the_width(tmp_path: Path) -> None:
    model = build(replace(SMALL, head_dim=20, rope_theta=5e5))
    ids = torch.arange(60)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), export(model, tmp_path)(ids).logits)


@pytest.mark.parametrize("length", [129, 300])
def test_dynamic_scaling_beyond_the_context_equals_transformers(length: int, tmp_path: Path) -> None:
    model = build(replace(SMALL, num_kv_heads=2, rope_scaling=SCALINGS["dynamic"]))
    ids = torch.randint(67, (2, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = model(ids)
        assert torch.equal(found, export(model, tmp_path)(ids).logits)
        model.config = replace(model.config, rope_scaling=RopeScaling())
        assert not torch.allclose(found, model(ids), atol=1e-3)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_greedy_tokens_equal_generate(kv_heads: int, qk_norm: bool, tied: bool, tmp_path: Path) -> None:
    model = build(replace(SMALL, num_kv_heads=kv_heads, qk_norm=qk_norm, tied_embeddings=tied))
    prompt = [10, 11, 12, 13, 14]  # without the padding id, which generate() would mask
    theirs = export(model, tmp_path)
    theirs.generation_config.eos_token_id = None  # so that all have as many tokens to agree on
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
    assert len(expected) == 40
    assert generate(TorchDecoder(model), prompt, set(), 40) == expected


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_config_survives_a_round_trip(scaling: str, qk_norm: bool) -> None:
    config = replace(SMALL, qk_norm=qk_norm, rope_scaling=SCALINGS[scaling], rope_theta=5e5, num_kv_heads=1)
    assert from_hf_config(to_hf_config(config, IDS)) == config


def test_config_that_transformers_rewrote_is_read(tmp_path: Path) -> None:
    model = build(replace(SMALL, rope_scaling=SCALINGS["llama3"]))
    export(model, tmp_path).save_pretrained(tmp_path / "again")
    assert from_hf_config(AutoConfig.from_pretrained(tmp_path / "again").to_dict()) == model.config


def test_config_of_transformers_4_is_read() -> None:
    hf = to_hf_config(replace(SMALL, qk_norm=False, rope_theta=5e5, rope_scaling=SCALINGS["linear"]), IDS)
    del hf["rope_parameters"], hf["head_dim"], hf["num_key_value_heads"]
    hf |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    found = from_hf_config(hf)
    assert (found.rope_theta, found.rope_scaling) == (5e5, SCALINGS["linear"])
    assert (found.head_dim, found.num_kv_heads) == (12, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "alpha": 8.0}}, "alpha"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"vocab_size": None}, "vocab_size must be an integer, found None"),
        ({"vocab_size": 0}, r"cannot be: vocab_size is 0: input should be greater than or equal to 1\.$"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
            r"cannot be: factor is 0\.5: input should be .*1\.$",
        ),
    ],
)
def test_what_we_cannot_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_hf_config({**to_hf_config(SMALL, IDS), **change})


def test_llama_with_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads"):
        to_hf_config(replace(SMALL, qk_norm=False, hidden_size=50), IDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "linear", "factor": 0.5}, r"factor\n +Input should be greater than or equal to 1 .*input_value=0\.5"),
        ({"kind": "yarn", "factor": 2.0}, "original_context_length"),
        ({"kind": "dynamic", "factor": 2.0}, "original_context_length"),
        ({"kind": "llama3", "factor": 2.0, "original_context_length": 8, "high_freq_factor": 1.0}, "high_freq_factor"),
    ],
)
def test_senseless_scalings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, rope_scaling=RopeScaling(**arguments))


def test_scaling_slows_rotation_but_never_speeds_it() -> None:
    plain = rope_frequencies(64, 10000.0, RopeScaling())
    for scaling in list(SCALINGS.values())[1:]:
        found = rope_frequencies(64, 10000.0, scaling)
        assert (found <= plain * 1.0001).all()
        assert (found >= plain / scaling.factor * 0.9999).all()
