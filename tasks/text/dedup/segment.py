"""One immutable segment of the dedup index: sorted LSH band keys in files that are mapped, or merged block by block.

A merge reads and writes a block of each part at a time, so its memory depends on neither the corpus nor the segment.
A segment is written aside and renamed, so a crash leaves no half segment.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tasks.text.dedup.array_files import ArrayRows, ArrayWriter

BLOCK_ROWS = 1 << 16
"""Rows of each part that a merge holds at a time: about 50 MB for eight parts; four times as many is no faster."""

HEADER = "header.json"
U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class IndexParameters:
    """What two indices must have in common for their contents to be comparable."""

    scheme: str
    seed: int
    word_rules: str
    shingle_words: int
    bands: int
    rows: int
    bucket_size: int
    similarity: str
    threshold: float


@dataclass(frozen=True)
class Segment:
    """The kept documents of some neighbouring shards, memory-mapped.

    keys, places: (entries,) band by band, keys ascending within a band; a place numbers a document of this segment
    starts: (bands + 1,) where each band's entries begin
    exact, exact_places: (documents, 2), (documents,) 128-bit hashes of the texts, ascending by the first half
    sketches: (documents, permutations) low byte of each signature value, to tell most false candidates cheaply
    documents: (documents, 2) shard number, and row among the shard's signed documents
    """

    keys: U64
    places: U32
    starts: I64
    exact: U64
    exact_places: U32
    sketches: NDArray[np.uint8]
    documents: U32

    def band(self, band: int) -> tuple[U64, U32]:
        """Keys and places of one band."""
        part = slice(self.starts[band], self.starts[band + 1])
        return self.keys[part], self.places[part]

    def __len__(self) -> int:
        return len(self.documents)


_ARRAYS = tuple(Segment.__dataclass_fields__)


def write_segment(path: Path, segment: Segment, parameters: IndexParameters) -> None:
    """Write a segment that is in memory; the first of two writers of one segment wins."""
    with _published(path) as aside:
        for name in _ARRAYS:
            np.save(_array(aside, name), getattr(segment, name))
        # Last, and without fsync, which took 100 small merges from 5 to 43 s (docs/LOG.md): the header holds the bytes,
        # and a segment that lost some is judged again.
        _write_header(aside, parameters, len(segment))


def open_segment(path: Path, parameters: IndexParameters) -> Segment:
    """Map a segment into memory.

    Raises:
        ValueError: it was written with other parameters, which are named.
    """
    # Before anything is mapped: signatures of another seed or scheme would agree by chance, not fail.
    _check_parameters(path, parameters)
    return Segment(**{name: np.load(_array(path, name), mmap_mode="r") for name in _ARRAYS})


def is_complete(path: Path) -> bool:
    """Whether a segment is there with all its bytes: a machine that lost power may have kept the name alone."""
    try:
        return bool(json.loads((path / HEADER).read_bytes())["bytes"] == size_bytes(path))
    except (FileNotFoundError, ValueError, KeyError):
        return False


def size_bytes(path: Path) -> int:
    """Bytes of a segment's arrays."""
    return sum(_array(path, name).stat().st_size for name in _ARRAYS)


def merge(parts: Sequence[Path], path: Path, parameters: IndexParameters, block_rows: int = BLOCK_ROWS) -> None:
    """Write the documents of several segments as one, in their order, at most `bucket_size` entries a bucket.

    Raises:
        ValueError: a part was written with other parameters, which are named.
    """
    for part in parts:
        _check_parameters(part, parameters)
    with _published(path) as aside:
        for name in ("documents", "sketches"):
            _concatenate([ArrayRows(_array(part, name)) for part in parts], _array(aside, name), block_rows)
        sizes = [len(ArrayRows(_array(part, "documents"))) for part in parts]
        shifts = [sum(sizes[:number]) for number in range(len(parts))]
        _merge_hashes(parts, shifts, aside, block_rows)
        np.save(_array(aside, "starts"), _merge_bands(parts, shifts, aside, parameters, block_rows))
        _write_header(aside, parameters, sum(sizes))


def _merge_hashes(parts: Sequence[Path], shifts: Sequence[int], aside: Path, block_rows: int) -> None:
    runs = [
        _Run(ArrayRows(_array(part, "exact")), ArrayRows(_array(part, "exact_places")), shift)
        for part, shift in zip(parts, shifts)
    ]
    with ArrayWriter(_array(aside, "exact")) as exact, ArrayWriter(_array(aside, "exact_places")) as places:
        for block_hashes, block_places in _merged_blocks(runs, block_rows):
            exact.append(block_hashes)
            places.append(block_places)


def _merge_bands(
    parts: Sequence[Path], shifts: Sequence[int], aside: Path, parameters: IndexParameters, block_rows: int
) -> I64:
    """Merge band after band; returns where each begins. (bands + 1,)"""
    borders = [np.load(_array(part, "starts")).tolist() for part in parts]
    starts = [0]
    with ArrayWriter(_array(aside, "keys")) as keys, ArrayWriter(_array(aside, "places")) as places:
        for band in range(parameters.bands):
            runs = [
                _Run(ArrayRows(_array(part, "keys"), *ends), ArrayRows(_array(part, "places"), *ends), shift)
                for part, shift, ends in zip(parts, shifts, (of[band : band + 2] for of in borders))
            ]
            for block_keys, block_places in _merged_blocks(runs, block_rows):
                # Later entries of a full bucket are never looked at, so leaving them out changes no verdict.
                first = rank_in_run(block_keys) < parameters.bucket_size
                keys.append(block_keys[first])
                places.append(block_places[first])
            starts.append(len(keys))
    return np.array(starts, np.int64)


def rank_in_run(ordered: U64) -> I64:
    """Position of each value within its run of equal values."""
    positions = np.arange(len(ordered))
    begins = np.ones(len(ordered), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    ranks: I64 = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return ranks


def _concatenate(parts: Sequence[ArrayRows], path: Path, block_rows: int) -> None:
    with ArrayWriter(path) as whole:
        for part in parts:
            # An empty part is written once too: the file needs its type and width.
            for start in range(0, max(len(part), 1), block_rows):
                whole.append(part.read(start, block_rows))


@dataclass(frozen=True)
class _Run:
    """Keys of one part, ascending by their first column, and their places, which `shift` documents precede."""

    keys: ArrayRows
    places: ArrayRows
    shift: int


def _merged_blocks(runs: Sequence[_Run], block_rows: int) -> Iterator[tuple[U64, U32]]:
    """The keys of all runs in order, equal ones in the order of the runs, and their places; equal keys in one block."""
    done = [0] * len(runs)
    rows = block_rows
    while True:
        heads = [run.keys.read(start, rows) for run, start in zip(runs, done)]
        # Of a run that goes on, only what is below its last key read is known to be all there is.
        known = [_first(head)[-1] for run, start, head in zip(runs, done, heads) if start + len(head) < len(run.keys)]
        counts = [int(np.searchsorted(_first(head), min(known))) if known else len(head) for head in heads]
        if known and not any(counts):
            rows *= 2  # one key fills all that was read
            continue
        keys = np.concatenate([head[:count] for head, count in zip(heads, counts)])
        places = np.concatenate([run.places.read(s, n) + np.uint32(run.shift) for run, s, n in zip(runs, done, counts)])
        # Stable: equal keys stay in the order of the runs, which is that in which documents came.
        order = np.argsort(_first(keys), kind="stable")
        yield keys[order], places[order]
        if not known:
            return
        done = [start + count for start, count in zip(done, counts)]
        rows = block_rows


def _first(keys: U64) -> U64:
    """The column that keys are sorted by."""
    return keys if keys.ndim == 1 else keys[:, 0]


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A folder to fill, which then becomes `path`; where that is there already, it stays."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        yield aside
        if not is_complete(path):  # names are digests of everything that the content depends on
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _array(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _write_header(folder: Path, parameters: IndexParameters, documents: int) -> None:
    header = {"parameters": asdict(parameters), "documents": documents, "bytes": size_bytes(folder)}
    (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n")


def _check_parameters(path: Path, parameters: IndexParameters) -> None:
    found = json.loads((path / HEADER).read_text())["parameters"]
    for name, expected in asdict(parameters).items():
        if found.get(name) != expected:
            raise ValueError(
                f"The dedup index {path.name} was written with {name} = {found.get(name)!r}, this run has "
                f"{expected!r}: their documents cannot be compared. Use the same dedup settings or another home."
            )
