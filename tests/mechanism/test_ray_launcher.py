"""Training on a real Ray cluster of two cores: the curve of one process, refusals, and nothing left after a kill."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.processes import launch
from tasks.mechanism.launch.ray_cluster import Machine, check_room, workers_with_room
from tasks.mechanism.observe import Silent
from tasks.mechanism.stage import StageRun, obtain
from tasks.mechanism.store import Store
from tasks.train.pretrain import pretrain
from tests.conftest import require_module
from tests.helpers.launch_jobs import JobConfig, crash_job
from tests.helpers.training import assert_same_but_for_rounding, calm_pretrain, full_curve, make_inputs

STARTED_S = 600.0  # a hang, not slowness


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a cluster that is there already."""
    ray = require_module("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def on_ray(home: Path, address: str, processes: int = 2) -> Execution:
    return Execution(home=home, threads=1, processes=processes, launcher="ray", engine_address=address)


def make_run(folder: Path, address: str, processes: int = 2) -> StageRun:
    (folder / "scratch").mkdir()
    execution = on_ray(folder / "home", address, processes)
    return StageRun(folder / "scratch", execution, Store(execution.home), Silent())


@pytest.mark.slow
def test_two_workers_give_the_curve_of_one_process(address: str, tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    cfg = calm_pretrain(batches={"steps": 8}, precision="fp32")
    share = cfg.batches.batch_tokens // 2  # one process adds the gradient up in the parts that two have
    one, two = Execution(home=tmp_path / "one", threads=1, micro_batch_tokens=share), on_ray(tmp_path / "two", address)
    figures = [obtain(pretrain, cfg, inputs, execution).manifest.metrics for execution in (one, two)]
    assert figures[0]["train_tokens"] == figures[1]["train_tokens"]
    assert_same_but_for_rounding(full_curve(one.home), full_curve(two.home))


@pytest.mark.slow
def test_what_the_cluster_does_not_have_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"3 processes of 1 cores each, but .* has room for 2: 2 cores and 0 GPUs on 1 "
    ):
        launch(make_run(tmp_path, address, processes=3), crash_job, JobConfig(), {})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_parent(address: str, tmp_path: Path, how: signal.Signals) -> None:
    # Where the tests run in the background of a shell, they and their children ignore SIGINT.
    script = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        from tasks.mechanism.launch.processes import launch
        from tests.helpers.launch_jobs import JobConfig, sleep_job
        from tests.mechanism.test_ray_launcher import make_run
        signal.signal(signal.SIGINT, signal.default_int_handler)
        launch(make_run(Path({str(tmp_path)!r}), {address!r}), sleep_job, JobConfig(), {{}})
    """)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    pid_files = [tmp_path / "scratch" / f"pid{rank}" for rank in range(2)]
    deadline = time.monotonic() + STARTED_S
    while not all(path.exists() and path.read_text() for path in pid_files):
        assert parent.poll() is None and time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.1)
    workers = [psutil.Process(int(path.read_text())) for path in pid_files]
    parent.send_signal(how)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_room_is_counted_by_machine() -> None:
    machines = [Machine(cpus=4, gpus=1), Machine(cpus=3, gpus=0), Machine(cpus=1, gpus=2)]
    assert workers_with_room(machines, threads=2, gpu=False) == 3
    assert workers_with_room(machines, threads=1, gpu=True) == 2
    assert workers_with_room(machines, threads=1, gpu=False) == 8


def test_fewer_gpus_than_processes_are_refused() -> None:
    execution = Execution(processes=8, threads=4, launcher="ray", engine_address="head:6379", device="cuda")
    expected = r"8 processes of 4 cores and a GPU each, but .*head:6379 has room for 4: 64 cores and 4 GPUs on 1"
    with pytest.raises(ValueError, match=expected):
        check_room(execution, [Machine(cpus=64, gpus=4)])
    assert check_room(execution, [Machine(cpus=64, gpus=4)] * 2)
    assert not check_room(execution.model_copy(update={"device": "cpu"}), [Machine(cpus=64, gpus=4)])
    with pytest.raises(ValueError, match="has room for 4"):  # never CPUs in place of the GPUs that are missing
        check_room(execution.model_copy(update={"device": "auto"}), [Machine(cpus=64, gpus=4)])


def test_ray_needs_an_address() -> None:
    with pytest.raises(ValueError, match=r"engine_address is '' and engine is 'processes'"):
        Execution(launcher="ray", processes=2)
    with pytest.raises(ValueError, match=r"engine is 'dask'"):
        Execution(launcher="ray", processes=2, engine="dask", engine_address="scheduler:8786")
