"""Training on a GPU against the same on a CPU: losses, gradients, packed documents, compiled layers, FP8, the stage."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from model.network.head import linear_cross_entropy, token_log_probs
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.compile import compile_layers
from model.training.optim import build_optimizer
from model.training.precision.float8 import Float8Projection, use_float8
from model.training.settings import OptimizerSettings
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, curve_path, obtain
from tasks.mechanism.store import Store
from tasks.train.pretrain import pretrain
from tests.helpers.formulas import attention_by_formula, plain_linear_cross_entropy
from tests.helpers.training import make_inputs, tiny_pretrain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
CONFIG = ModelConfig(
    vocab_size=512, hidden_size=128, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=64, intermediate_size=352,
    context_length=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_the_loss_in_chunks_is_torchs(dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.network.head.CHUNK_LOGITS", {"cuda": 100 * 512})
    hidden, weight = random(3, 130, 64).to(dtype).cuda(), random(512, 64, seed=1).to(dtype).cuda()
    labels = torch.randint(0, 512, (3, 130), generator=torch.Generator().manual_seed(2)).cuda()
    labels[1, 7:90] = -100
    found, expected = [], []
    for loss_of, into in ((linear_cross_entropy, found), (plain_linear_cross_entropy, expected)):
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        loss = loss_of(*leaves, labels, 1e-3)
        into.extend([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert max(relative_error(a, b) for a, b in zip(found, expected)) < bound
    probs = token_log_probs(hidden, weight, labels)
    logits = (hidden.float() @ weight.float().T).log_softmax(-1)
    wanted = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0.0)
    assert relative_error(probs, wanted) < bound


def gradients(model: Transformer, ids: Tensor, documents: Tensor | None, autocast: bool = True) -> list[Tensor]:
    """The loss and the gradient of every parameter."""
    model.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        hidden = model.hidden(ids[:, :-1], document_ids=documents)
        loss = linear_cross_entropy(hidden, model.head_weight, ids[:, 1:])
    loss.backward()
    return [loss.detach(), *(p.grad.detach().clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layers", ["plain", "compiled", "recomputed"])
def test_gradients_are_those_of_a_cpu_in_fp32(packed: bool, layers: str) -> None:
    model = Transformer(CONFIG)
    model.initialize(0, output_projections="depth")
    ids = torch.randint(0, 512, (4, 385), generator=torch.Generator().manual_seed(3))
    documents = (torch.rand(4, 384, generator=torch.Generator().manual_seed(4)) < 0.01).long().cumsum(1)
    given = documents if packed else None
    with attention_by_formula():
        expected = gradients(model, ids, given, autocast=False)
    moved = copy.deepcopy(model).cuda()
    moved.recompute_layers = layers == "recomputed"
    if layers == "compiled":
        compile_layers(moved, GPU)
    found = gradients(moved, ids.cuda(), given if given is None else given.cuda())
    assert found[0].item() == pytest.approx(expected[0].item(), rel=2e-3)
    assert max(relative_error(a, b) for a, b in zip(found[1:], expected[1:])) < 0.05


@pytest.mark.parametrize("kind", ["normuon", "muon", "adamw"])
def test_an_optimizer_steps_as_on_a_cpu(kind: Literal["normuon", "muon", "adamw"]) -> None:
    """On a GPU matrices of one shape are updated together."""
    settings = OptimizerSettings(kind=kind, weight_decay=0.1)
    model = Transformer(replace(CONFIG, num_layers=3))
    model.initialize(0, output_projections="depth")
    moved = copy.deepcopy(model).cuda()
    for each in (model, moved):
        optimizer = build_optimizer(each, settings, "fp32")
        for step in range(3):
            for number, parameter in enumerate(each.parameters()):
                parameter.grad = random(*parameter.shape, seed=100 * step + number).to(parameter.device)
            optimizer.step()
    for (name, found), expected in zip(moved.named_parameters(), model.parameters()):
        assert relative_error(found.detach(), expected.detach()) < 1e-3, name


def test_fp8_products_are_those_that_a_cpu_computes() -> None:
    weight = torch.nn.Linear(256, 512, bias=False).weight
    x, grad = random(70, 256, seed=1), random(70, 512, seed=2).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        layer = Float8Projection(torch.nn.Parameter(weight.detach().to(device, copy=True)))
        leaf = x.clone().to(device).requires_grad_()
        out = layer(leaf)
        out.backward(grad.to(device))
        results.append([out.detach(), leaf.grad, layer.weight.grad])
    assert max(relative_error(a, b) for a, b in zip(results[1], results[0])) < 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_compiled_layers_learn_as_plain_ones(precision: str) -> None:
    ids = ((torch.arange(8)[:, None] * 5 + torch.arange(129) ** 2) % 61).cuda()
    last = {}
    for layers in ("plain", "compiled"):
        model = Transformer(replace(CONFIG, vocab_size=64)).cuda()
        model.initialize(0)
        if precision == "fp8":
            use_float8(model)
        if layers == "compiled":
            compile_layers(model, GPU)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(40):
            losses.append(gradients(model, ids, None)[0].item())
            optimizer.step()
        assert losses[-1] < losses[0] - 1.5
        last[layers] = losses[-1]
    assert last["compiled"] == pytest.approx(last["plain"], abs=0.15)


def stage_curve(inputs: dict[str, Artifact], home: Path, **execution: Any) -> list[dict[str, float]]:
    cfg = tiny_pretrain(precision="fp32", optimizer={"kind": "adamw"}, loop={"evaluate_every": 6})
    place = Execution(home=home, workers=1, threads=1, **execution)
    outcome = obtain(pretrain, cfg, inputs, place)
    path = curve_path(Store(home), outcome.manifest.stage, outcome.manifest.key)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_stage_learns_as_on_a_cpu(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    expected = stage_curve(inputs, tmp_path / "cpu", device="cpu")
    found = stage_curve(inputs, tmp_path / "cuda", device="cuda")
    assert [point["step"] for point in found] == [point["step"] for point in expected]
    for one, other in zip(found, expected):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.01)
    assert found[-1]["val_loss"] == pytest.approx(expected[-1]["val_loss"], abs=0.01)
    assert all(1e6 < point["peak_memory_bytes"] < 1e9 for point in found)


def test_the_stage_compiles_its_layers(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    place = Execution(home=tmp_path, workers=1, threads=1, device="cuda", compile="layers")
    outcome = obtain(pretrain, tiny_pretrain(batches={"steps": 30}), inputs, place)
    path = curve_path(Store(tmp_path), outcome.manifest.stage, outcome.manifest.key)
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert points[-1]["loss"] < points[0]["loss"] - 0.5
    assert all(0 < point["mfu"] < 1 for point in points), "the H100 and the H200 are in the table of cards"
