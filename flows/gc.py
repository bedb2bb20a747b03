"""Free the disk of what no kept run and no champion needs: objects, manifests, shard results, index, scratch.

It may be run while runs go on, however many were started since: what a living run has, builds or downloads stays.
"""

import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.champion import Champion
from tasks.mechanism.runs import RunRecord, is_alive, list_runs, run_folder
from tasks.mechanism.store import Manifest, Store
from tasks.text.dedup.dedup import index_folder
from tasks.text.dedup.index import unclaimed


@dataclass(frozen=True)
class Garbage:
    """What a collection removes, or would remove.

    memos: results of single shards
    index: entries of dedup's index: claims, verdicts, signatures and segments
    bytes: what the disk gets back of objects, scratch, memos and index
    """

    runs: list[str]
    manifests: list[Manifest]
    objects: list[str]
    scratch: list[Path]
    memos: list[Path]
    index: list[Path]
    bytes: int


def find_garbage(store: Store, keep_runs: int) -> Garbage:
    """Everything that is reachable neither from a kept run, through its inputs, nor from a champion.

    Kept are the latest `keep_runs` runs and all that are alive.
    """
    # An artifact appears as an object first, then in a manifest (till then its builder holds a lock), then in the run's
    # record. Looked at in this order, one that is on its way is seen in one place at least.
    published = [path.name for path in sorted(store.objects.glob("*"))]
    is_busy = store.is_busy()
    manifests = store.manifests()
    runs = list_runs(store)
    alive = [run for run in runs if is_alive(store, run)]
    # From the front: [-keep_runs:] would keep all of them where it is 0.
    kept_runs = [*alive, *(run for run in runs[max(0, len(runs) - keep_runs) :] if run not in alive)]
    roots = {record.digest for run in kept_runs for record in run.stages} | _champion_digests(store)
    roots |= _arrived(store, manifests, alive)
    live = _reachable(roots, manifests)
    kept_keys = {(record.stage, record.key) for run in kept_runs for record in run.stages}
    dead = [m for m in manifests if m.digest not in live and (m.stage, m.key) not in kept_keys]
    unexplained = set(published) - {m.digest for m in manifests} if is_busy else set()
    objects = [name for name in published if name not in live | unexplained]
    kept_ids = {run.run_id for run in kept_runs}
    finished = [run.run_id for run in runs if run.run_id not in kept_ids]
    unfinished = sorted((store.home / "scratch").glob("*/*"))
    scratch = [path for path in unfinished if not _is_locked(store, path)]
    index = _unclaimed_index(store, {m.key for m in dead})
    dying = [*(store.objects / name for name in objects), *scratch, *index]
    # While a stage is built, a result that nothing holds yet may be one of its shards'.
    memos = _unlinked_memos(store, dying) if len(scratch) == len(unfinished) else []
    return Garbage(finished, dead, objects, scratch, memos, index, _freed_bytes([*dying, *memos]))


def collect(store: Store, garbage: Garbage) -> None:
    """Remove it: manifests first, so that a crash never leaves a hit without its bytes."""
    for manifest in garbage.manifests:
        path = store.manifest_path(manifest.stage, manifest.key)
        path.unlink(missing_ok=True)
        path.with_suffix(".curve.jsonl").unlink(missing_ok=True)
    for digest in garbage.objects:
        store.discard(digest)
    for path in [*garbage.scratch, *garbage.memos]:
        shutil.rmtree(path, ignore_errors=True)
    with store.lock("dedup", "index"):
        # Looked at again under the lock: a run that began since may have claimed what seemed dead.
        still = set(_unclaimed_index(store, set()))
        for path in garbage.index:
            if path in still:
                _remove(path)
    # Records last: what a crash leaves undone the next collection finds again.
    for run_id in garbage.runs:
        (run_folder(store) / f"{run_id}.json").unlink(missing_ok=True)
        store.unlock("run", run_id)


def _arrived(store: Store, manifests: Iterable[Manifest], alive: Iterable[RunRecord]) -> set[str]:
    """What came since the first of the living runs began: one of them may be about to write it into its record."""
    since = min((datetime.fromisoformat(run.started).timestamp() for run in alive), default=math.inf)
    found = set()
    for manifest in manifests:
        with suppress(FileNotFoundError):
            if store.manifest_path(manifest.stage, manifest.key).stat().st_mtime >= since:
                found.add(manifest.digest)
    return found


def _champion_digests(store: Store) -> set[str]:
    found: set[str] = set()
    for path in (store.home / "champions").glob("*.json"):
        champion = Champion.model_validate_json(path.read_bytes())
        found |= {*champion.models.values(), champion.evaluation, champion.predecessor_evaluation}
    return found - {""}  # the first champion replaced nobody


def _reachable(roots: Iterable[str], manifests: list[Manifest]) -> set[str]:
    """The roots and, through any manifest that explains them, all their inputs.

    A model that training went on from is kept, not what it was made of: else each champion would keep all before it.
    """
    inputs: dict[str, set[str]] = {}
    for manifest in manifests:
        made_of = {digest for name, digest in manifest.inputs.items() if name != "start"}
        inputs.setdefault(manifest.digest, set()).update(made_of)
    live: set[str] = set()
    queue = list(roots)
    while queue:
        digest = queue.pop()
        if digest not in live:
            live.add(digest)
            queue += inputs.get(digest, ())
    starts = {m.inputs["start"] for m in manifests if "start" in m.inputs and m.digest in live}
    return live | starts


def _is_locked(store: Store, scratch: Path) -> bool:
    """Whether somebody is building this key right now."""
    return store.is_locked(scratch.parent.name, scratch.name)


def _unclaimed_index(store: Store, dead_keys: set[str]) -> list[Path]:
    """What of dedup's index no artifact stands on, nor one that is being built."""
    claims = {m.key for m in store.manifests() if m.stage == "dedup"} - dead_keys
    building = {path.name for path in (store.home / "scratch" / "dedup").glob("*") if _is_locked(store, path)}
    return unclaimed(index_folder(store), claims | building)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unlinked_memos(store: Store, dying: Iterable[Path]) -> list[Path]:
    """Shard results that no object shares any more; a result that an object holds costs no disk of its own."""
    names = Counter((status.st_dev, status.st_ino) for status in _files(dying))
    found = []
    for memo in sorted((store.home / "memo").glob("*/*")):
        data = memo / "data"
        if data.exists():
            status = data.stat()
            if status.st_nlink - names[status.st_dev, status.st_ino] > 1:  # 1: the memo's own name
                continue
        found.append(memo)
    return found


def _freed_bytes(dying: Iterable[Path]) -> int:
    """Bytes of the files that lose their last name; one with several names counts once."""
    names: Counter[tuple[int, int]] = Counter()
    freed = 0
    for status in _files(dying):
        names[status.st_dev, status.st_ino] += 1
        if names[status.st_dev, status.st_ino] == status.st_nlink:
            freed += status.st_size
    return freed


def _files(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Every file that is one of the paths or below one; what another process removes meanwhile is passed over."""
    for path in paths:
        for file in [path, *path.rglob("*")]:
            with suppress(FileNotFoundError):
                status = file.stat()
                if stat.S_ISREG(status.st_mode):
                    yield status
