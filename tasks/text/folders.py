"""Files below a folder: which can be read, and what is passed over and why."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tasks.text.readers import is_readable
from tasks.text.readers.records import printable

UNKNOWN_ENDING = "unknown ending"
NO_RECORDS = "describes a data set that `datasets` saved"
NO_FILE = "a device or a pipe"
BROKEN_LINK = "a link that leads nowhere"
_SAVED = {"dataset_info.json", "state.json", "dataset_dict.json"}


class PassedOver(NamedTuple):
    """A file that is not read: its name, its size (0 where it has none) and why."""

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Found:
    """(name, path) of files that can be read, and the others."""

    named: list[tuple[str, Path]]
    passed_over: tuple[PassedOver, ...] = ()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name relative to the folder, path) of each file below it, hidden ones left out. Links to folders are followed,
    but not into a folder that holds the link.

    Raises:
        ValueError: a folder cannot be read.
    """
    yield from _walk(folder, "", frozenset([folder.resolve()]))


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{unreadable(error)}. Let this user read it, or take it out of the source.") from error
    for entry in entries:
        path, name = Path(entry.path), f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield name, path
        elif not entry.is_symlink():
            yield from _walk(path, f"{name}/", above | {path})
        elif (target := path.resolve()) not in above and not any(target in parent.parents for parent in above):
            yield from _walk(path, f"{name}/", above | {target})


def readable_of(files: Iterable[tuple[str, Path]]) -> Found:
    """The files that can be read, and why the others are not."""
    named: list[tuple[str, Path]] = []
    passed: list[PassedOver] = []
    for name, path in files:
        reason = _why_not(name, path)
        if reason:
            size = path.stat().st_size if path.exists() else 0
            passed.append(PassedOver(printable(name), size, reason))
        else:
            named.append((name, path))
    return Found(named, tuple(sorted(passed)))


def _why_not(name: str, path: Path) -> str:
    if not is_readable(name):
        return UNKNOWN_ENDING
    if not path.is_file():
        return NO_FILE if path.exists() else BROKEN_LINK
    is_saved = path.name in _SAVED and (any(path.parent.glob("*.arrow")) or any(path.parent.glob("*/*.arrow")))
    return NO_RECORDS if is_saved else ""


def in_words(passed: Iterable[PassedOver]) -> str:
    """How many files and bytes were passed over for each reason, unknown endings by ending, the most bytes first."""
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for file in passed:
        ending = Path(file.name).suffix or "nothing"
        why = f"{file.reason} {ending}" if file.reason == UNKNOWN_ENDING else file.reason
        files[why] += 1
        sizes[why] += file.bytes
    parts = [f"{files[why]} ({why}, {size:,} bytes)" for why, size in sizes.most_common(8)]
    return ", ".join([*parts, *(["and others"] if len(sizes) > 8 else [])])


def unreadable(error: OSError) -> str:
    """The path that cannot be read and why."""
    return f"{printable(str(error.filename))}: cannot be read ({error.strerror})"
