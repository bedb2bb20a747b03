"""Stages for the tests of running: one that takes its time and keeps checkpoints, one that hands a model over."""

import shutil
import time
from pathlib import Path

from pydantic import Field

from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage


class PatientConfig(StageConfig):
    """How long it takes."""

    steps: int = Field(10, ge=1, description="How many steps.")
    step_seconds: float = Field(0.0, ge=0, description="How long each takes.")


@stage("patient", version=1, rebuild="on-version")
def patient(run: StageRun, cfg: PatientConfig) -> None:
    """Count steps, remembering each."""
    checkpoint = run.scratch / "step.txt"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    run.rewind(first - 1)
    with run.progress("count", cfg.steps, "steps") as bar:
        bar.resume_at(first)
        for step in range(first, cfg.steps):
            time.sleep(cfg.step_seconds)
            run.log(step, {"loss": 1.0 / (1 + step)})
            Path(checkpoint).write_text(str(step + 1))
            bar.advance(1)
    run.say(f"resumed at {first}")
    run.metric("first_step", first)
    (run.out / "steps.txt").write_text(str(cfg.steps))


class HandOverConfig(StageConfig):
    """Nothing to choose."""


@stage("hand_over", version=1)
def hand_over(run: StageRun, cfg: HandOverConfig, model: Artifact) -> None:
    """Pass an artifact on as it is: a model, where a test needs one to come out of a stage."""
    shutil.copytree(model.path, run.out, dirs_exist_ok=True)
