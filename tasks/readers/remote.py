"""Files at fsspec addresses (s3, gs, https, memory, ...), copied next to the store once per version."""

import hashlib
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from tasks.progress import Progress

_MAGIC = "*?["


def download_files(address: str, cache: Path) -> list[tuple[str, Path]]:
    """(name, path) of local copies of the files at `address`: a file, a folder or a glob.

    A copy is kept under what the file system says identifies its version (etag, or size and time).

    Raises:
        ValueError: the address cannot be read.
    """
    try:
        system, root = url_to_fs(address)
        base, remote = _list_files(system, str(root))
        copies = []
        with Progress(f"download {address}", len(remote), "files") as bar:
            for name in remote:
                version = hashlib.sha256(f"{name}\0{system.ukey(name)}".encode()).hexdigest()[:24]
                copies.append((name, cache / version / PurePosixPath(name).name))
                if not copies[-1][1].exists():
                    _copy(system, name, copies[-1][1])
                bar.advance(1)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"{address}: cannot be read ({type(error).__name__}: {error}). Check the address, the credentials, and "
            "that the package for this kind of address is installed."
        ) from error
    return [(PurePosixPath(name).relative_to(base).as_posix(), path) for name, path in copies]


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
