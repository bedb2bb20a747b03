"""Who trains the model: this process alone, DDP, FSDP2 or ZeRO; above all of them, so that none imports another."""

import os

import torch
import torch.distributed as dist

from model.kernels.heap import keep_freed_memory
from model.network.shape import Precision
from model.training.objectives import Objective
from model.training.parallel import Accelerated, Parallel, Placement, Strategy, choose_device
from model.training.settings import OptimizerSettings
from model.training.zero import ZeroProcesses


def place(
    objective: Objective,
    settings: OptimizerSettings,
    precision: Precision,
    placement: Placement,
) -> Parallel:
    """Put the objective where it shall train, with its optimizer.

    Raises:
        ValueError: the number of processes, the device or the strategy that runs is not the one asked for.
    """
    torch.set_num_threads(placement.threads)
    device = choose_device(placement.device)
    if device.type == "cpu":
        keep_freed_memory()  # 12 to 20 % of a step were page faults
    else:
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    join_group(device, placement.strategy)
    if placement.strategy == "deepspeed" and placement.processes > 1:
        return ZeroProcesses(objective, settings, precision, placement)
    return Accelerated(objective, settings, precision, placement)


def join_group(device: torch.device, strategy: Strategy) -> None:
    """Meet the other processes of this machine in the file that their launcher names; else it is left to the strategy.

    Each strategy would begin with a TCPStore, in which the first process listens on every interface.
    """
    path = os.environ.get("BESSEMER_GROUP_FILE")
    if path is None or dist.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Sharded weights are gathered on the CPU too; that is what Accelerate chooses for them on a GPU.
    on_gpu = "cuda:nccl,cpu:gloo" if strategy == "fsdp2" else "nccl"
    backend = "gloo" if device.type == "cpu" else on_gpu
    store = dist.FileStore(path, world)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def check_gpus(processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs."""
    found = torch.cuda.device_count()
    if found < processes:
        raise ValueError(
            f"Training was asked for {processes} processes on this machine, each with a GPU of its own, but torch sees "
            f"{found} CUDA devices. Set execution.processes to {found}, or execution.device to 'cpu'."
        )
