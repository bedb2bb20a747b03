"""A verification builds each stage as it was recorded, and says what of the machine is other than it was."""

from pathlib import Path

from flows.recipe import Recipe
from flows.run import InProcess
from flows.verify import AsRecorded, _elsewhere, _manifests
from tasks.mechanism.execution import Execution
from tasks.mechanism.machine import environment
from tasks.mechanism.stage import StageConfig, StageRun, stage
from tasks.track import Untracked


class NoSettings(StageConfig):
    """Nothing to set."""


@stage("threads", version=1)
def threads(run: StageRun, cfg: NoSettings) -> None:
    """Bytes that depend on the number of threads, as those of a training in bf16 may."""
    (run.out / "threads").write_text(str(run.execution.threads))


def build_twice(runner: InProcess) -> dict[str, str]:
    """The same stage under two labels of which a record may know one only."""
    for label in ("known", "unknown"):
        runner(threads, NoSettings(), label)
    return runner.record.digests


def test_stages_are_built_with_the_threads_they_were_recorded_with(tmp_path: Path) -> None:
    first = InProcess(Recipe(), Execution(home=tmp_path / "first", threads=3), Untracked(), {})
    then = build_twice(first)
    recorded = _manifests(first.store, first.record)
    assert set(recorded) == {"known", "unknown"}
    del recorded["unknown"]
    again = AsRecorded(Recipe(), Execution(home=tmp_path / "again", threads=2), Untracked(), {}, recorded)
    again(threads, NoSettings(), "known")
    assert again.record.digests["known"] == then["known"]
    here = AsRecorded(Recipe(), Execution(home=tmp_path / "here", threads=2), Untracked(), {}, {})
    here(threads, NoSettings(), "unknown")
    assert here.record.digests["unknown"] != then["unknown"]


def test_what_differs_from_the_recorded_machine_is_named(tmp_path: Path) -> None:
    execution = Execution(home=tmp_path, threads=3)
    runner = InProcess(Recipe(), execution, Untracked(), {})
    runner(threads, NoSettings())
    (manifest,) = _manifests(runner.store, runner.record).values()
    now = environment(execution)
    assert _elsewhere(manifest, now) == () == _elsewhere(None, now)
    assert _elsewhere(manifest, environment(execution.model_copy(update={"threads": 1}))) == ()
    then = manifest.model_copy(update={"environment": manifest.environment | {"cpu": "Another", "processes": "4"}})
    assert _elsewhere(then, now) == (f"cpu: Another, now {now['cpu']}", "processes: 4, now 1")
    of_old = manifest.model_copy(update={"environment": {k: v for k, v in now.items() if k != "MKL_CBWR"}})
    assert _elsewhere(of_old, now) == ()
