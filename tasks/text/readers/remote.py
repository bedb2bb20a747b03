"""Files at fsspec addresses (s3, gs, https, memory, ...), copied next to the store once per version."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from tasks.mechanism.progress import Progress

_MAGIC = "*?["


def _every(name: str) -> bool:
    return True


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address. `name` is relative to the address, `path` where its copy lies or will lie."""

    name: str
    remote: str
    path: Path
    bytes: int


def download_files(address: str, cache: Path, wanted: Callable[[str], bool] = _every) -> list[tuple[str, Path]]:
    """(name, path) of local copies of the files at `address`, a file, a folder or a glob, whose names are `wanted`.

    A copy is kept under what the file system says identifies its version (etag, or size and time).

    Raises:
        ValueError: the address cannot be read.
    """
    with _explained(address):
        system, files = _look(address, cache, wanted)
        with Progress(f"download {address}", len(files), "files") as bar:
            for file in files:
                if not file.path.exists():
                    _copy(system, file.remote, file.path)
                bar.advance(1)
    return [(file.name, file.path) for file in files]


def list_remote(address: str, cache: Path, wanted: Callable[[str], bool] = _every) -> list[RemoteFile]:
    """The same files, none of them copied.

    Raises:
        ValueError: the address cannot be read.
    """
    with _explained(address):
        return _look(address, cache, wanted)[1]


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"{address}: cannot be read ({type(error).__name__}: {error}). Check the address, the credentials, and "
            "that the package for this kind of address is installed."
        ) from error


def _look(address: str, cache: Path, wanted: Callable[[str], bool]) -> tuple[AbstractFileSystem, list[RemoteFile]]:
    system, root = url_to_fs(address)
    base, remote = _list_files(system, str(root))
    files = []
    for path in remote:
        name = PurePosixPath(path).relative_to(base).as_posix()
        if wanted(name):
            version = hashlib.sha256(f"{path}\0{system.ukey(path)}".encode()).hexdigest()[:24]
            copy = cache / version / PurePosixPath(path).name
            files.append(RemoteFile(name, path, copy, int(system.size(path) or 0)))
    return system, files


def _list_files(system: AbstractFileSystem, root: str) -> tuple[PurePosixPath, list[str]]:
    """(the folder that names are relative to, paths on the remote system in order)."""
    if any(character in root for character in _MAGIC):
        parts = PurePosixPath(root).parts
        fixed = next(i for i, part in enumerate(parts) if any(character in part for character in _MAGIC))
        return PurePosixPath(*parts[:fixed]), sorted(path for path in system.glob(root) if system.isfile(path))
    if system.isdir(root):
        return PurePosixPath(root), sorted(system.find(root))
    if not system.exists(root):
        raise FileNotFoundError("there is nothing at this address")
    return PurePosixPath(root).parent, [root]


def _copy(system: AbstractFileSystem, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    system.get_file(name, str(aside))
    aside.replace(target)
