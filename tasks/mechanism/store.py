"""Content-addressed artifacts and the manifests that explain them: published whole or not at all, verified on use."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from tasks.mechanism.locks import hold, is_held

STORE_FORMAT = 2
"""Raised when keys or files change their form. Nothing of an older form is read: what it holds can be built again."""


@dataclass(frozen=True)
class Artifact:
    """A published directory. Its digest covers every file's name and bytes, so equal digests mean equal content."""

    digest: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in list_files(self.path))


class Manifest(BaseModel):
    """Where an artifact came from and what it cost; kept at `keys/<stage>/<key>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    label: str
    version: int
    key: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    code_digest: str
    metrics: dict[str, float]
    seconds: float
    cpu_seconds: float
    input_bytes: int
    size_bytes: int
    created: str
    environment: dict[str, str]


class StoreDamage(Exception):
    """A manifest's object is missing or its bytes are not those that were published."""


def now_utc() -> str:
    """The current time, ISO 8601 in UTC with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


Stamp = tuple[int, int, int, int]
"""(size, mtime, ctime, inode): as long as none of them moves, a file's bytes are those that were hashed."""

_known_digests: dict[tuple[int, int], tuple[Stamp, str]] = {}
"""(device, inode) -> a file's stamp when this process last hashed it, and its digest."""


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex; read once by a process as long as its stamp does not move."""
    status = path.stat()
    # By inode: a memo and the artifact that holds it are one file under two names, hashed once.
    known = _known_digests.get((status.st_dev, status.st_ino))
    if known and known[0] == file_stamp(status):
        return known[1]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _known_digests[status.st_dev, status.st_ino] = file_stamp(status), digest
    return digest


def link_or_copy(source: Path, target: Path) -> None:
    """Give `target`'s name to the bytes of `source`: one copy on disk where the file system can.

    The number of links tells gc who still needs the bytes. A link moves ctime, which is no reason to hash again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # scratch may hold one from before a crash
    before = source.stat()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return
    known = _known_digests.get((before.st_dev, before.st_ino))
    if known and known[0] == file_stamp(before):
        _known_digests[before.st_dev, before.st_ino] = file_stamp(target.stat()), known[1]


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that a reader, or a crash, sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic within one file system only.
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut could leave the new name without its bytes
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def explain_full_disk(home: Path, doing: str) -> Iterator[None]:
    """Turn the system's error for a full disk, or a spent quota, into one that says what to do.

    Raises:
        ValueError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"No space left on the disk of {home} while {doing}. What was built before is safe and an unfinished stage "
            "goes on from its last checkpoint: free some space (`bessemer gc` removes what no kept run needs) and run "
            "the same command again."
        ) from error


def list_files(directory: Path) -> list[Path]:
    """All regular files below `directory`, sorted by their POSIX relative name."""
    return sorted((path for path in directory.rglob("*") if path.is_file()), key=Path.as_posix)


class Store:
    """One folder that holds artifacts (`objects/`), manifests (`keys/`), unfinished work (`scratch/`) and locks."""

    def __init__(self, home: Path) -> None:
        """Open or create the store.

        Raises:
            ValueError: the folder was written by a newer or an older version, or cannot be written.
        """
        try:
            self.home = home.resolve()
        except (ValueError, RuntimeError) as error:  # a NUL in its name; links that lead to themselves
            raise ValueError(
                f"The home folder {str(home)!r} cannot be found: {error}. Choose another with --home."
            ) from error
        self.objects = self.home / "objects"
        self.keys = self.home / "keys"
        self._check_format()

    def _check_format(self) -> None:
        marker = self.home / "FORMAT"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not marker.exists():  # a home of the first format had the marker too, so what has none is new
                write_atomically(marker, f"{STORE_FORMAT}\n".encode())
        except OSError as error:
            raise ValueError(
                f"The home folder {self.home} cannot be written ({error.strerror}). Choose another with --home."
            ) from error
        found = marker.read_text().strip()
        if found != str(STORE_FORMAT):
            raise ValueError(_wrong_format(self.home, found))

    def manifest_path(self, stage: str, key: str) -> Path:
        """Where the manifest of this stage and key lies, present or not."""
        return self.keys / stage / f"{key}.json"

    def scratch(self, stage: str, key: str) -> Path:
        """The folder of unfinished work under this key; survives a crash, so a rerun goes on from it."""
        path = self.home / "scratch" / stage / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def lock(self, stage: str, key: str) -> AbstractContextManager[None]:
        """Hold the only right to build this key."""
        return hold(self._lock_path(stage, key))

    def is_locked(self, stage: str, key: str) -> bool:
        """Whether somebody is building this key right now."""
        return is_held(self._lock_path(stage, key))

    def is_busy(self) -> bool:
        """Whether anybody is building anything in this home."""
        return any(is_held(path) for path in (self.home / "locks").glob("*"))

    def unlock(self, stage: str, key: str) -> None:
        """Remove the file of a lock that nobody will take again."""
        self._lock_path(stage, key).unlink(missing_ok=True)

    def _lock_path(self, stage: str, key: str) -> Path:
        return self.home / "locks" / f"{stage}-{key}"

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of this key, whether or not its object is intact; None where it was never built."""
        path = self.manifest_path(stage, key)
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return None  # a torn or foreign file explains nothing: rebuild

    def manifests(self) -> list[Manifest]:
        """Every readable manifest, oldest first."""
        found = (self.find(path.parent.name, path.stem) for path in self.keys.glob("*/*.json"))
        return sorted((m for m in found if m is not None), key=lambda m: (m.created, m.key))

    def publish(self, directory: Path) -> Artifact:
        """Move a finished directory into `objects/` under its digest; a twin that is already there wins."""
        digest, _ = digest_directory(directory)
        target = self.objects / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in list_files(directory):  # a manifest, which is synced too, must never outlive its bytes
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        if target.exists():
            try:
                artifact = self.open(digest)
                shutil.rmtree(directory)
                return artifact
            except StoreDamage:
                shutil.rmtree(target)  # the twin is damaged, this one is not
        directory.rename(target)
        return Artifact(digest, target)

    def record(self, manifest: Manifest) -> None:
        """Write the manifest; from now on its key is a hit."""
        write_atomically(
            self.manifest_path(manifest.stage, manifest.key), manifest.model_dump_json(indent=1).encode() + b"\n"
        )

    def open(self, digest: str) -> Artifact:
        """The artifact with this digest, its bytes verified: those of files whose stamp moved since they last were.

        Raises:
            StoreDamage: it is missing, or its bytes have changed.
        """
        path = self.objects / digest
        if not path.is_dir():
            raise StoreDamage(f"object {digest[:12]} is gone from {self.objects}")
        seen_path = self.home / "verified" / f"{digest}.json"
        # Lists for tuples, as JSON gives them back.
        stamps = {str(p.relative_to(path)): list(file_stamp(p.stat())) for p in list_files(path)}
        try:
            if json.loads(seen_path.read_bytes()) == stamps:
                return Artifact(digest, path)
        except (FileNotFoundError, ValueError):
            pass
        found, _ = digest_directory(path)
        if found != digest:
            raise StoreDamage(f"object {digest[:12]} has changed on disk (its bytes now hash to {found[:12]})")
        with suppress(OSError):  # on a full disk it is verified again next time
            write_atomically(seen_path, json.dumps(stamps).encode())
        return Artifact(digest, path)

    def discard(self, digest: str) -> None:
        """Delete an object and what is remembered about it."""
        (self.home / "verified" / f"{digest}.json").unlink(missing_ok=True)
        shutil.rmtree(self.objects / digest, ignore_errors=True)


def _wrong_format(home: Path, found: str) -> str:
    expected = f"The home folder {home} has format {found!r}; this version of Bessemer reads format {STORE_FORMAT}."
    if found.isdigit() and int(found) < STORE_FORMAT:
        return (
            f"{expected} It was written by an older version, and nothing in it can be used: a rerun rebuilds every "
            "stage, training too. Choose another folder with --home, or remove this one and run again."
        )
    return f"{expected} It was written by a newer version: upgrade, or choose another folder with --home."


def file_stamp(status: os.stat_result) -> Stamp:
    """What moves when a file's bytes do.

    Size and mtime alone stay when a file is replaced with its times kept (tar, rsync -t, git-annex). The kernel sets
    ctime at every write, and no user program can set it back; a file that is renamed over another has its own inode.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def digest_directory(directory: Path) -> tuple[str, int]:
    """(sha256 over sorted names, sizes and content hashes; total bytes) of a directory of regular files."""
    digest = hashlib.sha256()
    total = 0
    for path in list_files(directory):
        size = path.stat().st_size
        total += size
        # No name holds a NUL, so no two directories make one line.
        digest.update(f"{path.relative_to(directory).as_posix()}\0{size}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest(), total
