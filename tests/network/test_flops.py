"""Forecasts against what torch counts: parameters, FLOPs and the bytes that a forward pass keeps."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import TrainingShape, memory_forecast
from model.kernels.dispatch import fusion
from model.kernels.jit import COMPILED
from model.network.attention import attention_kernel
from model.network.flops import flops_per_token, forward_flops_per_token, matmul_parameters, num_parameters
from model.network.head import linear_cross_entropy
from model.network.transformer import ModelConfig, Transformer
from model.training.optim import build_optimizer
from model.training.settings import OptimizerSettings
from tests.helpers.formulas import attention_by_formula

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=352,
    context_length=256,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("head_dim", [32, 48])
def test_parameters_are_those_of_the_model(tied: bool, qk_norm: bool, head_dim: int) -> None:
    config = replace(CONFIG, tied_embeddings=tied, qk_norm=qk_norm, head_dim=head_dim)
    assert num_parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_flops_are_those_that_torch_counts(kv_heads: int) -> None:
    config = replace(CONFIG, num_kv_heads=kv_heads)
    ids = torch.zeros(2, 64, dtype=torch.long)
    model = Transformer(config)
    counter = FlopCounterMode(display=False)
    with counter, attention_by_formula():
        logits = model(ids)
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == ids.numel() * forward_flops_per_token(config, 64)
    assert counter.get_total_flops() == ids.numel() * flops_per_token(config, 64)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(
    ("precision", "layers"), [("bf16", "fused"), ("bf16", "plain"), ("fp32", "plain"), ("bf16", "compiled")]
)
def test_activations_are_those_that_torch_saves(qk_norm: bool, precision: str, layers: str) -> None:
    if layers == "fused" and not COMPILED:
        pytest.skip("kernels need numba")
    config = replace(CONFIG, qk_norm=qk_norm)
    shape = TrainingShape(tokens=2048, seq_len=256, precision=precision, layers=layers)
    forecast = memory_forecast(config, shape)
    head = 4 * config.vocab_size * config.hidden_size
    copies = 2 * (matmul_parameters(config) - config.vocab_size * config.hidden_size) if precision == "bf16" else 0
    measured = saved_bytes(config, shape) - head - copies
    assert measured == pytest.approx(forecast.activations, rel=0.03)


def test_recomputed_layers_keep_their_inputs_only() -> None:
    shape = TrainingShape(tokens=2048, seq_len=256, recompute_layers=True)
    kept = memory_forecast(CONFIG, shape).activations
    at_work = memory_forecast(replace(CONFIG, num_layers=1), replace(shape, recompute_layers=False)).activations
    final_norm = 2048 * (6 * CONFIG.hidden_size + 4)  # in both
    at_once = saved_bytes(CONFIG, shape) - 4 * CONFIG.vocab_size * CONFIG.hidden_size  # before any layer is recomputed
    assert kept == pytest.approx(at_once + at_work - final_norm, rel=0.03)


def saved_bytes(config: ModelConfig, shape: TrainingShape) -> int:
    """Distinct memory that autograd holds after the forward pass, parameters left out."""
    model = Transformer(config)
    model.initialize(0)
    model.recompute_layers = shape.recompute_layers
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(shape.tokens // shape.seq_len, shape.seq_len, dtype=torch.long)
    with ExitStack() as stack:
        if shape.precision == "bf16":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if shape.layers != "fused":
            stack.enter_context(fusion("off"))
            stack.enter_context(attention_kernel("sdpa"))
        if shape.layers == "compiled":
            for layer in model.model.layers:
                layer.compile(backend="aot_eager_decomp_partition")  # keeps what the default keeps, writes no code
            model.hidden(ids).sum().backward()  # it sees what is kept, but not while it compiles
            model.zero_grad()
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        loss = linear_cross_entropy(model.hidden(ids), model.head_weight, ids)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", ["normuon", "muon", "adamw"])
def test_optimizer_state_is_that_of_the_optimizer(kind: str) -> None:
    model = Transformer(CONFIG)
    optimizer = build_optimizer(model, OptimizerSettings(kind=kind))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim)
    assert memory_forecast(CONFIG, TrainingShape(tokens=256, seq_len=256, optimizer=kind)).optimizer == held


def test_shards_divide_the_state_only() -> None:
    one = memory_forecast(CONFIG, TrainingShape(tokens=256, seq_len=256))
    four = memory_forecast(CONFIG, TrainingShape(tokens=256, seq_len=256, shards=4))
    assert four.weights == one.weights // 4
    assert four.activations == one.activations
    assert one.total == one.weights + one.gradients + one.optimizer + one.activations + one.workspace
