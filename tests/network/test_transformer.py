"""The decoder: documents, precision, recomputation, initialisation, and bits that do not depend on threads or runs."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from model.kernels.dispatch import fusion
from model.network.attention import attention_kernel
from model.network.head import linear_cross_entropy
from model.network.shape import RopeScaling
from model.network.transformer import ModelConfig, Transformer
from model.training.optim import build_optimizer
from model.training.settings import OptimizerSettings
from tests.helpers.formulas import attention_by_formula, plain_linear_cross_entropy

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=176,
    context_length=256,
)


def build(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    model.initialize(0, "depth")
    with torch.no_grad():
        model.head_weight.mul_(20)  # away from the near-zero start, so that errors show
    return model


def batch(rows: int = 3, length: int = 150) -> Tensor:
    return torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(1))


def step(model: Transformer, ids: Tensor, documents: Tensor | None = None) -> dict[str, Tensor]:
    """Loss and gradients by name."""
    model.zero_grad()
    hidden = model.hidden(ids[:, :-1], document_ids=documents)
    loss = linear_cross_entropy(hidden, model.head_weight, ids[:, 1:].contiguous())
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_fast_bf16_is_no_farther_from_fp32_than_autocast(qk_norm: bool, kv_heads: int, packed: bool) -> None:
    model = build(replace(CONFIG, qk_norm=qk_norm, num_kv_heads=kv_heads))
    ids = batch()
    documents = (torch.arange(149) // 40).expand(3, -1) if packed else None
    with attention_by_formula():
        exact = step(model, ids, documents)
    with torch.autocast("cpu", torch.bfloat16):
        fast = step(model, ids, documents)
        with fusion("off"), attention_kernel("sdpa"):
            usual = step(model, ids, documents)

    def error(found: dict[str, Tensor]) -> float:
        difference = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
        return math.sqrt(difference / sum(float(x.square().sum()) for x in exact.values()))

    assert abs(float(fast["loss"] - exact["loss"])) < 2e-3 * float(exact["loss"])
    assert error(fast) < 1.15 * error(usual)


def test_fused_losses_equal_whole_logits() -> None:
    model, ids = build(), batch()
    loss = linear_cross_entropy(model.hidden(ids[:, :-1]), model.head_weight, ids[:, 1:])
    logits = model(ids[:, :-1])
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    plain = plain_linear_cross_entropy(model.hidden(ids[:, :-1]), model.head_weight, ids[:, 1:])
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("autocast", [True, False])
def test_packed_documents_equal_separate_ones(autocast: bool) -> None:
    model, ids = build(), batch(rows=1)
    borders = [0, 40, 41, 130, 150]
    documents = torch.zeros(1, 150, dtype=torch.long)
    positions = torch.zeros(1, 150, dtype=torch.long)
    apart = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for number, (start, stop) in enumerate(pairwise(borders)):
            documents[:, start:stop], positions[:, start:stop] = number, torch.arange(stop - start)
            apart.append(model.hidden(ids[:, start:stop]))
        together = model.hidden(ids, position_ids=positions, document_ids=documents)
    tolerance = 0.05 if autocast else 2e-5
    torch.testing.assert_close(together, torch.cat(apart, dim=1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("autocast", [True, False])
def test_the_future_is_not_seen(autocast: bool) -> None:
    model, ids = build(), batch()
    changed = ids.clone()
    changed[:, 100:] = (changed[:, 100:] + 1) % 300
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(model.hidden(ids)[:, :100], model.hidden(changed)[:, :100])


@pytest.mark.parametrize("autocast", [True, False])
def test_recomputing_layers_changes_no_bit(autocast: bool) -> None:
    model, ids = build(), batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept = step(model, ids)
        model.recompute_layers = True
        recomputed = step(model, ids)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_threads_and_runs_change_no_bit(autocast: bool, packed: bool) -> None:
    """Three optimizer steps on a model whose matrices are large enough for torch to split them."""
    config = replace(CONFIG, vocab_size=1000, hidden_size=192, num_heads=6, num_kv_heads=6, head_dim=32)
    ids = batch(rows=8, length=130)
    documents = (torch.arange(129) // 50).expand(8, -1) if packed else None
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            model = build(config)
            optimizer = build_optimizer(model, OptimizerSettings())
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    step(model, ids, documents)
                optimizer.step()
            found.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    one, two, again = found
    assert all(torch.equal(one[name], again[name]) for name in one), "two runs differ"
    assert all(torch.equal(one[name], two[name]) for name in one), "1 and 2 threads differ"


@pytest.mark.parametrize("autocast", [True, False])
def test_compiles_as_one_graph(autocast: bool) -> None:
    """As on a GPU, where the plain layers are torch.compile's to fuse."""
    model, ids = build(), batch(length=20)
    documents = (torch.arange(20) // 7).expand(3, -1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for packed in (None, documents):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = compiled(ids, document_ids=packed)
            with fusion("off"), attention_kernel("sdpa"):
                torch.testing.assert_close(found, model(ids, document_ids=packed))


def test_initialisation_depends_on_seed_and_name_only() -> None:
    small, large = Transformer(CONFIG), Transformer(replace(CONFIG, num_layers=5))
    small.initialize(7)
    large.initialize(7)
    weights = large.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())
    large.initialize(8)
    assert not torch.equal(large.model.embed_tokens.weight, small.model.embed_tokens.weight)


def test_initial_scales() -> None:
    model = Transformer(replace(CONFIG, vocab_size=2000))
    model.initialize(0)
    layer = model.model.layers[0]
    assert not layer.self_attn.o_proj.weight.any()
    assert not layer.mlp.down_proj.weight.any()
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(0.8, rel=0.02)
    assert float(layer.mlp.up_proj.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    with torch.no_grad():
        loss = linear_cross_entropy(model.hidden(batch()), model.head_weight, batch())
    assert float(loss) == pytest.approx(math.log(2000), abs=0.01)
    tied = Transformer(replace(CONFIG, tied_embeddings=True))
    tied.initialize(0)
    assert float(tied.head_weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert "lm_head.weight" not in tied.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 15}, "even"),
        ({"num_layers": 0}, r"num_layers\n +Input should be greater than or equal to 1 .*input_value=0"),
        ({"rope_scaling": RopeScaling("dynamic", 2.0, 128)}, r"beyond context_length \(256\).* is 128"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
