"""Content-addressed artifacts and the manifests that explain them: published whole or not at all, verified on use."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

STORE_FORMAT = 1
_HASH_CHUNK_BYTES = 1 << 20


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
    input_bytes: int = 0  # unknown to manifests of the first version
    size_bytes: int
    created: str
    environment: dict[str, str]


class StoreDamage(Exception):
    """A manifest's object is missing or its bytes are not those that were published."""


def now_utc() -> str:
    """The current time, ISO 8601 in UTC with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


Stamp = tuple[int, int, int]
_known_digests: dict[tuple[int, int], tuple[Stamp, str]] = {}
"""(device, inode) -> a file's stamp when this process last hashed it, and its digest."""


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex; read once by a process as long as its size, mtime and ctime do not move."""
    status = path.stat()
    known = _known_digests.get((status.st_dev, status.st_ino))
    if known and known[0] == _stamp(status):
        return known[1]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _known_digests[status.st_dev, status.st_ino] = _stamp(status), digest
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
    if known and known[0] == _stamp(before):
        _known_digests[before.st_dev, before.st_ino] = _stamp(target.stat()), known[1]


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that a reader, or a crash, sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
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
            ValueError: the folder was written by a newer version, or cannot be written.
        """
        self.home = home.resolve()
        self.objects = self.home / "objects"
        self.keys = self.home / "keys"
        self._check_format()

    def _check_format(self) -> None:
        marker = self.home / "FORMAT"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                write_atomically(marker, f"{STORE_FORMAT}\n".encode())
        except OSError as error:
            raise ValueError(
                f"The home folder {self.home} cannot be written ({error.strerror}). Choose another with --home."
            ) from error
        found = marker.read_text().strip()
        if not found.isdigit() or int(found) > STORE_FORMAT:
            raise ValueError(
                f"The home folder {self.home} has format {found!r}; this version reads formats up to {STORE_FORMAT}. "
                "It was written by a newer version of Bessemer: upgrade, or choose another folder with --home."
            )

    def manifest_path(self, stage: str, key: str) -> Path:
        """Where the manifest of this stage and key lies, present or not."""
        return self.keys / stage / f"{key}.json"

    def scratch(self, stage: str, key: str) -> Path:
        """The folder of unfinished work under this key; survives a crash, so a rerun goes on from it."""
        path = self.home / "scratch" / stage / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the only right to build this key; flock(2), since the kernel frees it however its holder dies."""
        path = self.home / "locks" / f"{stage}-{key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def is_locked(self, stage: str, key: str) -> bool:
        """Whether somebody is building this key right now."""
        path = self.home / "locks" / f"{stage}-{key}"
        if not path.exists():
            return False
        with path.open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

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
        for path in list_files(directory):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        if target.exists():
            try:
                artifact = self.open(digest)
                shutil.rmtree(directory)
                return artifact
            except StoreDamage:
                shutil.rmtree(target)
        directory.rename(target)
        return Artifact(digest, target)

    def record(self, manifest: Manifest) -> None:
        """Write the manifest; from now on its key is a hit."""
        write_atomically(
            self.manifest_path(manifest.stage, manifest.key), manifest.model_dump_json(indent=1).encode() + b"\n"
        )

    def open(self, digest: str) -> Artifact:
        """The artifact with this digest, its bytes verified.

        A file is read again only if its size, mtime or ctime changed since it was last verified (writing to a file
        moves its ctime, which no user program can set back).

        Raises:
            StoreDamage: it is missing, or its bytes have changed.
        """
        path = self.objects / digest
        if not path.is_dir():
            raise StoreDamage(f"object {digest[:12]} is gone from {self.objects}")
        seen_path = self.home / "verified" / f"{digest}.json"
        stamps = {str(p.relative_to(path)): list(_stamp(p.stat())) for p in list_files(path)}
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


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_directory(directory: Path) -> tuple[str, int]:
    """(sha256 over sorted names, sizes and content hashes; total bytes) of a directory of regular files."""
    digest = hashlib.sha256()
    total = 0
    for path in list_files(directory):
        size = path.stat().st_size
        total += size
        digest.update(f"{path.relative_to(directory).as_posix()}\0{size}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest(), total
