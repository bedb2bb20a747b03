"""Where text comes from: an address becomes a list of local files, identified by their names and bytes alone."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from glob import has_magic
from pathlib import Path, PurePosixPath

import xxhash

from tasks.mechanism.identity import canonical_json
from tasks.mechanism.store import file_sha256, file_stamp, write_atomically
from tasks.text.dated import DatedAddress, parse_dated
from tasks.text.folders import UNKNOWN_ENDING, Found, PassedOver, in_words, readable_of, unreadable, walk
from tasks.text.python.pydocs import library_files
from tasks.text.readers import is_readable, known_endings
from tasks.text.readers.hub import download_dataset, parse_dataset_spec
from tasks.text.readers.records import printable
from tasks.text.readers.remote import download_files, list_remote

PYTHON_DOCS = "python-docs"
"""The embedded corpus: documentation in the source of the standard library and of installed libraries."""

# hashlib releases the GIL, so threads hash at once.
HASHING_THREADS = 4
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `name` is relative and POSIX; `path` is where it lies on this machine and never identity."""

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Files in the order of their names; `digest` covers names and content, and what was passed over."""

    digest: str
    files: tuple[SourceFile, ...]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


def resolve_source(spec: str, cache: Path) -> Source:
    """The files that `spec` stands for: `python-docs`, a file, a folder, a glob, dated folders (`crawl/{date}`), an
    fsspec address (`s3://...`) or a hub data set (`org/name[:config][:split]`). Remote content is copied below `cache`,
    where hashes are kept too.

    Raises:
        ValueError: nothing is there, or nothing in it can be read.
    """
    try:
        found = _named_files(spec, cache)
    except PermissionError as error:
        raise ValueError(f"{unreadable(error)}. Let this user read it, or take it out of the source.") from error
    if not found.named:
        passed = f" Passed over: {in_words(found.passed_over)}." if found.passed_over else ""
        raise ValueError(f"{spec}: found no file that can be read. Expected {known_endings()}.{passed}")
    return source_of_files(found.named, cache, found.passed_over)


def absolute(spec: str) -> str:
    """The same source for a process that works in another folder."""
    if spec == PYTHON_DOCS or "://" in spec:
        return spec
    path = _local_path(spec)
    return str(Path.cwd() / path) if path.exists() or has_magic(spec) or parse_dated(spec) else spec


def _local_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise ValueError(
            f"{text}: there is no user {user}. Check the path; ./{user} is a folder of this name."
        ) from error


def source_of_files(named: Iterable[tuple[str, Path]], cache: Path, passed_over: tuple[PassedOver, ...] = ()) -> Source:
    """A source of these (name, path) pairs, hashed; hashes are remembered by path and stamp.

    Raises:
        ValueError: a file cannot be opened.
    """
    memo_path = cache / "hashes.json"
    memo: dict[str, list[int | str]] = _read_memo(memo_path)
    ordered = sorted(named)
    try:
        stats = [path.stat() for _, path in ordered]
        stamps = [list(file_stamp(status)) for status in stats]
        # Size, mtime, ctime and inode: a file put in place of another may have its size and mtime.
        missing = [i for i, (_, path) in enumerate(ordered) if memo.get(printable(str(path)), [])[:-1] != stamps[i]]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            for i, digest in zip(missing, pool.map(file_sha256, [ordered[i][1] for i in missing])):
                memo[printable(str(ordered[i][1]))] = [*stamps[i], digest]
    except OSError as error:
        raise ValueError(f"{unreadable(error)}. Let this user read it, or take it out of the source.") from error
    if missing:
        write_atomically(memo_path, json.dumps(memo).encode())
    files = tuple(
        SourceFile(printable(name), path, status.st_size, str(memo[printable(str(path))][-1]))
        for (name, path), status in zip(ordered, stats)
    )
    identity = [[f.name, f.sha256] for f in files] + [[p.name, p.reason, p.bytes] for p in passed_over]
    return Source(hashlib.sha256(canonical_json(identity)).hexdigest(), files, passed_over)


def _read_memo(path: Path) -> dict[str, list[int | str]]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}  # absent or torn: hash again


def _named_files(spec: str, cache: Path) -> Found:
    if spec == PYTHON_DOCS:
        return Found(list(library_files()))
    dated = parse_dated(spec)
    if dated:
        return _dated_files(dated, cache)
    if "://" in spec:
        return _remote_files(spec, cache)
    path = _local_path(spec)
    if path.is_file():
        if not is_readable(path.name):
            raise ValueError(
                f"{spec}: files that end in {path.suffix or 'nothing'} cannot be read. Expected {known_endings()}."
            )
        return Found([(path.name, path.resolve())])
    if path.is_dir():
        return readable_of(walk(path.resolve()))
    if has_magic(spec):
        return _glob_files(path)
    dataset = parse_dataset_spec(spec)
    if dataset is None:
        raise ValueError(
            f"{spec}: there is no such file or folder, and it is not the form of a hub data set (org/name). Check the "
            f"path (looked in {Path.cwd()}), or use `{PYTHON_DOCS}` for the embedded corpus."
        )
    return Found(download_dataset(dataset, cache / "hub"))


def _remote_files(spec: str, cache: Path, wanted: Callable[[str], bool] = lambda name: True) -> Found:
    """What can be read at an fsspec address; the rest is listed and not copied."""
    remote = list_remote(spec, cache / "remote", wanted)
    passed = [
        PassedOver(printable(file.name), file.bytes, UNKNOWN_ENDING) for file in remote if not is_readable(file.name)
    ]
    named = download_files(spec, cache / "remote", lambda name: wanted(name) and is_readable(name))
    return Found(named, tuple(sorted(passed)))


@dataclass(frozen=True)
class DatedFile:
    """A file of a dated corpus as it is listed: nothing of it was read, and at a remote address it may not be here."""

    day: date
    name: str
    path: Path
    bytes: int


def list_dated(address: DatedAddress, cache: Path) -> list[DatedFile]:
    """Every file below dated folders that can be read, in the order of names; copies and hashes nothing.

    Raises:
        ValueError: the folder that should hold them does not exist, or the address cannot be read.
    """
    if "://" in address.root:
        remote = list_remote(address.root, cache / "remote", address.includes_file)
        found = [(file.name, file.path, file.bytes) for file in remote if is_readable(file.name)]
    else:
        found = [(name, path, path.stat().st_size) for name, path in _dated_files(address, cache).named]
    days = [(address.day_of(name), name, path, size) for name, path, size in sorted(found)]
    return [DatedFile(day, name, path, size) for day, name, path, size in days if day]


def _dated_files(address: DatedAddress, cache: Path) -> Found:
    """Names are relative to the folder that holds the dates, as if all of it had been asked for."""
    if "://" in address.root:
        return _remote_files(address.root, cache, address.includes_file)
    root = _local_path(address.root)
    if not root.is_dir():
        raise ValueError(f"{address}: there is no such folder as {root} (looked in {Path.cwd()}). Check the path.")
    return readable_of((name, path) for name, path in walk(root.resolve()) if address.includes_file(name))


def _glob_files(pattern: Path) -> Found:
    """Files that match; their names are relative to the part of the pattern without wildcards."""
    fixed = next(i for i, part in enumerate(pattern.parts) if has_magic(part))
    root = Path(*pattern.parts[:fixed]).resolve()
    try:
        matches = list(root.glob(str(Path(*pattern.parts[fixed:]))))
    except ValueError as error:
        raise ValueError(f"{pattern}: not a glob ({error}). Write folders at any depth as folder/**/*.txt.") from error
    return readable_of((match.relative_to(root).as_posix(), match) for match in matches if match.is_file())


def group_files(files: Iterable[SourceFile], group_bytes: int) -> list[list[SourceFile]]:
    """Cut the sorted files into groups of about `group_bytes` whose borders depend on each file's own name and size.

    A file opens a group with probability size / group_bytes, decided by the hash of its name; so a file that is added
    or changed touches the group it falls into and no other.
    """
    groups: list[list[SourceFile]] = []
    for file in files:
        # A file of `group_bytes` or more always opens one.
        opens = xxhash.xxh3_64_intdigest(file.name.encode()) < (file.bytes / group_bytes) * 2**64
        if opens or not groups:
            groups.append([])
        groups[-1].append(file)
    return groups


def group_name(group: list[SourceFile]) -> str:
    """A file-system name for a group, from its first file: readable, unique, unchanged while that file opens it."""
    first = group[0].name
    readable = _SLUG.sub("_", str(PurePosixPath(first)))[:60].strip("._")
    return f"{readable}-{xxhash.xxh3_64_hexdigest(first.encode())[:8]}"


@lru_cache(maxsize=1024)
def source_name(name: str) -> str:
    """What figures are told apart by: the top folder of a file, or its name without endings."""
    path = PurePosixPath(name)
    return path.parts[0] if len(path.parts) > 1 else path.name.partition(".")[0] or path.name
