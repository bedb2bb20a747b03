"""Start a training job's processes through Ray Train, on a Ray cluster that is there already.

This module is the process that torchrun is elsewhere: the driver of a Ray job. When it ends, however it ends, Ray ends
the workers. They read and write the home folder, so all machines of the cluster must see it under one path.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.lifeline import die_with_parent
from tasks.mechanism.launch.processes import LaunchSpec, child_settings, run_child


@dataclass(frozen=True)
class Machine:
    """What one machine of the cluster has, busy or not."""

    cpus: float
    gpus: float


def workers_with_room(machines: list[Machine], threads: int, gpu: bool) -> int:
    """How many training processes the machines hold, each with `threads` cores and, if `gpu`, a GPU."""
    by_cores = [int(machine.cpus // threads) for machine in machines]  # by machine: no worker has cores of two
    return sum(min(cores, int(m.gpus)) for cores, m in zip(by_cores, machines)) if gpu else sum(by_cores)


def check_room(execution: Execution, machines: list[Machine]) -> bool:
    """Whether the workers shall have GPUs.

    Raises:
        ValueError: the cluster is too small; it would keep the job waiting for ever.
    """
    gpus = sum(int(m.gpus) for m in machines)
    gpu = execution.device == "cuda" or (execution.device == "auto" and gpus > 0)
    room = workers_with_room(machines, execution.threads, gpu)
    if room < execution.processes:
        each = f"{execution.threads} cores{' and a GPU' if gpu else ''}"
        found = f"{sum(m.cpus for m in machines):g} cores and {gpus} GPUs on {len(machines)} machines"
        raise ValueError(
            f"Training was asked for {execution.processes} processes of {each} each, but the Ray cluster at "
            f"{execution.engine_address} has room for {room}: {found}. "
            "Set execution.processes or execution.threads to what there is, or add machines."
        )
    return gpu


def work(arguments: dict[str, str]) -> None:
    """The life of one worker."""
    run_child(Path(arguments["spec"]))


def join(execution: Execution) -> list[Machine]:
    """Become a driver of the cluster; its machines.

    Raises:
        ValueError: no cluster lets us join it at that address.
    """
    import ray  # an extra, bessemer[ray]

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry, unless the user asks for it
    try:
        ray.init(address=execution.engine_address, runtime_env={"env_vars": child_settings(execution)})
    except ConnectionError as error:
        raise ValueError(
            f"launcher is 'ray', but no Ray cluster lets us join it at engine_address {execution.engine_address}: "
            f"{error.__cause__ or error} Start one with `ray start --head`, or correct the address."
        ) from error
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in resources]


def fit(spec_path: Path) -> None:
    """Run the job on the cluster, and return when all workers have ended well."""
    spec = LaunchSpec.model_validate_json(spec_path.read_bytes())
    execution = spec.execution
    try:
        gpu = check_room(execution, join(execution))
    except ValueError as error:
        spec.child_run().send("refused", str(error))  # as a child would: it ends in a paragraph
        raise
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": float(execution.threads)} | ({"GPU": 1.0} if gpu else {})
    TorchTrainer(
        work,
        train_loop_config={"spec": str(spec_path)},
        scaling_config=ScalingConfig(num_workers=execution.processes, use_gpu=gpu, resources_per_worker=resources),
        # Ray's default is ~/ray_results, which no run's end and no gc empties.
        run_config=RunConfig(storage_path=str(spec.scratch / "ray")),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    ).fit()


if __name__ == "__main__":
    die_with_parent()
    fit(Path(sys.argv[1]))
