"""What a source's Python files document: extracted once, read by three stages.

Parsing is the costly part (half a minute for the embedded corpus). `map_shards` remembers its results by content, so
the second stage that asks for the same files gets them at once.
"""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.mechanism.identity import canonical_json
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import StageConfig, StageRun
from tasks.text.documents import write_table
from tasks.text.python.pydocs import Entry, read_entries
from tasks.text.source import SourceFile, group_files, group_name

GROUP_BYTES = 8_000_000
"""Python source that one job parses: about three seconds."""

_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("signature", pa.string()),
        ("doc", pa.string()),
        ("line", pa.int64()),
        ("error", pa.string()),
    ]
)


class EntriesConfig(StageConfig):
    """Nothing to choose: the stages that share the entries must agree on them."""


@dataclass(frozen=True)
class FileEntries:
    """The entries of one file, or why it could not be read; `line` is where."""

    file: str
    entries: list[Entry]
    error: str = ""
    line: int = 0


def is_python(file: SourceFile) -> bool:
    """Whether the file is Python source."""
    return file.name.endswith(".py")


def extract_entries(run: StageRun, files: Sequence[SourceFile]) -> list[Path]:
    """One Parquet file of entries for each group of the Python files among `files`."""
    jobs = []
    for group in group_files([file for file in files if is_python(file)], GROUP_BYTES):
        name = group_name(group)
        listing = write_listing(run, group)
        jobs.append(ShardJob((listing, *(f.path for f in group)), run.scratch / "entries" / f"{name}.parquet"))
    map_shards(run, parse_python, jobs, EntriesConfig())
    return [job.output for job in jobs]


def write_listing(run: StageRun, group: Sequence[SourceFile]) -> Path:
    """The names of a group's files, as a file: a shard function sees nothing but files and its config."""
    path = run.scratch / "listings" / f"{group_name(list(group))}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical_json([file.name for file in group]))
    return path


def parse_python(inputs: tuple[Path, ...], output: Path, config: EntriesConfig) -> Mapping[str, float]:
    """Write the entries of the files that the first input lists."""
    listing, *paths = inputs
    rows: list[dict[str, object]] = []
    gc.disable()  # syntax trees have no cycles, and walking a million live nodes over and over takes half the time
    for name, path in zip(json.loads(listing.read_bytes()), paths, strict=True):
        found = _parse(name, path)
        rows += [{"file": name, "error": "", **asdict(entry)} for entry in found.entries]
        if found.error:
            rows.append({"file": name, "kind": "", "line": found.line, "error": found.error})
    gc.enable()
    write_table(pa.Table.from_pylist(rows, _SCHEMA), output)
    return {"entries": float(len(rows))}


def _parse(name: str, path: Path) -> FileEntries:
    try:
        return FileEntries(name, read_entries(path.read_text(encoding="utf-8-sig"), name))
    except UnicodeDecodeError as error:
        return FileEntries(name, [], f"not UTF-8 at byte {error.start}")
    # ValueError: a null byte; RecursionError: nested too deeply for the parser.
    except (SyntaxError, ValueError, RecursionError) as error:
        return FileEntries(name, [], f"not Python of this version: {error}", getattr(error, "lineno", 0) or 0)


def read_entry_files(path: Path) -> Iterator[FileEntries]:
    """The entries that `extract_entries` wrote, file by file."""
    entries: list[Entry] = []
    current = ""
    for row in pq.read_table(path).to_pylist():
        if row["file"] != current and entries:
            yield FileEntries(current, entries)
            entries = []
        current = row["file"]
        if row["error"]:
            yield FileEntries(current, [], row["error"], row["line"])
        else:
            entries.append(Entry(row["kind"], row["name"], row["signature"], row["doc"], row["line"]))
    if entries:
        yield FileEntries(current, entries)
