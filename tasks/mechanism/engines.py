"""Who computes the shards: this process, other processes, a Dask or a Ray cluster, all with the same result."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.lifeline import die_with_parent

T = TypeVar("T")
Say = Callable[[str], None]
MAX_WORKER_DEATHS = 3


def compute_all(compute: Callable[[T], None], items: Sequence[T], execution: Execution, say: Say) -> Iterator[T]:
    """Call `compute` on each item wherever the execution says, yielding items as they are done.

    A worker that is killed costs its item, which is computed again elsewhere.

    Raises:
        RuntimeError: workers were killed MAX_WORKER_DEATHS times.
    """
    if execution.engine == "dask":
        yield from _on_dask(compute, items, execution)
    elif execution.engine == "ray":
        yield from _on_ray(compute, items, execution)
    elif execution.workers == 1 or len(items) == 1:
        for item in items:
            compute(item)
            yield item
    else:
        yield from _in_processes(compute, items, execution, say)


def _in_processes(compute: Callable[[T], None], items: Sequence[T], execution: Execution, say: Say) -> Iterator[T]:
    left = list(items)
    deaths = 0
    while left:
        workers = min(execution.workers, len(left))
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent)
        try:
            with pool:
                futures = {pool.submit(compute, item): item for item in left}
                for future in as_completed(futures):
                    future.result()
                    left.remove(futures[future])
                    yield futures[future]
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= MAX_WORKER_DEATHS:
                raise RuntimeError(
                    f"A worker was killed {deaths} times and {len(left)} shards are left. Usually memory ran out: use "
                    "fewer workers (--workers) or smaller shards (ingest.shard_megabytes)."
                ) from error
            say(f"a worker was killed; {len(left)} shards are done again")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_dask(compute: Callable[[T], None], items: Sequence[T], execution: Execution) -> Iterator[T]:
    """Through a Dask client; the cluster's machines must see the home folder."""
    from distributed import Client, LocalCluster
    from distributed import as_completed as dask_as_completed

    with _dask_cluster(execution, LocalCluster) as address, Client(address) as client:
        futures = [client.submit(compute, item, pure=False, retries=MAX_WORKER_DEATHS) for item in items]
        places = {future.key: item for future, item in zip(futures, items)}
        for future in dask_as_completed(futures):
            future.result()
            yield places[future.key]


def _dask_cluster(execution: Execution, local_cluster: Any) -> Any:
    """A context that gives the address to connect to: the user's scheduler, or a local cluster of our own."""
    from contextlib import nullcontext

    if execution.engine_address:
        return nullcontext(execution.engine_address)
    return local_cluster(n_workers=execution.workers, threads_per_worker=1, dashboard_address=None)


def _call(compute: Callable[[T], None], item: T) -> None:
    """Ray wraps plain functions only, not partial ones."""
    compute(item)


def _on_ray(compute: Callable[[T], None], items: Sequence[T], execution: Execution) -> Iterator[T]:
    """Through Ray tasks; a local Ray is started where no address is given, and stopped afterwards."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours and execution.engine_address:
        ray.init(address=execution.engine_address, log_to_driver=False, logging_level=logging.ERROR)
    elif ours:
        ray.init(num_cpus=execution.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        task: Any = ray.remote(num_cpus=1, max_retries=MAX_WORKER_DEATHS)(_call)
        waiting = {task.remote(compute, item): item for item in items}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            ray.get(done)
            yield waiting.pop(done)
    finally:
        if ours:
            ray.shutdown()
