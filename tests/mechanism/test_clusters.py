"""The data stages on this machine, on a Dask and on a Ray cluster: equal artifacts, also where a worker is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.filter import FilterConfig, filter
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import Source, resolve_source
from tasks.tokens.pack import PackConfig, pack
from tasks.tokens.tokenizer import TokenizerConfig, tokenizer
from tests.conftest import require_module
from tests.helpers import tiny
from tests.helpers.data import keep_all

pytestmark = pytest.mark.slow
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("clusters")
    return resolve_source(str(tiny.make_corpus(folder / "library")), folder / "cache")


def data_stages(corpus: Source, execution: Execution) -> dict[str, str]:
    """Digest of each stage's artifact; shards of 20 kB, so that there are many."""
    documents = build(ingest, IngestConfig(shard_megabytes=0.02), {"corpus": corpus}, execution)
    filtered = build(filter, FilterConfig(), {"documents": documents}, execution)
    unique = build(dedup, DedupConfig(), {"documents": documents, "filtered": filtered}, execution)
    clean = keep_all(execution.home / "clean", documents)
    inputs = {"documents": documents, "filtered": filtered, "deduplicated": unique, "decontaminated": clean}
    vocabulary = build(tokenizer, TokenizerConfig(vocab_size=600), inputs, execution)
    tokens = build(pack, PackConfig(validation_share=0.1), {**inputs, "tokenizer": vocabulary}, execution)
    found: dict[str, Artifact] = {"ingest": documents, "filter": filtered, "dedup": unique, "pack": tokens}
    return {name: artifact.digest for name, artifact in found.items()}


@pytest.fixture(scope="module")
def local(corpus: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return data_stages(corpus, Execution(home=tmp_path_factory.mktemp("local"), workers=1))


@pytest.fixture
def dask_cluster() -> Iterator[tuple[str, Callable[[], list[int]]]]:
    """(address of the scheduler, pids of the workers)."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address, lambda: [nanny.pid for nanny in cluster.workers.values() if nanny.pid]


@pytest.fixture
def ray_cluster() -> Iterator[tuple[str, Callable[[], list[int]]]]:
    """(no address: this process is connected already, pids of the workers at work)."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield "", lambda: [p.pid for p in psutil.Process().children(recursive=True) if "ray::_call" in _title(p)]
    ray.shutdown()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Killer(threading.Thread):
    """Kills one worker as soon as `stage` has begun to compute shards and a worker can be seen."""

    def __init__(self, home: Path, stage: str, pids: Callable[[], list[int]]) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._scratch, self._pids = home / "scratch" / stage, pids

    def run(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.killed and time.monotonic() < deadline:
            if self._scratch.exists():
                for pid in self._pids()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
            time.sleep(0.01)


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_cluster_that_loses_a_worker_gives_the_artifacts_of_one_machine(
    corpus: Source, local: dict[str, str], engine: Literal["dask", "ray"], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    require_module("distributed" if engine == "dask" else "ray")
    address, pids = request.getfixturevalue(f"{engine}_cluster")
    killer = Killer(tmp_path / "home", "filter", pids)
    killer.start()
    found = data_stages(corpus, Execution(home=tmp_path / "home", workers=2, engine=engine, engine_address=address))
    killer.join()
    assert killer.killed, "no worker was seen at work"
    assert found == local
