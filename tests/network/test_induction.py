"""The planted induction head: what it attends to before any training, and that all else stays as random as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.rope import Rotation, rotation
from model.network.transformer import Attention, Block, ModelConfig, Transformer

CONFIG = ModelConfig(
    vocab_size=500,
    hidden_size=192,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=96,
    context_length=256,
)
HALF = 100  # random tokens, which then come once more


def build(config: ModelConfig, *, seed: int = 0) -> Transformer:
    """A model that starts with an induction head."""
    model = Transformer(config)
    model.initialize(seed, attention_start="induction")
    return model


def attended(model: Transformer, ids: Tensor) -> list[Tensor]:
    """Shares of attention in the first two layers, each (batch, heads, seq, seq)."""
    turn = rotation(torch.arange(ids.shape[1])[None], CONFIG.head_dim, CONFIG.rope_theta, CONFIG.rope_scaling)
    x, branch, shares = model.model.embed_tokens(ids), None, []
    for layer in model.model.layers[:2]:
        assert isinstance(layer, Block)
        total = x if branch is None else x + branch
        shares.append(attention_shares(layer.self_attn, layer.input_layernorm(total), turn))
        x, branch = layer(x, branch, turn, None)
    return shares


def attention_shares(attention: Attention, normed: Tensor, turn: Rotation) -> Tensor:
    """softmax(q k / sqrt(head_dim)) by the plain formula."""
    q, k, _ = attention.heads(normed, turn)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.mT / CONFIG.head_dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    shares: Tensor = scores.masked_fill(future, -torch.inf).softmax(-1)
    return shares


@pytest.mark.parametrize("change", [{}, {"tied_embeddings": True}, {"qk_norm": False}, {"num_kv_heads": 4}], ids=str)
@torch.no_grad()
def test_looks_back_one_token_and_finds_what_followed_the_last_time(change: dict[str, Any]) -> None:
    config = replace(CONFIG, **change)
    model = build(config)
    once = torch.stack([torch.randperm(500, generator=torch.Generator().manual_seed(n))[:HALF] for n in range(4)])
    first, second = attended(model, torch.cat((once, once), dim=1))
    places = torch.arange(1, 2 * HALF)
    back = first[:, :, places]
    assert float((back[:, 0].argmax(-1) == places - 1).float().mean()) > 0.97
    if config.num_kv_heads == 2:  # the other head of the group
        assert float((back[:, 1].argmax(-1)[:, 1:] == places[1:] - 2).float().mean()) > 0.97
    again = torch.arange(HALF, 2 * HALF)
    assert float((second[:, 0, again].argmax(-1) == again - HALF + 1).float().mean()) > 0.9
    others = second[:, config.num_heads // config.num_kv_heads :, again].argmax(-1)
    assert float((others == again - HALF + 1).float().mean()) < 0.1


@torch.no_grad()
def test_what_followed_is_expected_again() -> None:
    ids = torch.randperm(500, generator=torch.Generator().manual_seed(0))[None, :HALF].repeat(1, 2)
    gain = build(CONFIG)(ids)[0, :-1].log_softmax(-1)[torch.arange(2 * HALF - 1), ids[0, 1:]]
    assert float(gain[HALF:].mean() - gain[:HALF].mean()) > 0.3, "nats"


def test_is_one_function_of_seed_and_name_whatever_the_depth() -> None:
    small, large = build(replace(CONFIG, num_layers=2)).state_dict(), build(CONFIG).state_dict()
    assert all(torch.equal(value, large[name]) for name, value in small.items())
    assert not torch.equal(build(CONFIG, seed=1).state_dict()["lm_head.weight"], large["lm_head.weight"])


def test_the_other_heads_and_layers_stay_random() -> None:
    usual = Transformer(CONFIG)
    usual.initialize(0)
    planted = build(CONFIG).state_dict()
    differing = {name for name, value in usual.state_dict().items() if not torch.equal(value, planted[name])}
    own = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qkvo"}
    assert differing == own | {"model.embed_tokens.weight", "lm_head.weight"}
    for name in (name for name in own if "o_proj" not in name):
        group = 2 * CONFIG.head_dim if ".0.self_attn.q" in name else CONFIG.head_dim
        assert torch.equal(usual.state_dict()[name][group:], planted[name][group:]), name


@pytest.mark.parametrize("change", [{"head_dim": 2}, {"head_dim": 16, "hidden_size": 8}, {"head_dim": 16}])
def test_small_shapes_have_room_for_what_fits(change: dict[str, Any]) -> None:
    model = build(replace(CONFIG, **change))
    with torch.no_grad():
        assert bool(model(torch.arange(20)[None]).isfinite().all())


def test_a_single_layer_has_no_place_for_it() -> None:
    alone, usual = build(replace(CONFIG, num_layers=1)), Transformer(replace(CONFIG, num_layers=1))
    usual.initialize(0)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in usual.state_dict().items())
