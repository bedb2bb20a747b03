"""Who computes the shards: this process, other processes, a Dask or a Ray cluster, all with the same result.

A refusal, or Ctrl-C, ends the shards that are still being computed: nobody waits minutes for an answer that is known.
It costs nothing but those shards, since what was finished is memoised and a result appears whole or not at all. Only
what a worker of a Dask cluster that is not ours computes goes on to its end, unseen: Dask cannot end a thread.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from tasks.mechanism.execution import Execution
from tasks.mechanism.launch.lifeline import die_with_parent

T = TypeVar("T")
Say = Callable[[str], None]
MAX_WORKER_DEATHS = 3  # Dask's own number too (distributed.scheduler.allowed-failures)


def compute_all(compute: Callable[[T], None], items: Sequence[T], execution: Execution, say: Say) -> Iterator[T]:
    """Call `compute` on each item wherever the execution says, yielding items as they are done.

    A worker that is killed costs its item, which is computed again elsewhere. Whatever `compute` raises ends all items.

    Raises:
        RuntimeError: workers were killed MAX_WORKER_DEATHS times.
    """
    if execution.engine == "dask":
        yield from _on_dask(compute, items, execution)
    elif execution.engine == "ray":
        yield from _on_ray(compute, items, execution)
    # Here: a process would be started and import everything anew, and nothing would run beside it.
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
        # spawn: a forked child would inherit the locks of this process's threads, held for ever
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_work)
        try:
            futures = {pool.submit(compute, item): item for item in left}
            for future in as_completed(futures):
                future.result()
                left.remove(futures[future])
                yield futures[future]
            pool.shutdown()
        except BrokenProcessPool as error:
            pool.shutdown()
            deaths += 1
            if deaths >= MAX_WORKER_DEATHS:
                raise RuntimeError(
                    f"A worker was killed {deaths} times and {len(left)} shards are left. Usually memory ran out: use "
                    "fewer workers (--workers) or smaller shards (ingest.shard_megabytes)."
                ) from error
            say(f"a worker was killed; {len(left)} shards are done again")
        except BaseException:
            _end_work(pool)
            raise


def _begin_work() -> None:
    """First thing in a worker. Ctrl-C reaches it too, but who started it decides, and ends it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_work(pool: ProcessPoolExecutor) -> None:
    """Kill the workers: their results are not wanted any more."""
    for worker in list((pool._processes or {}).values()):  # has a public name, kill_workers, from Python 3.14 on
        worker.kill()
    pool.shutdown(cancel_futures=True)


def _on_dask(compute: Callable[[T], None], items: Sequence[T], execution: Execution) -> Iterator[T]:
    """Through a Dask client; the cluster's machines must see the home folder."""
    from distributed import Client, LocalCluster
    from distributed import as_completed as dask_as_completed

    with _dask_cluster(execution, LocalCluster) as address, Client(address) as client:
        # No retries: those are for errors, and a refusal stays one. A shard whose worker was killed the scheduler gives
        # to another by itself (distributed.scheduler.allowed-failures, 3).
        # Not pure: Dask would name a call by its arguments, and not run an equal one that it remembers.
        futures = [client.submit(compute, item, pure=False) for item in items]
        places = {future.key: item for future, item in zip(futures, items)}
        try:
            for future in dask_as_completed(futures):
                future.result()
                yield places[future.key]
        finally:
            client.cancel(futures, force=True)


def _dask_cluster(execution: Execution, local_cluster: Any) -> Any:
    """A context that gives the address to connect to: the user's scheduler, or a local cluster of our own."""
    from contextlib import nullcontext

    if execution.engine_address:
        return nullcontext(execution.engine_address)
    # One thread each: shards in threads of one process wait for its interpreter lock. No dashboard: one port less.
    return local_cluster(n_workers=execution.workers, threads_per_worker=1, dashboard_address=None)


def _call(compute: Callable[[T], None], item: T) -> None:
    """Ray wraps plain functions only, not partial ones."""
    compute(item)


def _on_ray(compute: Callable[[T], None], items: Sequence[T], execution: Execution) -> Iterator[T]:
    """Through Ray tasks; a local Ray is started where no address is given, and stopped afterwards."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry, unless the user asks for it
    ours = not ray.is_initialized()  # who started Ray before us may need it after us
    if ours and execution.engine_address:
        ray.init(address=execution.engine_address, log_to_driver=False, logging_level=logging.ERROR)
    elif ours:
        ray.init(num_cpus=execution.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        # Retries are of killed workers only: what `compute` raises Ray retries only with retry_exceptions.
        task: Any = ray.remote(num_cpus=1, max_retries=MAX_WORKER_DEATHS)(_call)
        waiting = {task.remote(compute, item): item for item in items}
        try:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                item = waiting.pop(done)
                ray.get(done)
                yield item
        finally:
            for unfinished in waiting:
                # By force: else Ray raises KeyboardInterrupt there, which Python delivers once compiled code returns.
                ray.cancel(unfinished, force=True)
    finally:
        if ours:
            ray.shutdown()
