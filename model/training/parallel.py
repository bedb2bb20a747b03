"""Data parallelism behind seven calls: one process, DDP and FSDP2 here, ZeRO beside it, chosen in place.py.

The launchers and plugins fall back to one process, or to DDP, without a word; so what was asked for is compared with
what runs before anything is trained.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from model.network.attention import fastest_first
from model.network.shape import Precision
from model.training.objectives import Objective
from model.training.optim import build_optimizer
from model.training.settings import OptimizerSettings

Strategy = Literal["ddp", "fsdp2", "deepspeed"]
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Placement:
    """Where to train and how the processes share the model; never changes what is computed, but for rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = 1
    strategy: Strategy = "ddp"
    threads: int = 1
    micro_batch_tokens: int = 4096  # a CPU is slower with more: 1,942 tokens per CPU-s at 31M, 1,450 with 16,384


class Parallel(Protocol):
    """What the loop asks of the processes. All processes make the same calls in the same order."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    device: torch.device
    rank: int
    world: int

    def accumulate(self, batch: dict[str, Tensor], scale: float, last: bool) -> Tensor:
        """Gradient accumulation: add the gradient of `scale` * summed loss, return the sums; the `last` call of a step
        averages gradients over the processes."""

    def evaluate(self, batch: dict[str, Tensor]) -> Tensor:
        """The sums of a batch, in evaluation mode and without gradients."""

    def step(self) -> float:
        """Clip, update, clear; the gradient's norm before clipping."""

    def state(self) -> dict[str, Any]:
        """Whole weights and optimizer state on the CPU by parameter name; only the first process needs the result."""

    def weights(self) -> dict[str, Tensor]:
        """The whole weights alone, as in `state`."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state, whatever number of processes it was saved by."""


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to use, refusing a CUDA device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("execution.device is 'cuda' but torch sees no CUDA device; use 'auto' or 'cpu'.")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


def check_processes(placement: Placement, found: int) -> None:
    """Refuse to train on another number of processes than was asked for."""
    if found != placement.processes:
        raise ValueError(
            f"Training was asked for {placement.processes} processes but {found} are running. Launchers fall back to "
            "fewer without a word: check the launcher's settings, or set execution.processes to what there is."
        )


class Passes:
    """Forward and backward through the module that a strategy has wrapped: the same under every strategy."""

    _module: Any
    device: torch.device

    def accumulate(self, batch: dict[str, Tensor], scale: float, last: bool) -> Tensor:
        """See Parallel."""
        self._module.train()
        with self._averaging(last), fastest_first(self.device):
            loss, sums = self._module(batch)
            self._backward(loss * scale)
        found: Tensor = sums
        return found

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Tensor]) -> Tensor:
        """See Parallel."""
        self._module.eval()
        with fastest_first(self.device):
            found: Tensor = self._module(batch)[1]
        return found

    def _averaging(self, last: bool) -> AbstractContextManager[Any]:
        """Where a backward pass averages gradients over the processes if it is the `last` of a step."""
        raise NotImplementedError

    def _backward(self, loss: Tensor) -> None:
        raise NotImplementedError


class Accelerated(Passes):
    """One process, DDP or FSDP2, through Accelerate."""

    def __init__(
        self,
        objective: Objective,
        settings: OptimizerSettings,
        precision: Precision,
        placement: Placement,
    ) -> None:
        mixed_precision = "no" if precision == "fp32" else "bf16"
        on_cpu = choose_device(placement.device).type == "cpu"
        sharded = placement.strategy == "fsdp2" and placement.processes > 1
        plugin = _fsdp2_plugin(precision) if sharded else None
        # Accelerate keeps its settings for the life of a process, but each stage has its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision, fsdp_plugin=plugin)
        if plugin is not None and on_cpu:
            _insist_on_fsdp2(self.accelerator, plugin)
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.world = self.accelerator.num_processes
        check_processes(placement, self.world)
        optimizer = build_optimizer(objective, settings, precision)
        self._module, wrapped = self.accelerator.prepare(objective, optimizer)
        self.objective: Objective = self._module if sharded else objective
        self.optimizer: torch.optim.Optimizer = wrapped.optimizer
        self._max_grad_norm = settings.max_grad_norm
        _check_strategy(placement, self._module, self.objective)

    def _averaging(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.accelerator.no_sync(self._module)

    def _backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> float:
        gradients = [p.grad for p in self.objective.parameters() if p.grad is not None]
        norm = gradient_norm(gradients)
        if self._max_grad_norm and norm > self._max_grad_norm:
            for gradient in gradients:
                gradient.mul_(self._max_grad_norm / norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        # Asked before the first step, torch 2.13 makes an empty one to allocate the state and counts it: Adam's first
        # update would then be 0.73 of what it should be.
        fresh = not self.optimizer.state
        moments = {} if fresh else get_optimizer_state_dict(self.objective, self.optimizer, options=_WHOLE)
        return {"model": self.weights(), "optimizer": moments}

    def weights(self) -> dict[str, Tensor]:
        found = get_model_state_dict(self.objective, options=_WHOLE)
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def load(self, state: dict[str, Any]) -> None:
        # Every process reads the file; broadcasting from the first hangs in torch 2.13 where others pass {}.
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.objective, state["model"], options=whole)
        if state["optimizer"]:
            set_optimizer_state_dict(self.objective, self.optimizer, state["optimizer"], options=whole)
        else:
            self.optimizer.state.clear()


def gradient_norm(gradients: list[Tensor]) -> float:
    """The 2-norm over all gradients, whole or sharded.

    Norms by row first: a sum over all elements would depend on the number of threads.
    """
    whole: list[Tensor] = []
    sharded: list[Tensor] = []
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        # In fp64, since an fp32 sum over a large tensor is off by 1.5e-5.
        square = torch.linalg.vector_norm(local.float(), dim=-1).double().square().sum()
        (sharded if isinstance(gradient, DTensor) else whole).append(square)
    squares = torch.zeros((), dtype=torch.float64, device=gradients[0].device)
    for square in sharded:
        squares += square
    if sharded:
        dist.all_reduce(squares)
    for square in whole:
        squares += square
    return float(squares.sqrt())  # the one time that a GPU is waited for


def _fsdp2_plugin(precision: Precision) -> FullyShardedDataParallelPlugin:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,  # parameters are gathered again in the backward pass: memory before speed
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,  # every process has the same first weights, from the seed
    )
    if precision != "fp32":
        # Accelerate's own choice would also sum gradients in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return plugin


def _insist_on_fsdp2(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Accelerate 1.15 drops the FSDP plugin without a word on a CPU, where gloo runs FSDP2 well."""
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def _check_strategy(placement: Placement, module: torch.nn.Module, objective: Objective) -> None:
    if placement.processes == 1:
        return
    sharded = all(isinstance(parameter, DTensor) for parameter in objective.parameters())
    found = "fsdp2" if sharded else "ddp" if hasattr(module, "no_sync") else "none"
    if found != placement.strategy:
        raise ValueError(f"Training was asked to share the model by {placement.strategy} but runs with {found}.")
