"""Mapped shards: the same results whoever maps them, only new ones computed, a killed worker survived."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import Silent
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import StageConfig, StageRun
from tasks.mechanism.store import Store, write_atomically
from tests.conftest import require_module


class ShardTestConfig(StageConfig):
    """What to do to a shard."""

    suffix: str = "!"
    marker: str = ""


def append_suffix(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    output.write_text(inputs[0].read_text() + cfg.suffix)
    return {"calls": float(os.getpid())}


def die_once(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    """Kill the worker at the first call for shard 1."""
    marker = Path(cfg.marker)
    if inputs[0].name == "1.txt" and not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    output.write_text(inputs[0].read_text() + cfg.suffix)
    return {"calls": 1.0}


def always_die(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refuse_shard(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    raise ValueError(f"{inputs[0].name}: bad record")


def refuse_while_others_work(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    """Shard 0 is refused once shard 1 is being computed, which takes a minute if nobody ends it."""
    folder = Path(cfg.marker)
    if inputs[0].name == "0.txt":
        wait_until(lambda: (folder / "1.txt").exists())
        raise ValueError("0.txt: bad record")
    return work_for_a_minute(inputs, output, cfg)


def work_for_a_minute(inputs: tuple[Path, ...], output: Path, cfg: ShardTestConfig) -> dict[str, float]:
    """Say which process began, and whether it came to its end."""
    folder = Path(cfg.marker)
    write_atomically(folder / inputs[0].name, str(os.getpid()).encode())
    time.sleep(60)
    (folder / f"{inputs[0].name}.ended").write_text("")
    output.write_text("")
    return {}


def wait_until(condition: Callable[[], bool]) -> None:
    """Look every 50 ms, for a minute."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError("nothing happened for a minute")


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that its parent did not look at yet has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def make_run(tmp_path: Path, workers: int, engine: Literal["processes", "dask", "ray"] = "processes") -> StageRun:
    execution = Execution(home=tmp_path / f"home-{engine}", workers=workers, engine=engine)
    return StageRun(tmp_path / f"scratch-{engine}-{workers}", execution, Store(execution.home), Silent())


def make_jobs(run: StageRun, tmp_path: Path, count: int = 4) -> list[ShardJob]:
    for number in range(count):
        (tmp_path / f"{number}.txt").write_text(str(number))
    return [ShardJob((tmp_path / f"{n}.txt",), run.out / f"{n}.txt") for n in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(tmp_path: Path, workers: int) -> None:
    run = make_run(tmp_path, workers)
    jobs = make_jobs(run, tmp_path)
    counts = map_shards(run, append_suffix, jobs, ShardTestConfig())
    assert [job.output.read_text() for job in jobs] == ["0!", "1!", "2!", "3!"]
    assert len(counts) == 4


def test_only_new_shards_are_computed(tmp_path: Path) -> None:
    first = make_run(tmp_path, 1)
    old = map_shards(first, append_suffix, make_jobs(first, tmp_path), ShardTestConfig())
    second = make_run(tmp_path, 2)
    jobs = make_jobs(second, tmp_path, count=6)
    (tmp_path / "2.txt").write_text("changed")
    new = map_shards(second, append_suffix, jobs, ShardTestConfig())
    recomputed = [i for i in range(4) if new[i] != old[i]]
    assert recomputed == [2]
    assert jobs[2].output.read_text() == "changed!"


def test_config_moves_the_memo(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    jobs = make_jobs(run, tmp_path, 1)
    map_shards(run, append_suffix, jobs, ShardTestConfig())
    jobs[0].output.unlink()
    map_shards(run, append_suffix, jobs, ShardTestConfig(suffix="?"))
    assert jobs[0].output.read_text() == "0?"


def test_killed_worker_costs_its_shard_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    jobs = make_jobs(run, tmp_path)
    map_shards(run, die_once, jobs, ShardTestConfig(marker=str(tmp_path / "marker")))
    assert [job.output.read_text() for job in jobs] == ["0!", "1!", "2!", "3!"]
    assert (tmp_path / "marker").exists()


def test_workers_that_keep_dying_stop_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    with pytest.raises(RuntimeError, match="killed 3 times.*fewer workers"):
        map_shards(run, always_die, make_jobs(run, tmp_path), ShardTestConfig())


def test_refusal_names_the_shard(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    with pytest.raises(ValueError, match="bad record"):
        map_shards(run, refuse_shard, make_jobs(run, tmp_path), ShardTestConfig())


@pytest.mark.parametrize(
    "engine",
    ["processes", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("dask", "ray"))],
)
def test_a_refused_shard_ends_those_that_are_being_computed(
    tmp_path: Path, engine: Literal["processes", "dask", "ray"]
) -> None:
    if engine != "processes":
        require_module("distributed" if engine == "dask" else "ray")
    markers = tmp_path / "markers"
    markers.mkdir()
    run = make_run(tmp_path, 2, engine)
    with pytest.raises(ValueError, match="0.txt: bad record"):
        map_shards(run, refuse_while_others_work, make_jobs(run, tmp_path), ShardTestConfig(marker=str(markers)))
    wait_until(lambda: all(is_gone(int(path.read_text())) for path in markers.glob("*.txt")))
    assert (markers / "1.txt").exists() and not list(markers.glob("*.ended"))


def map_in_a_process(tmp_path: Path, markers: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring it
    run = make_run(tmp_path, 2)
    map_shards(run, work_for_a_minute, make_jobs(run, tmp_path), ShardTestConfig(marker=str(markers)))


def test_ctrl_c_ends_the_shards_that_are_being_computed(tmp_path: Path) -> None:
    """A terminal sends it to the workers too; here who started them gets it alone, and must see to it."""
    markers = tmp_path / "markers"
    markers.mkdir()
    started = get_context("spawn").Process(target=map_in_a_process, args=(tmp_path, markers))
    started.start()
    wait_until(lambda: len(list(markers.glob("*.txt"))) == 2)
    assert started.pid is not None
    os.kill(started.pid, signal.SIGINT)
    started.join()
    assert started.exitcode
    wait_until(lambda: all(is_gone(int(path.read_text())) for path in markers.glob("*.txt")))
    assert not list(markers.glob("*.ended"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_cluster_engines_give_the_same_and_survive_a_killed_worker(
    tmp_path: Path, engine: Literal["dask", "ray"]
) -> None:
    """A real local cluster of two workers, one of which is killed in mid-run."""
    require_module("distributed" if engine == "dask" else "ray")
    run = make_run(tmp_path, 2, engine)
    jobs = make_jobs(run, tmp_path)
    map_shards(run, die_once, jobs, ShardTestConfig(marker=str(tmp_path / f"marker-{engine}")))
    assert [job.output.read_text() for job in jobs] == ["0!", "1!", "2!", "3!"]
    assert (tmp_path / f"marker-{engine}").exists()
