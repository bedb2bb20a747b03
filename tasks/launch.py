"""A training job where it belongs: in place for one process, else as child processes under a distributed launcher.

The children import neither Prefect nor MLflow; they report by a file that their parent reads, and die with it.
`BESSEMER_LAUNCHER` replaces torchrun's command line, e.g. by `srun ... torchrun ...` (deployments/accelerate).
"""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pydantic import BaseModel

from tasks.execution import Execution
from tasks.lifeline import die_with_parent
from tasks.stage import StageConfig
from tasks.store import Artifact, write_atomically

POLL_SECONDS = 0.2
STOP_SECONDS = 10.0  # between asking the children to stop and killing them
LOG_TAIL_LINES = 25


class Bar(Protocol):
    """A progress bar."""

    def advance(self, amount: float) -> None:
        """Count more units as done."""

    def resume_at(self, done: float) -> None:
        """Say how much an earlier run had done."""


class TrainingRun(Protocol):
    """What a training job is given: the stage's run itself, or a child's stand-in for it."""

    @property
    def out(self) -> Path:
        """Folder of the artifact; only the first process writes there."""

    @property
    def scratch(self) -> Path:
        """Folder that survives a crash."""

    @property
    def execution(self) -> Execution:
        """Where and how fast."""

    def metric(self, name: str, value: float) -> None:
        """A final figure."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the curves."""

    def rewind(self, step: int) -> None:
        """Points after `step` are void."""

    def say(self, text: str) -> None:
        """One line for people."""

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager[Bar]:
        """A progress bar."""


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


def launch(run: TrainingRun, job: Job, cfg: StageConfig, inputs: Mapping[str, Artifact]) -> None:
    """Run `job` on as many processes as the execution asks for, and return when all have ended well.

    Raises:
        ValueError: the job refused its input, or what runs is not what was asked for.
        RuntimeError: a process died; the end of its log is in the message.
    """
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
    with (scratch / "launch.log").open("wb") as log:
        children = subprocess.Popen(
            launch_command(run.execution, spec_path),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **child_settings(run.execution)},
            start_new_session=True,
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
    path = run.scratch / "events.jsonl"
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
        return [sys.executable, "-m", "tasks.ray_launcher", str(spec_path)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
    launcher = shlex.split(custom) or [*torchrun, f"--nproc-per-node={execution.processes}"]
    return [*launcher, "-m", "tasks.launch", str(spec_path)]


def child_settings(execution: Execution) -> dict[str, str]:
    """Environment variables of a training process."""
    root = str(Path(__file__).resolve().parent.parent)
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
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
    relay, reader = _Relay(run), EventReader(scratch / "events.jsonl")
    while True:
        ended = children.poll() is not None  # looked at before the last read, so nothing is missed
        for event in reader.new():
            relay.take(event)
        if ended:
            break
        time.sleep(POLL_SECONDS)
    relay.close()
    if relay.refusal:
        raise ValueError(relay.refusal)
    if children.returncode != 0 or not relay.done:
        lines = (scratch / "launch.log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        cause = relay.crash or "\n".join(lines)
        raise RuntimeError(f"Training processes ended with code {children.returncode}:\n{cause}")


class EventReader:
    """Reads an event file while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The events whose lines were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class _Relay:
    """Turns events back into calls."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._open: AbstractContextManager[Bar] | None = None
        self._bar: Bar | None = None
        self.refusal = ""
        self.crash = ""
        self.done = False

    def take(self, event: dict[str, Any]) -> None:
        kind, values = event["event"], event["values"]
        if kind in ("metric", "log", "rewind", "say"):
            getattr(self._run, kind)(*values)
        elif kind == "progress":
            self.close()
            self._open = self._run.progress(*values)
            self._bar = self._open.__enter__()
        elif kind in ("advance", "resume_at") and self._bar is not None:
            getattr(self._bar, kind)(*values)
        elif kind == "refused":
            self.refusal = self.refusal or values[0]
        elif kind == "crashed":
            self.crash = self.crash or values[0]
        elif kind == "done":
            self.done = True

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._bar = None


class ChildRun:
    """A training job's run inside a child: every call becomes a line of the event file."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.out, self.scratch, self.execution = spec.out, spec.scratch, spec.execution
        self._events = (spec.scratch / "events.jsonl").open("a", buffering=1)

    def send(self, event: str, *values: object) -> None:
        """Write one event."""
        self._events.write(json.dumps({"event": event, "values": values}) + "\n")

    def metric(self, name: str, value: float) -> None:
        """See TrainingRun."""
        self.send("metric", name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See TrainingRun."""
        self.send("log", step, dict(values))

    def rewind(self, step: int) -> None:
        """See TrainingRun."""
        self.send("rewind", step)

    def say(self, text: str) -> None:
        """See TrainingRun."""
        self.send("say", text)

    def progress(self, description: str, total: float, unit: str) -> "ChildBar":
        """See TrainingRun."""
        self.send("progress", description, total, unit)
        return ChildBar(self)


class ChildBar:
    """A progress bar that is drawn by the parent."""

    def __init__(self, run: ChildRun) -> None:
        self._run = run

    def __enter__(self) -> "ChildBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close: the parent does."""

    def advance(self, amount: float) -> None:
        """See Bar."""
        self._run.send("advance", amount)

    def resume_at(self, done: float) -> None:
        """See Bar."""
        self._run.send("resume_at", done)


def run_child(spec_path: Path) -> None:
    """The life of one child: read the spec, run the job, report."""
    spec = LaunchSpec.model_validate_json(spec_path.read_bytes())
    job: Job = getattr(importlib.import_module(spec.module), spec.function)
    config_class = job.__annotations__["cfg"]
    run = ChildRun(spec)
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


if __name__ == "__main__":
    die_with_parent()
    run_child(Path(sys.argv[1]))
