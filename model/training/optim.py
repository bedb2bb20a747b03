"""Muon for the matrices and AdamW for the rest in one optimizer, and learning-rate schedules as functions of the step.

Muon (https://kellerjordan.github.io/posts/muon/) was worth 0.2 bits per byte at 1M parameters. Ours equals
torch.optim.Muon, but on sharded parameters gathers each matrix once instead of sharding every small product (190 ms
against 650 ms a step with two processes). NorMuon (https://arxiv.org/abs/2510.05491) gives each neuron of the update
the same size; its running average over steps brought nothing here (docs/LOG.md), so ours has no state beside Muon's.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

from model.network.shape import Precision
from model.training.settings import OptimizerSettings, Schedule

Polynomial = tuple[float, float, float]  # a x + b x³ + c x⁵
# Polar Express (arXiv:2505.16932): one after the other, the four quintics that bring all of 0.002 to 1 nearest to 1,
# for x / 1.01, since bf16 may leave a singular value a little above 1. Four do what five of Keller Jordan's do.
POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.3434, -24.2028, 17.5950), (4.0709, -2.9692, 0.5470), (3.6778, -2.6964, 0.5166), (2.7544, -2.0139, 0.4410),
)  # fmt: skip
# Steps on the Gram matrix of a long matrix before it is taken anew. With all at once bf16 lets singular values that
# should be 1 end at 2 to 15; with two its error is that of the usual form.
GRAM_STEPS = 2
MOST_TOGETHER = {"cpu": 1 << 22, "cuda": 1 << 26}  # numbers in the matrices that are updated together


def build_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    precision: Precision = "bf16",
    polynomials: tuple[Polynomial, ...] = POLAR_EXPRESS,
) -> torch.optim.Optimizer:
    """An optimizer over all parameters of `model`, in named groups: matrix, embedding, head, vector.

    Muon orthogonalises in bf16 unless `precision` is "fp32".
    """
    members: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "head": [], "vector": []}
    tied = not any("lm_head" in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name, parameter, tied)].append(parameter)
    rates = {
        "matrix": settings.learning_rate if settings.kind == "adamw" else settings.matrix_learning_rate,
        "embedding": settings.embedding_learning_rate,
        "head": settings.head_learning_rate,
        "vector": settings.learning_rate,
    }
    betas = {"embedding": settings.embedding_betas, "head": settings.head_betas}
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": parameters,
            "lr": rates[name],
            "initial_lr": rates[name],
            "weight_decay": settings.weight_decay if name == "matrix" else 0.0,
            "betas": betas.get(name, settings.betas),
        }
        for name, parameters in members.items()
        if parameters
    ]
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, eps=settings.epsilon, fused=True)
    kind = NorMuon if settings.kind == "normuon" else Muon
    return kind(
        groups,
        momentum=settings.momentum,
        polynomials=polynomials,
        # In bf16 two processes are up to 4e-5 nats from one, in fp32 1e-6; INT8 is too coarse (docs/LOG.md).
        ns_dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
        eps=settings.epsilon,
    )


def _group_of(name: str, parameter: Tensor, tied: bool) -> str:
    if "embed_tokens" in name:
        # Tied it is the head too, and the rate must be low: 0.01 was worse than 0.003 by 0.015 bits per byte.
        return "head" if tied else "embedding"
    if "lm_head" in name:
        return "head"
    return "matrix" if parameter.ndim == 2 else "vector"


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the group named `matrix`; AdamW for all other groups."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        polynomials: tuple[Polynomial, ...] = POLAR_EXPRESS,
        ns_dtype: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
    ) -> None:
        defaults = {
            "lr": 0.0,
            "weight_decay": 0.0,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(groups, defaults)
        # Not in the groups: a checkpoint must not bring its own.
        self._polynomials, self._ns_dtype = polynomials, ns_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["name"] == "matrix":
                for alike in _alike(parameters):
                    self._step_matrices(alike, group)
            elif parameters:
                self._step_adamw(parameters, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        rows, columns = parameters[0].shape
        # An orthogonal tall matrix moves its outputs less: the original's sqrt(rows / columns).
        lr = group["lr"] * math.sqrt(max(1.0, rows / columns))
        if group["weight_decay"]:
            # Decoupled, and by the plain rate, as in torch.optim.Muon.
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, self._directions(updates), alpha=-lr)

    def _directions(self, updates: tuple[Tensor, ...]) -> list[Tensor]:
        # Of a sharded matrix one gather; every rank orthogonalises the same whole, and keeps its part.
        whole = torch.stack([u.full_tensor() if isinstance(u, DTensor) else u for u in updates])
        return [_sharded_as(update, found) for update, found in zip(updates, self._direction(whole))]

    def _direction(self, update: Tensor) -> Tensor:
        return orthogonalize(update, self._polynomials, self._ns_dtype)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _alike(matrices: list[Tensor]) -> list[list[Tensor]]:
    """What is updated together: matrices of one shape, as many as are not too large.

    On an H200 126 matrices of 1,152 one by one took 105 ms of a step of 2.5 s, three times what their FLOPs need; on a
    CPU the calls for each of 28 small ones were 2 % of a step at 4M parameters.
    """
    found: dict[torch.Size, list[list[Tensor]]] = {}
    for matrix in matrices:
        runs = found.setdefault(matrix.shape, [[]])
        if runs[-1] and (len(runs[-1]) + 1) * matrix.numel() > MOST_TOGETHER[matrix.device.type]:
            runs.append([])
        runs[-1].append(matrix)
    return [run for runs in found.values() for run in runs]


def _sharded_as(sharded: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of `whole`, if the other tensor is sharded."""
    if not isinstance(sharded, DTensor):
        return whole
    mesh = sharded.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim)
    return replicated.redistribute(placements=sharded.placements)


class NorMuon(Muon):
    """Muon whose update moves each neuron equally far."""

    def _direction(self, update: Tensor) -> Tensor:
        return equalize_neurons(super()._direction(update).float())


def equalize_neurons(matrix: Tensor) -> Tensor:
    """Rows of a tall matrix, columns of a wide one, scaled to equal norms; the whole to that of an orthogonal matrix.

    matrix: (..., rows, columns). Orthogonalising leaves singular values between 0.7 and 1.3, hence some neurons with
    larger updates than others. Both scales together are NorMuon's (arXiv:2510.05491) with a second moment that
    remembers the present step alone.
    """
    rows, columns = matrix.shape[-2:]
    # Sums down columns depend on the number of threads, so columns lie down first.
    neurons = matrix if rows >= columns else matrix.mT.contiguous()
    norms = torch.linalg.vector_norm(neurons, dim=-1).clamp(min=1e-7)
    scales = math.sqrt(min(rows, columns) / max(rows, columns)) / norms
    equal: Tensor = matrix * (scales[..., None] if rows >= columns else scales[..., None, :])
    return equal


def orthogonalize(
    matrix: Tensor, polynomials: tuple[Polynomial, ...] = POLAR_EXPRESS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """About U Vᵀ of `matrix` = U S Vᵀ by Newton-Schulz steps; singular values end between 0.7 and 1.3.

    matrix: (rows, columns), or a batch of them. In bf16 an input that differs in its last fp32 bit gives the same
    result or, where one element rounds the other way, one that is 1 % away; in fp32 the difference stays at 1e-6.
    """
    # Norms by row first: a sum over all elements would depend on the number of threads.
    norm = torch.linalg.vector_norm(torch.linalg.vector_norm(matrix.float(), dim=-1), dim=-1)[..., None, None]
    x: Tensor = (matrix / norm.clamp(min=1e-7)).to(dtype)  # torch.optim.Muon's eps
    # m x n, m the shorter: two at once are 4 m²n + 10 m³ FLOPs, one by one 8 m²n + 4 m³: less from n = 1.5 m on.
    together = GRAM_STEPS if max(x.shape[-2:]) >= 2 * min(x.shape[-2:]) else 1
    for start in range(0, len(polynomials), together):
        x = _newton_schulz(x, polynomials[start : start + together])
    return x


def _newton_schulz(x: Tensor, polynomials: tuple[Polynomial, ...]) -> Tensor:
    """One after the other x <- (a + b G + c G²) x with G = x xᵀ (of a tall matrix xᵀ x, from the other side).

    Several go by G alone, which each maps to (a + b G + c G²)² G, and multiply x by all factors at the end: of a matrix
    2.75 times as wide as high two pairs then take four fifths of the FLOPs of four. All of this commutes.
    """
    (a, b, c), *others = polynomials
    tall = x.shape[-2] > x.shape[-1]
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    gram = x.mT @ x if tall else x @ x.mT
    update = add_product(gram, gram, gram, beta=b, alpha=c)
    if not others:
        return add_product(x, x, update, beta=a) if tall else add_product(x, update, x, beta=a)
    factor = update.clone()
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    for next_a, b, c in others:
        once = add_product(gram, gram, update, beta=a)
        gram = add_product(once, once, update, beta=a)
        update = add_product(gram, gram, gram, beta=b, alpha=c)
        factor = add_product(factor, factor, update, beta=next_a)
        a = next_a
    return x @ factor if tall else factor @ x


def learning_rate_factor(
    schedule: Schedule,
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 0.5,
    final_factor: float = 0.0,
) -> float:
    """What to multiply the peak learning rate with at `step` (from 0): a pure function, so resuming needs no state.

    All rise linearly over `warmup_steps`. Then `wsd` stays at 1 until the last `decay_fraction` of all steps and falls
    linearly to `final_factor`; `cosine` and `linear` fall from the end of the warm-up on.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps  # the first step learns too
    start = max(warmup_steps, round(total_steps * (1 - decay_fraction))) if schedule == "wsd" else warmup_steps
    progress = min(1.0, max(0.0, (step - start) / max(1, total_steps - start)))
    shape = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return final_factor + (1 - final_factor) * shape
