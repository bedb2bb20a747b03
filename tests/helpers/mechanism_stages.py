"""Tiny stages for the tests of the mechanism, in a module of their own: a stage's identity is its module's code."""

from pathlib import Path

from pydantic import Field

from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage


class CountConfig(StageConfig):
    """How high to count."""

    limit: int = Field(3, ge=0, le=100, description="The last number.")
    word: str = Field("n", description="What precedes each number.")


@stage("count", version=1)
def count(run: StageRun, cfg: CountConfig) -> None:
    """Write the numbers up to the limit."""
    (run.out / "numbers.txt").write_text("".join(f"{cfg.word}{n}\n" for n in range(cfg.limit)))
    run.metric("numbers", cfg.limit)
    for step in range(cfg.limit):
        run.log(step, {"value": float(step)})


class DoubleConfig(StageConfig):
    """How to double."""

    times: int = Field(2, ge=1, description="How many copies.")


def double_shard(inputs: tuple[Path, ...], output: Path, cfg: DoubleConfig) -> dict[str, float]:
    """Write the shard's text `times` times."""
    text = inputs[0].read_text()
    output.write_text(text * cfg.times)
    return {"characters": float(len(text) * cfg.times)}


@stage("double", version=1)
def double(run: StageRun, cfg: DoubleConfig, numbers: Artifact) -> None:
    """Double every file of the input."""
    jobs = [ShardJob((path,), run.out / path.name) for path in sorted(numbers.path.glob("*.txt"))]
    counts = map_shards(run, double_shard, jobs, cfg)
    run.metric("characters", sum(c["characters"] for c in counts))


@stage("dear", version=1, rebuild="on-version")
def dear(run: StageRun, cfg: DoubleConfig, numbers: Artifact) -> None:
    """A stage that is held dear."""
    (run.out / "copy.txt").write_text((numbers.path / "numbers.txt").read_text() * cfg.times)


@stage("refuse", version=1)
def refuse(run: StageRun, cfg: DoubleConfig) -> None:
    """A stage that fails after it has written something."""
    (run.out / "half.txt").write_text("half")
    (run.scratch / "checkpoint.txt").write_text("kept")
    raise ValueError("the input is wrong")
