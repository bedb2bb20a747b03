"""Map a pure function over shards on whatever engine is at hand; what was mapped before is not mapped again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from tasks.mechanism.engines import compute_all
from tasks.mechanism.identity import canonical_json, code_digest
from tasks.mechanism.stage import StageConfig, StageRun
from tasks.mechanism.store import file_sha256, link_or_copy, write_atomically

C = TypeVar("C", bound=StageConfig)
Counts = Mapping[str, float]
ShardFunction = Callable[[tuple[Path, ...], Path, C], Counts]


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
        RuntimeError: workers were killed again and again (usually: out of memory).
    """
    paths = sorted({path for job in jobs for path in job.inputs})
    # Shards that are known cost their hashing only, which lets other threads run.
    with ThreadPoolExecutor(run.execution.workers) as pool:
        digests = dict(zip(paths, pool.map(file_sha256, paths)))
        memos = [_memo_path(run, function, job, config, digests) for job in jobs]
        intact = list(pool.map(_intact, memos))
    work = [_Work(job, memo, _input_bytes(job)) for job, memo, known in zip(jobs, memos, intact) if not known]
    if work:
        with run.progress(function.__name__.replace("_", " "), sum(w.input_bytes for w in work), "bytes") as bar:
            compute = partial(_compute, function, config)
            # Largest first, so that the last worker to finish holds the others up least.
            ordered = sorted(work, key=lambda item: -item.input_bytes)
            for finished in compute_all(compute, ordered, run.execution, run.say):
                bar.advance(finished.input_bytes)
    return [_deliver(memo, job.output) for job, memo in zip(jobs, memos)]


def _memo_path(
    run: StageRun, function: ShardFunction[C], job: ShardJob, config: C, digests: Mapping[Path, str]
) -> Path:
    identity = {
        "function": f"{function.__module__}.{function.__qualname__}",
        "code": code_digest(function.__module__),
        "config": config.model_dump(mode="json"),
        # A file name need not be UTF-8; a name that is stays as it is.
        "inputs": [[path.name.encode("utf-8", "backslashreplace").decode(), digests[path]] for path in job.inputs],
    }
    key = hashlib.sha256(canonical_json(identity)).hexdigest()
    return run.store.home / "memo" / function.__name__ / key


def _input_bytes(job: ShardJob) -> int:
    return sum(path.stat().st_size for path in job.inputs)


def _intact(memo: Path) -> bool:
    """Whether the memo's bytes are those that were computed: it shares them with an artifact that may be damaged."""
    try:
        record = json.loads((memo / "counts.json").read_bytes())
        # 1.6 GB/s (docs/scale.md), where the filter reads 41 MB of text per CPU-s.
        return bool(file_sha256(memo / "data") == record["sha256"])
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _deliver(memo: Path, output: Path) -> Counts:
    link_or_copy(memo / "data", output)
    counts: Counts = json.loads((memo / "counts.json").read_bytes())["counts"]
    return counts


def _compute(function: ShardFunction[C], config: C, work: _Work) -> None:
    """Run one job in a worker and keep its result; the counts are written last and make it valid."""
    work.memo.mkdir(parents=True, exist_ok=True)
    # A name of its own: memos serve many keys, and builders of two keys hold two locks.
    aside = work.memo / f"data.{uuid4().hex}"
    counts = function(work.job.inputs, aside, config)
    aside.replace(work.memo / "data")  # before it is hashed: a rename moves the ctime that a digest is remembered by
    record = {"counts": dict(counts), "sha256": file_sha256(work.memo / "data")}
    write_atomically(work.memo / "counts.json", canonical_json(record))
