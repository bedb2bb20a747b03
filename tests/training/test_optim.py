"""Muon against torch.optim.Muon and an exact SVD, AdamW against torch.optim.AdamW, schedules by their shape."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from model.network.transformer import ModelConfig, Transformer
from model.training.optim import (
    POLAR_EXPRESS,
    Muon,
    Polynomial,
    build_optimizer,
    equalize_neurons,
    learning_rate_factor,
    orthogonalize,
    set_learning_rates,
)
from model.training.settings import OptimizerSettings

KELLER = ((3.4445, -4.7750, 2.0315),)  # of https://kellerjordan.github.io/posts/muon/ and torch.optim.Muon

SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=80,
    context_length=16,
)


def model(tied: bool = False) -> Transformer:
    found = Transformer(SHAPE.__class__(**{**SHAPE.__dict__, "tied_embeddings": tied}))
    found.initialize(0, "depth")
    return found


def randomise_gradients(module: nn.Module, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=stream)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch_muon_and_adamw(weight_decay: float) -> None:
    ours, theirs = model(), model()
    optimizer = build_optimizer(ours, OptimizerSettings(
        kind="muon", weight_decay=weight_decay, epsilon=1e-8), polynomials=KELLER * 5)  # fmt: skip
    named = dict(theirs.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n and "head" not in n]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=weight_decay)
    rates = {"model.embed_tokens.weight": 0.1, "lm_head.weight": 0.008}
    betas = {"model.embed_tokens.weight": (0.8, 0.995), "lm_head.weight": (0.8, 0.96)}
    rest = [
        {"params": [p], "lr": rates.get(n, 0.003), "betas": betas.get(n, (0.9, 0.95))}
        for n, p in named.items()
        if not any(p is m for m in matrices)
    ]
    adamw = torch.optim.AdamW(rest, eps=1e-8, weight_decay=0.0)
    for step in range(4):
        for module, steps in ((ours, (optimizer,)), (theirs, (muon, adamw))):
            randomise_gradients(module, step)
            for each in steps:
                each.step()
    for (name, found), wanted in zip(ours.named_parameters(), theirs.parameters()):
        # bf16 Newton-Schulz from a norm that is summed in another order: a few units in the last place.
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_a_batch_of_matrices_is_treated_as_each(shape: tuple[int, int]) -> None:
    several = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = equalize_neurons(orthogonalize(several, dtype=torch.float32))
    expected = torch.stack([equalize_neurons(orthogonalize(one, dtype=torch.float32)) for one in several])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_normuon_moves_neurons_equally_and_as_far_as_an_orthogonal_matrix(shape: tuple[int, int]) -> None:
    update = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dtype=torch.float32)
    equal = equalize_neurons(update)
    norms = equal.norm(dim=1 if shape[0] >= shape[1] else 0)
    torch.testing.assert_close(norms, torch.full_like(norms, (min(shape) / max(shape)) ** 0.5))
    torch.testing.assert_close(equal.norm(), torch.tensor(float(min(shape)) ** 0.5))
    assert float(torch.nn.functional.cosine_similarity(equal.flatten(), update.flatten(), dim=0)) > 0.97


@pytest.mark.parametrize("shape", [(48, 1000), (1000, 48), (192, 704)])
def test_normuon_changes_no_bit_with_the_number_of_threads(shape: tuple[int, int]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        found = [(torch.set_num_threads(count), equalize_neurons(update))[1] for count in (1, 2, 4)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_normuon_leaves_a_matrix_without_gradient_where_it_is() -> None:
    """As in the first step, when output projections are zero."""
    assert not equalize_neurons(torch.zeros(8, 4)).any()


def test_newton_schulz_in_fp32_passes_rounding_on_as_it_is() -> None:
    """Why two processes with fp32 give the curve of one under Muon too: bf16 makes 1 % of one element's rounding."""
    matrix = torch.randn((32, 64), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((32, 64), generator=torch.Generator().manual_seed(1))
    whole, nudged = (orthogonalize(m, dtype=torch.float32) for m in (matrix, matrix * (1 + 1e-6 * noise)))
    assert float((nudged - whole).norm() / whole.norm()) < 1e-5
    torch.testing.assert_close(orthogonalize(matrix).float(), whole, atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(64, 176), (176, 64), (64, 64), (3, 64, 176), (3, 176, 64)])
@pytest.mark.parametrize("decay", [0.0, -4.0])
@pytest.mark.parametrize("polynomials", [KELLER, KELLER * 5, POLAR_EXPRESS[:2], POLAR_EXPRESS[:3], POLAR_EXPRESS])
def test_steps_on_the_gram_matrix_are_those_on_the_matrix(
    shape: tuple[int, ...], decay: float, polynomials: tuple[Polynomial, ...]
) -> None:
    """Against the formula of the Muon post in double; bf16 is less than twice as far off as that formula is in bf16."""
    stream = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=stream, dtype=torch.float64)
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left * (singular * torch.logspace(0, decay, singular.shape[-1]))[..., None, :] @ right
    exact = plain_newton_schulz(matrix, polynomials, torch.float64)
    # With 1e-4 of the largest, a singular value loses four of its digits where G squares it.
    torch.testing.assert_close(orthogonalize(matrix, polynomials, torch.float64), exact, atol=1e-6, rtol=0)
    in_fp32 = orthogonalize(matrix.float(), polynomials, torch.float32).double()
    torch.testing.assert_close(in_fp32, exact, atol=1e-3, rtol=0)
    error, usual = (float((found.double() - exact).norm() / exact.norm()) for found in
                    (orthogonalize(matrix.float(), polynomials),
                     plain_newton_schulz(matrix.float(), polynomials)))  # fmt: skip
    assert error < 2 * usual


def plain_newton_schulz(
    matrix: torch.Tensor, polynomials: tuple[Polynomial, ...], dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """As https://kellerjordan.github.io/posts/muon/ has it, for matrices of any orientation."""
    x = (matrix / matrix.norm(dim=(-2, -1), keepdim=True)).to(dtype)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_the_polynomials_are_the_best_of_their_degree() -> None:
    """Theorem 3.1 of Polar Express: each is the minimax quintic on what the one before leaves of [0.002, 1]."""
    low, high = 0.002, 1.0
    for a, b, c in POLAR_EXPRESS:
        expected = minimax_quintic(low, high)
        for found, exact, power in zip((a, b, c), expected, (1, 3, 5)):
            assert found == pytest.approx(exact / 1.01**power, abs=2e-4)
        low = expected[0] * low + expected[1] * low**3 + expected[2] * low**5
        high = 2 - low
    assert (low, high) == pytest.approx((0.68, 1.32), abs=0.01)


def minimax_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The a x + b x³ + c x⁵ whose largest distance to 1 on [low, high] is least, by Remez' exchange."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    for _ in range(100):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1, -1, 1, -1], dtype=torch.float64)
        system = torch.stack((points, points**3, points**5, signs), dim=1)
        a, b, c, _ = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)  # of the derivative, a quadratic in x²
        inner = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
    return a, b, c


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16)])
def test_orthogonalize_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix).float()
    singular = torch.linalg.svdvals(found)
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.35
    cosine = (found * (left @ right)).sum() / (found.norm() * (left @ right).norm())
    assert float(cosine) > 0.97


def test_a_zero_gradient_does_no_harm() -> None:
    assert not orthogonalize(torch.zeros(8, 4)).any()


def test_groups_have_their_own_rates() -> None:
    settings = OptimizerSettings()
    groups = {group["name"]: group for group in build_optimizer(model(), settings).param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "matrix": 0.02,
        "embedding": 0.1,
        "head": 0.008,
        "vector": 0.003,
    }
    assert len(groups["matrix"]["params"]) == 7 * SHAPE.num_layers
    tied = {group["name"] for group in build_optimizer(model(tied=True), settings).param_groups}
    assert tied == {"matrix", "head", "vector"}


def test_every_parameter_is_optimised_once() -> None:
    for kind in ("muon", "adamw"):
        net = model()
        groups = build_optimizer(net, OptimizerSettings(kind=kind)).param_groups
        found = [id(p) for group in groups for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in net.parameters())


def test_learning_rates_follow_the_factor() -> None:
    optimizer = build_optimizer(model(), OptimizerSettings())
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.005


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_is_saved_and_restored_exactly(kind: str) -> None:
    straight, resumed = model(), model()
    optimizers = [build_optimizer(net, OptimizerSettings(kind=kind)) for net in (straight, resumed)]
    for step in range(3):
        for net, optimizer in zip((straight, resumed), optimizers):
            randomise_gradients(net, step)
            optimizer.step()
    weights, state = copy.deepcopy(resumed.state_dict()), copy.deepcopy(optimizers[1].state_dict())
    resumed = model()
    resumed.load_state_dict(weights)
    optimizers[1] = build_optimizer(resumed, OptimizerSettings(kind=kind))
    optimizers[1].load_state_dict(state)
    for net, optimizer in zip((straight, resumed), optimizers):
        randomise_gradients(net, 9)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters()))


@pytest.mark.parametrize("shape", [(500, 300), (300, 500), (256, 704), (1408, 512)])
def test_threads_do_not_change_a_step(shape: tuple[int, int]) -> None:
    nets = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            net = nn.Linear(*reversed(shape), bias=False)
            with torch.no_grad():
                net.weight.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
            randomise_gradients(net, 1)
            Muon([{"name": "matrix", "params": list(net.parameters()), "lr": 0.02}]).step()
            nets.append(net.weight.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*nets)


def test_schedules_at_their_corners() -> None:
    wsd = [learning_rate_factor("wsd", step, 100, 10, 0.4) for step in range(101)]
    assert wsd[0] == 0.1
    assert wsd[9:61] == [1.0] * 52
    assert wsd[80] == pytest.approx(0.5)
    assert wsd[100] == 0.0
    cosine = [learning_rate_factor("cosine", step, 110, 10, final_factor=0.1) for step in (9, 10, 60, 110)]
    assert cosine == pytest.approx([1.0, 1.0, 0.55, 0.1])
    assert learning_rate_factor("linear", 60, 110, 10) == pytest.approx(0.5)


@given(
    st.sampled_from(["wsd", "cosine", "linear"]),
    st.integers(1, 400),
    st.integers(0, 50),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_schedules_rise_then_fall_within_bounds(schedule, total, warmup, decay, final) -> None:
    factors = [learning_rate_factor(schedule, step, total, warmup, decay, final) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    falling = factors[warmup:]
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert all(a <= b for a, b in pairwise(factors[:warmup]))


def sharded_steps(rank: int, world: int, folder: str) -> None:
    """What each process of the next test runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    optimizer = build_optimizer(net, OptimizerSettings())
    for step in range(3):
        stream = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            whole = torch.randn(parameter.shape, generator=stream)
            parameter.grad = torch.distributed.tensor.distribute_tensor(
                whole, parameter.device_mesh, parameter.placements
            )
        optimizer.step()
    weights = {name: parameter.full_tensor() for name, parameter in net.named_parameters()}
    if rank == 0:
        torch.save(weights, Path(folder) / "weights.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_steps_equal_whole_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sharded_steps, (2, str(tmp_path)), nprocs=2)
    sharded = torch.load(tmp_path / "weights.pt")
    net = model()
    optimizer = build_optimizer(net, OptimizerSettings())
    for step in range(3):
        randomise_gradients(net, step)
        optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.detach(), atol=1e-6, rtol=0)
