"""A training job where it belongs: in place for one process, else as child processes under a distributed launcher.

The children import neither Prefect nor MLflow; they report by a file that their parent reads, and die with it. On one
machine they meet through files and speak over the loopback interface; what they say is neither encrypted nor checked.
`BESSEMER_LAUNCHER` replaces torchrun's command line, e.g. by `srun ... torchrun ...` (deployments/accelerate).
"""

import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.lifeline import die_with_parent
from tasks.mechanism.observe import EVENTS_FILE, ChildRun, EventReader, Relay, TrainingRun
from tasks.mechanism.stage import StageConfig
from tasks.mechanism.store import Artifact, write_atomically

POLL_SECONDS = 0.2  # of reports; a step takes longer
STOP_SECONDS = 10.0  # between asking the children to stop and killing them
LOG_TAIL_LINES = 25
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"  # the interface's name


Job = Callable[[TrainingRun, Any, Mapping[str, Path]], None]
"""Called as job(run, config, {input name: folder}) in every process; a module-level function."""


class LaunchSpec(BaseModel):
    """What the children are told, at `scratch/launch.json`."""

    module: str
    function: str
    config: dict[str, Any]
    inputs: dict[str, Path]
    out: Path
    scratch: Path
    execution: Execution

    def child_run(self) -> ChildRun:
        """The run that a child is given."""
        return ChildRun(self.out, self.scratch, self.execution)


def launch(run: TrainingRun, job: Job, cfg: StageConfig, inputs: Mapping[str, Artifact]) -> None:
    """Run `job` on as many processes as the execution asks for, and return when all have ended well.

    Raises:
        ValueError: the job refused its input, or what runs is not what was asked for.
        RuntimeError: a process died; the end of its log is in the message.
    """
    # A launcher of one's own, or Ray, starts the children in other folders.
    paths = {name: artifact.path.absolute() for name, artifact in inputs.items()}
    _take_over_curve(run)
    if run.execution.processes == 1 and run.execution.launcher == "torchrun":
        job(run, cfg, paths)
        return
    scratch = run.scratch.absolute()
    spec = LaunchSpec(
        module=job.__module__,
        function=job.__qualname__,
        config=cfg.model_dump(mode="json"),
        inputs=paths,
        out=run.out.absolute(),
        scratch=scratch,
        execution=run.execution,
    )
    spec_path = scratch / "launch.json"
    write_atomically(spec_path, spec.model_dump_json().encode())
    for path in (_agent_file(scratch), _group_file(scratch)):
        path.unlink(missing_ok=True)  # a killed run's: whoever reads it would wait for processes that are gone
    with (scratch / "launch.log").open("wb") as log:
        children = subprocess.Popen(
            launch_command(run.execution, spec_path),
            # Not our stdout: a killed run whose orphan still held it was shown as running 42 s later.
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **child_settings(run.execution), **_meeting_place(run.execution, scratch)},
            start_new_session=True,  # a process group of its own, for stop_group
            preexec_fn=die_with_parent,
        )
        try:
            _relay(run, scratch, children)
        finally:
            stop_group(children)


def _take_over_curve(run: TrainingRun) -> None:
    """Pass on what the children of a killed parent still reported: their checkpoint may be ahead of its curve.

    Each file of events begins with a rewind, so passing on a point twice leaves it there once.
    """
    path = run.scratch / EVENTS_FILE
    for event in EventReader(path).new():
        if event["event"] in ("log", "rewind"):
            getattr(run, event["event"])(*event["values"])
    path.unlink(missing_ok=True)


def launch_command(execution: Execution, spec_path: Path) -> list[str]:
    """The command line that starts the processes.

    Raises:
        ValueError: two launchers are asked for.
    """
    custom = os.environ.get("BESSEMER_LAUNCHER", "")
    if execution.launcher == "ray":
        if custom:
            raise ValueError(
                f"execution.launcher is 'ray', but BESSEMER_LAUNCHER is {custom!r}. Unset the variable to train on the "
                "Ray cluster, or use launcher 'torchrun'."
            )
        return [sys.executable, "-m", "tasks.mechanism.launch.ray_cluster", str(spec_path)]
    launcher = shlex.split(custom) or _torchrun(execution.processes, _agent_file(spec_path.parent))
    return [*launcher, "-m", "tasks.mechanism.launch.processes", str(spec_path)]


def _torchrun(processes: int, agent_file: Path) -> list[str]:
    """torchrun on this machine alone. Its own way to say that, `--standalone`, listens on every interface."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"),
        # docs/LOG.md, 2026-11-30: with a file in its place nothing listens but gloo on 127.0.0.1.
        *("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={agent_file}"),
        *("--local-addr=127.0.0.1", "--max-restarts=0"),
    ]


def _agent_file(scratch: Path) -> Path:
    """Where torchrun's agent meets itself."""
    return scratch / "torchrun.store"


def _group_file(scratch: Path) -> Path:
    """Where the children of one machine meet (model/training/place.py)."""
    return scratch / "group.store"


def _meeting_place(execution: Execution, scratch: Path) -> dict[str, str]:
    """Environment variables that keep processes of one machine on it; of several machines each launcher has its own.

    Left to itself gloo listens where the host's name resolves to, NCCL on all but the loopback interface.
    """
    if execution.launcher == "ray" or os.environ.get("BESSEMER_LAUNCHER"):
        return {}
    interfaces = {name: os.environ.get(name, LOOPBACK) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    # Otherwise torchrun (2.13) starts a TCPStore beside its file, for children that would ask it.
    no_server = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {"BESSEMER_GROUP_FILE": str(_group_file(scratch)), **interfaces, **no_server}


def child_settings(execution: Execution) -> dict[str, str]:
    """Environment variables of a training process."""
    root = str(Path(__file__).resolve().parents[3])
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),  # found from any folder
        "OMP_NUM_THREADS": str(execution.threads),
        # Processes that share cores must not spin while they wait for each other.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
    }


def stop_group(children: subprocess.Popen[bytes]) -> None:
    """End the launcher and everything it started: politely, then not."""
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        if children.poll() is not None:
            return
        os.killpg(children.pid, number)
        try:
            children.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _relay(run: TrainingRun, scratch: Path, children: subprocess.Popen[bytes]) -> None:
    """Pass on what the first child reports, until the children end."""
    with closing(Relay(run)) as relay:
        reader = EventReader(scratch / EVENTS_FILE)
        while True:
            ended = children.poll() is not None  # looked at before the last read, so nothing is missed
            for event in reader.new():
                relay.take(event)
            if ended:
                break
            time.sleep(POLL_SECONDS)
    if relay.refusal:
        raise ValueError(relay.refusal)
    # Both: a launcher of one's own may end with 0 and never have reached the job.
    if children.returncode != 0 or not relay.done:
        lines = (scratch / "launch.log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        # The log too: where the kernel killed a process, what crashed is its neighbour, whose connection was lost.
        causes = [relay.crash, "The launcher's last lines:", *lines]
        raise RuntimeError(
            "\n".join([f"Training processes ended with code {children.returncode}:", *filter(None, causes)])
        )


def run_child(spec_path: Path) -> None:
    """The life of one child: read the spec, run the job, report."""
    spec = LaunchSpec.model_validate_json(spec_path.read_bytes())
    job: Job = getattr(importlib.import_module(spec.module), spec.function)
    config_class = job.__annotations__["cfg"]
    run = spec.child_run()
    try:
        job(run, config_class.model_validate(spec.config), spec.inputs)
    except ValueError as error:
        run.send("refused", str(error))
        raise
    except Exception:
        run.send("crashed", traceback.format_exc())
        raise
    if int(os.environ.get("RANK", "0")) == 0:
        run.send("done")


def leave() -> NoReturn:
    """End this process once all are done, without Python's own end.

    The job's files are closed and its report is written; but threads that gloo and DeepSpeed leave behind can abort a
    process that Python takes down ("terminate called without an active exception": a good run would be called failed).
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()  # nobody hangs up on one that still receives
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    die_with_parent()
    run_child(Path(sys.argv[1]))
    leave()
