"""Jobs for the tests of the launcher; they import no torch, so that a process starts fast."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tasks.mechanism.observe import TrainingRun
from tasks.mechanism.stage import StageConfig


class JobConfig(StageConfig):
    """What the job shall do."""

    text: str = Field("", description="Something to pass on.")


def report_job(run: TrainingRun, cfg: JobConfig, inputs: Mapping[str, Path]) -> None:
    """Report in every way there is; each process leaves a file."""
    rank = os.environ["RANK"]
    (run.scratch / f"rank{rank}").write_text(os.environ["WORLD_SIZE"])
    if rank != "0":
        return
    with run.progress("count", 3, "things") as bar:
        bar.resume_at(1)
        for step in (1, 2, 3):
            run.log(step, {"loss": 1.0 / step})
            bar.advance(1)
    run.rewind(2)
    run.say(f"{cfg.text} and {(inputs['text'] / 'file').read_text()}")
    run.metric("answer", 42)
    (run.out / "result").write_text(cfg.text)


def refuse_job(run: TrainingRun, cfg: JobConfig, inputs: Mapping[str, Path]) -> None:
    """Refuse the input."""
    raise ValueError(f"{cfg.text} is not good: use something else.")


def crash_job(run: TrainingRun, cfg: JobConfig, inputs: Mapping[str, Path]) -> None:
    """Have a bug."""
    raise KeyError(cfg.text)


def sleep_job(run: TrainingRun, cfg: JobConfig, inputs: Mapping[str, Path]) -> None:
    """Work for ever, silently."""
    (run.scratch / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
