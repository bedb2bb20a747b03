"""Segments of the dedup index: merged in blocks they are the sorted union, byte for byte, in bounded memory."""

import tempfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.dedup.dedup import DedupConfig, index_parameters
from tasks.text.dedup.index import find, find_exact, locate
from tasks.text.dedup.segment import (
    IndexParameters,
    Segment,
    is_complete,
    merge,
    open_segment,
    rank_in_run,
    write_segment,
)

BANDS = 2
PARAMETERS = index_parameters(DedupConfig(bands=BANDS))


def make_segment(keys: np.ndarray, shard: int = 0, hashes: np.ndarray | None = None, in_all: bool = True) -> Segment:
    """A segment of documents with these keys (bands, documents); not `in_all`: each misses one of the bands."""
    bands, count = keys.shape
    rows = np.arange(count)
    entering = [rows if in_all else rows[rows % bands != band] for band in range(bands)]
    orders = [found[np.argsort(keys[band][found], kind="stable")] for band, found in enumerate(entering)]
    exact = np.stack([rows, rows + shard], axis=1) if hashes is None else hashes
    by_hash = np.argsort(exact[:, 0], kind="stable")
    return Segment(
        keys=np.concatenate([keys[band][order] for band, order in enumerate(orders)]).astype(np.uint64),
        places=np.concatenate(orders).astype(np.uint32),
        starts=np.cumsum([0, *map(len, orders)]).astype(np.int64),
        exact=exact[by_hash].astype(np.uint64),
        exact_places=by_hash.astype(np.uint32),
        sketches=np.full((count, 4), shard, np.uint8),
        documents=np.stack([np.full(count, shard), rows], axis=1).astype(np.uint32),
    )


def merged_in_memory(parts: Sequence[Segment], bucket_size: int) -> Segment:
    """What `merge` has to write: everything sorted at once."""
    shifts = np.cumsum([0, *map(len, parts)]).astype(np.uint32)
    keys, places = [], []
    for band in range(BANDS):
        band_keys = np.concatenate([part.band(band)[0] for part in parts])
        band_places = np.concatenate([part.band(band)[1] + shift for part, shift in zip(parts, shifts)])
        order = np.argsort(band_keys, kind="stable")
        first = rank_in_run(band_keys[order]) < bucket_size
        keys.append(band_keys[order][first])
        places.append(band_places[order][first])
    exact = np.concatenate([part.exact for part in parts])
    order = np.argsort(exact[:, 0], kind="stable")
    return Segment(
        keys=np.concatenate(keys),
        places=np.concatenate(places),
        starts=np.cumsum([0, *map(len, keys)]).astype(np.int64),
        exact=exact[order],
        exact_places=np.concatenate([part.exact_places + shift for part, shift in zip(parts, shifts)])[order],
        sketches=np.concatenate([part.sketches for part in parts]),
        documents=np.concatenate([part.documents for part in parts]),
    )


def merge_on_disk(folder: Path, parts: Sequence[Segment], parameters: IndexParameters, block_rows: int) -> Path:
    """Write the parts, merge them and return the folder of the result."""
    for number, part in enumerate(parts):
        write_segment(folder / f"part{number}", part, parameters)
    merge([folder / f"part{number}" for number in range(len(parts))], folder / "merged", parameters, block_rows)
    return folder / "merged"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DOCUMENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=12)


def segment_of(documents: list[tuple[int, int, int, int]], shard: int, in_all: bool = True) -> Segment:
    """A segment of documents given as (key, key, hash, hash)."""
    table = np.array(documents, np.uint64).reshape(-1, 4)
    return make_segment(table[:, :2].T.copy(), shard, table[:, 2:].copy(), in_all)


@settings(deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_merging_in_blocks_is_sorting_the_union(
    parts: list[list[tuple[int, int, int, int]]], cap: int, block_rows: int, in_all: bool
) -> None:
    """Empty parts, one key in all of them, and runs of a key longer than a block included."""
    segments = [segment_of(part, shard, in_all) for shard, part in enumerate(parts)]
    parameters = replace(PARAMETERS, bucket_size=cap)
    with tempfile.TemporaryDirectory() as name:
        write_segment(Path(name) / "expected", merged_in_memory(segments, cap), parameters)
        merged = merge_on_disk(Path(name), segments, parameters, block_rows)
        assert contents(merged) == contents(Path(name) / "expected")


@settings(deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4), DOCUMENTS, st.integers(1, 3))
def test_a_merged_index_answers_as_its_parts(
    parts: list[list[tuple[int, int, int, int]]], asked: list[tuple[int, int, int, int]], cap: int
) -> None:
    segments = [segment_of(part, shard) for shard, part in enumerate(parts)]
    table = np.array(asked, np.uint64).reshape(-1, 4)
    keys, hashes, everyone = table[:, :2].T.copy(), table[:, 2:].copy(), np.ones(len(asked), np.bool_)
    parameters = replace(PARAMETERS, bucket_size=cap)
    with tempfile.TemporaryDirectory() as name:
        merged = [open_segment(merge_on_disk(Path(name), segments, parameters, 3), parameters)]
        apart, joined = find(segments, keys, everyone, cap), find(merged, keys, everyone, cap)
        assert np.array_equal(apart.rows, joined.rows)
        assert np.array_equal(apart.filled, joined.filled)
        assert np.array_equal(locate(segments, apart.documents), locate(merged, joined.documents))
        exact_apart, exact_joined = find_exact(segments, hashes), find_exact(merged, hashes)
        assert np.array_equal(exact_apart >= 0, exact_joined >= 0)
        first_apart = locate(segments, exact_apart[exact_apart >= 0])
        assert np.array_equal(first_apart, locate(merged, exact_joined[exact_joined >= 0]))


def test_the_memory_of_a_merge_is_that_of_its_blocks(tmp_path: Path) -> None:
    peaks = []
    for documents in (5_000, 20_000):
        rng = np.random.default_rng(documents)
        parts = [
            make_segment(
                rng.integers(0, 2**64, (BANDS, documents), np.uint64),
                shard,
                rng.integers(0, 2**64, (documents, 2), np.uint64),
            )
            for shard in range(8)
        ]
        folder = tmp_path / str(documents)
        merge_on_disk(folder / "warm", parts[:1], PARAMETERS, 500)
        for number, part in enumerate(parts):
            write_segment(folder / f"part{number}", part, PARAMETERS)
        tracemalloc.start()
        merge([folder / f"part{number}" for number in range(8)], folder / "merged", PARAMETERS, 500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "20000" / "merged").iterdir()) > 8_000_000
    assert max(peaks) < 8 * 500 * 150


def test_an_index_of_other_parameters_is_refused_with_both_values(tmp_path: Path) -> None:
    write_segment(tmp_path / "other", make_segment(np.array([[1, 2], [1, 2]])), replace(PARAMETERS, seed=7))
    with pytest.raises(ValueError, match=r"seed = 7, this run has 1"):
        open_segment(tmp_path / "other", PARAMETERS)
    with pytest.raises(ValueError, match=r"seed = 7, this run has 1"):
        merge([tmp_path / "other"], tmp_path / "merged", PARAMETERS)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_segment_survives_storage_and_a_second_writer(tmp_path: Path) -> None:
    segment = make_segment(np.array([[3, 1, 2], [5, 5, 4]]))
    for _ in range(2):
        write_segment(tmp_path / "segment", segment, PARAMETERS)
    found = open_segment(tmp_path / "segment", PARAMETERS)
    assert all(np.array_equal(getattr(found, name), getattr(segment, name)) for name in Segment.__dataclass_fields__)
    assert [path.name for path in tmp_path.iterdir()] == ["segment"]


def test_a_segment_that_lost_bytes_is_written_again(tmp_path: Path) -> None:
    segment = make_segment(np.array([[3, 1, 2], [5, 5, 4]]))
    write_segment(tmp_path / "segment", segment, PARAMETERS)
    whole = contents(tmp_path / "segment")
    with (tmp_path / "segment" / "keys.npy").open("r+b") as stream:
        stream.truncate(100)
    assert not is_complete(tmp_path / "segment")
    write_segment(tmp_path / "segment", segment, PARAMETERS)
    assert contents(tmp_path / "segment") == whole and is_complete(tmp_path / "segment")


@given(st.lists(st.integers(0, 4)))
def test_rank_in_run(values: list[int]) -> None:
    ordered = sorted(values)
    assert rank_in_run(np.array(ordered, np.uint64)).tolist() == [n - ordered.index(v) for n, v in enumerate(ordered)]
