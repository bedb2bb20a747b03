"""Several processes: what they report arrives, what they refuse is refused, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.processes import launch, launch_command
from tasks.mechanism.observe import EventReader, Silent
from tasks.mechanism.stage import Artifact, StageRun
from tasks.mechanism.store import Store
from tests.helpers.launch_jobs import JobConfig, crash_job, refuse_job, report_job


def make_run(tmp_path: Path, processes: int = 2) -> StageRun:
    execution = Execution(home=tmp_path / "home", workers=1, threads=1, processes=processes)
    (tmp_path / "scratch").mkdir()
    return StageRun(tmp_path / "scratch", execution, Store(execution.home), Silent())


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "file").write_text("hello")
    return {"text": Artifact("0" * 64, tmp_path / "input")}


def test_reports_arrive(tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(run, "say", said.append)
    launch(run, report_job, JobConfig(text="word"), inputs)
    assert {p.name: p.read_text() for p in run.scratch.glob("rank*")} == {"rank0": "2", "rank1": "2"}
    assert (run.out / "result").read_text() == "word"
    assert said == ["word and hello"] and run.metrics == {"answer": 42.0}
    run.keep_curve(tmp_path / "curve.jsonl")
    assert (tmp_path / "curve.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 1.0}',
        '{"step": 2, "loss": 0.5}',
    ]


def test_a_refusal_is_a_value_error_with_its_own_words(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(ValueError, match=r"^oil is not good: use something else\.$"):
        launch(make_run(tmp_path), refuse_job, JobConfig(text="oil"), inputs)


def test_a_crash_shows_its_cause(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'some bug'"):
        launch(make_run(tmp_path), crash_job, JobConfig(text="some bug"), inputs)


def test_a_custom_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESSEMER_LAUNCHER", "srun --nodes 2 'a b'")
    assert launch_command(Execution(), Path("spec")) == [
        "srun",
        "--nodes",
        "2",
        "a b",
        "-m",
        "tasks.mechanism.launch.processes",
        "spec",
    ]
    with pytest.raises(ValueError, match=r"launcher is 'ray', but BESSEMER_LAUNCHER is \"srun"):
        launch_command(Execution(launcher="ray", engine_address="auto"), Path("spec"))


def test_half_a_line_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reader = EventReader(path)
    assert reader.new() == []
    path.write_text('{"a": 1}\n{"b"')
    assert reader.new() == [{"a": 1}]
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert reader.new() == [{"b": 2}]


def wait_for(condition: "list[Path]", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not all(path.exists() and path.read_text() for path in condition):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from tests.mechanism.test_launch import make_run
        from tests.helpers.launch_jobs import JobConfig, sleep_job
        from tasks.mechanism.launch.processes import launch
        launch(make_run(Path({str(tmp_path)!r})), sleep_job, JobConfig(), {{}})
    """)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    pid_files = [tmp_path / "scratch" / f"pid{rank}" for rank in range(2)]
    try:
        wait_for(pid_files)
        family = [*psutil.Process(parent.pid).children(recursive=True)]
        assert {int(path.read_text()) for path in pid_files} <= {process.pid for process in family}
    finally:
        parent.send_signal(how)
        parent.wait(30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
