"""DeepSpeed ZeRO-3: parameters, gradients and optimizer state in equal shares on all processes.

Used directly, not through Accelerate: on a CPU that gives DDP, or an engine of which every process believes to be the
only one (accelerate 1.15). ZeRO cuts matrices into flat pieces, which Muon cannot orthogonalise: AdamW only.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.network.shape import Precision
from model.training.objectives import Objective
from model.training.optim import build_optimizer
from model.training.parallel import Passes, Placement, check_processes, choose_device
from model.training.settings import OptimizerSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroProcesses(Passes):
    """Several processes under a DeepSpeed engine; see model.training.parallel.Parallel for what each call promises.

    Its checkpoints are whole and keyed by name like the others', so they load on any number of processes.
    """

    def __init__(
        self,
        objective: Objective,
        settings: OptimizerSettings,
        precision: Precision,
        placement: Placement,
    ) -> None:
        if settings.kind != "adamw":
            raise ValueError(
                f"Strategy 'deepspeed' cuts matrices into flat pieces, so optimizer '{settings.kind}' cannot run on "
                "it. Use optimizer 'adamw', or strategy 'fsdp2' or 'ddp'."
            )
        device = choose_device(placement.device)
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        try:
            import deepspeed
        except ImportError as error:
            raise ValueError(
                "Strategy 'deepspeed' needs DeepSpeed, which is not installed: pip install 'bessemer[deepspeed]'."
            ) from error
        if device.type == "cpu":
            # Otherwise it compiles an all-reduce for inference at its first start, and fails without a compiler.
            deepspeed.ops.__compatible_ops__ = {}
        # Takes over the group that place() has joined, if there is one.
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        check_processes(placement, self.world)
        self.device = device if device.type == "cpu" else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.objective = objective
        optimizer = build_optimizer(objective, settings, precision)
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        self._groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
        self._deepspeed = deepspeed
        self._engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=optimizer,
            config=_engine_config(precision, settings.max_grad_norm),
        )
        self._module = self._engine
        self.optimizer: torch.optim.Optimizer = self._engine.optimizer
        # The head is used by the loss, not by its own module, so ZeRO must be told who needs it.
        deepspeed.zero.register_external_parameter(objective, objective.transformer.head_weight)
        self._allocate_moments()

    def _averaging(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> float:
        """See Parallel."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def weights(self) -> dict[str, Tensor]:
        """See Parallel."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(p).cpu() for name, p in self.objective.named_parameters()}

    def state(self) -> dict[str, Any]:
        """See Parallel."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = self._adam_steps()
        moments = {  # each with a count of its own: AdamW counts in place
            name: {"step": torch.tensor(steps)} | {key: safe_get_full_optimizer_state(p, key).cpu() for key in _MOMENTS}
            for name, p in self.objective.named_parameters()
        }
        return {"model": self.weights(), "optimizer": {"state": moments, "param_groups": self._groups}}

    def load(self, state: dict[str, Any]) -> None:
        """See Parallel."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        moments = state["optimizer"].get("state", {})
        steps = 0.0
        for name, parameter in self.objective.named_parameters():
            value = state["model"][name].to(self.device)
            safe_set_full_fp32_param(parameter, value)  # the optimizer's copy; the model's follows only with a step
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self.rank == 0:
                    parameter.data.copy_(value)
            mine = moments.get(name)
            for key in _MOMENTS:
                value = mine[key] if mine else torch.zeros_like(state["model"][name])
                safe_set_full_optimizer_state(parameter, value.to(self.device), key)
            steps = float(mine["step"]) if mine else 0.0
        self._set_adam_steps(steps)

    def _allocate_moments(self) -> None:
        """AdamW makes its state at the first step, but a checkpoint may have to be saved or loaded before."""
        sharded = self._engine.optimizer
        for flat in sharded.fp32_partitioned_groups_flat:
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            sharded.optimizer.state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in _MOMENTS}

    def _adam_states(self) -> list[dict[str, Tensor]]:
        return list(self._engine.optimizer.optimizer.state.values())

    def _adam_steps(self) -> float:
        return float(self._adam_states()[0]["step"])

    def _set_adam_steps(self, steps: float) -> None:
        for state in self._adam_states():
            state["step"].fill_(steps)


def _engine_config(precision: Precision, max_grad_norm: float) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loop cuts batches itself
        "gradient_accumulation_steps": 1,  # the loop says which backward pass is a step's last
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": 3},  # parameters too, not only optimizer state (1) and gradients (2)
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own needs a compiler on a CPU
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 10**12,  # never: the loop reports
    }
