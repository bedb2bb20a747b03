"""Map a pure function over shards on whatever engine is at hand; what was mapped before is not mapped again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from tasks.identity import canonical_json, code_digest
from tasks.lifeline import die_with_parent
from tasks.stage import StageConfig, StageRun
from tasks.store import file_sha256, write_atomically

C = TypeVar("C", bound=StageConfig)
Counts = Mapping[str, float]
ShardFunction = Callable[[tuple[Path, ...], Path, C], Counts]
MAX_POOL_DEATHS = 3


@dataclass(frozen=True)
class ShardJob:
    """One unit of work: the files it reads and the one file it writes."""

    inputs: tuple[Path, ...]
    output: Path


@dataclass(frozen=True)
class _Work:
    """A job that has to be computed: where its memo will lie, and how much it reads (for the progress bar)."""

    job: ShardJob
    memo: Path
    input_bytes: int


def map_shards(run: StageRun, function: ShardFunction[C], jobs: Sequence[ShardJob], config: C) -> list[Counts]:
    """Run `function(inputs, output, config)` for each job and return its counts, in the order of `jobs`.

    Results are memoised in the store by (code, config, bytes of the inputs): only new shards cost anything, and a
    crash costs only the shards in flight. A worker that is killed costs its shard, which is done again.

    Raises:
        ValueError: whatever the function refused.
        RuntimeError: workers were killed more than MAX_POOL_DEATHS times (usually: out of memory).
    """
    memos = [_memo_path(run, function, job, config) for job in jobs]
    work = [_Work(job, memo, _input_bytes(job)) for job, memo in zip(jobs, memos) if not _intact(memo)]
    if work:
        with run.progress(function.__name__.replace("_", " "), sum(w.input_bytes for w in work), "bytes") as bar:
            for finished in _execute(run, function, work, config):
                bar.advance(finished.input_bytes)
    return [_deliver(memo, job.output) for job, memo in zip(jobs, memos)]


def _memo_path(run: StageRun, function: ShardFunction[C], job: ShardJob, config: C) -> Path:
    identity = {
        "function": f"{function.__module__}.{function.__qualname__}",
        "code": code_digest(function.__module__),
        "config": config.model_dump(mode="json"),
        "inputs": [[path.name, file_sha256(path)] for path in job.inputs],
    }
    key = hashlib.sha256(canonical_json(identity)).hexdigest()
    return run.store.home / "memo" / function.__name__ / key


def _input_bytes(job: ShardJob) -> int:
    return sum(path.stat().st_size for path in job.inputs)


def _intact(memo: Path) -> bool:
    """Whether the memo's bytes are those that were computed: it shares them with an artifact that may be damaged."""
    try:
        record = json.loads((memo / "counts.json").read_bytes())
        return bool(file_sha256(memo / "data") == record["sha256"])
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _deliver(memo: Path, output: Path) -> Counts:
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(memo / "data", output)  # one copy on disk, and a count of links that tells gc who still needs it
    except OSError:
        shutil.copyfile(memo / "data", output)
    counts: Counts = json.loads((memo / "counts.json").read_bytes())["counts"]
    return counts


def _compute(function: ShardFunction[C], work: _Work, config: C) -> None:
    """Run one job in a worker and keep its result; the counts are written last and make it valid."""
    work.memo.mkdir(parents=True, exist_ok=True)
    aside = work.memo / f"data.{os.getpid()}"
    counts = function(work.job.inputs, aside, config)
    record = {"counts": dict(counts), "sha256": file_sha256(aside)}
    aside.replace(work.memo / "data")
    write_atomically(work.memo / "counts.json", canonical_json(record))


def _execute(run: StageRun, function: ShardFunction[C], work: Sequence[_Work], config: C) -> Iterator[_Work]:
    if run.execution.workers == 1 or len(work) == 1:
        for item in work:
            _compute(function, item, config)
            yield item
        return
    yield from _execute_in_processes(run, function, work, config)


def _execute_in_processes(
    run: StageRun, function: ShardFunction[C], work: Sequence[_Work], config: C
) -> Iterator[_Work]:
    """Largest first, so that the last worker to finish holds the others up least."""
    left = sorted(work, key=lambda item: -item.input_bytes)
    deaths = 0
    while left:
        workers = min(run.execution.workers, len(left))
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent)
        try:
            with pool:
                futures = {pool.submit(_compute, function, item, config): item for item in left}
                for future in as_completed(futures):
                    future.result()
                    left.remove(futures[future])
                    yield futures[future]
        except BrokenProcessPool as error:
            deaths += 1
            left = [item for item in left if not _intact(item.memo)]
            if deaths >= MAX_POOL_DEATHS:
                raise RuntimeError(
                    f"{function.__name__}: a worker was killed {deaths} times, {len(left)} shards are left, the first "
                    f"is {left[0].job.inputs[0].name}. Usually memory ran out: use fewer workers or smaller shards."
                ) from error
            run.say(f"a worker was killed; {len(left)} shards are done again")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
