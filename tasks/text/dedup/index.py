"""What dedup remembers of kept documents: the segments (segment.py) of a chain of shards, and its verdicts.

Each shard adds a segment of its kept documents, found again by the *chain key*: the digest of the parameters and of
every shard up to it. So a run continues after the longest beginning it shares with any earlier run, whatever was
appended or changed later, and the result cannot depend on how the documents arrived. Eight neighbouring segments of
one size are merged into one; which segments make up the first k shards follows from k alone (its digits in base 8).
Nothing is ever changed in place, so a crash leaves no half index.
"""

import hashlib
import json
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.mechanism.identity import canonical_json
from tasks.mechanism.store import file_sha256, link_or_copy, write_atomically
from tasks.text.dedup.segment import (
    I64,
    U64,
    IndexParameters,
    Segment,
    is_complete,
    merge,
    open_segment,
    size_bytes,
    write_segment,
)

# With 40 tiny segments look-ups fell to 18,000 documents a second: each costs Python a few calls a band.
FAN_IN = 8
"""Segments merged at a time: look-ups touch at most 7 segments a level, and a document is rewritten once a level."""

CLAIMS = "claims"
"""Folder of the index that names, for each artifact of dedup, the chain keys it stands on."""


def chain_keys(parameters: IndexParameters, code: str, shard_digests: Sequence[str]) -> list[str]:
    """The key of the first 1, 2, ... shards: everything that their verdicts depend on."""
    key = hashlib.sha256(canonical_json({"parameters": asdict(parameters), "code": code})).hexdigest()
    keys = []
    for digest in shard_digests:
        # Each key holds those before it: a shard changed in the middle shares its beginning, and nothing after.
        key = hashlib.sha256(f"{key}\0{digest}".encode()).hexdigest()
        keys.append(key)
    return keys


def spans_of(shards: int) -> list[tuple[int, int]]:
    """The (first, last + 1) shards of each segment that together hold the first `shards` shards."""
    spans: list[tuple[int, int]] = []
    start, size = 0, 1
    # Shards in base 8, largest power first: as segments were merged, so that none is covered twice.
    while size * FAN_IN <= shards:
        size *= FAN_IN
    while size:
        while start + size <= shards:
            spans.append((start, start + size))
            start += size
        size //= FAN_IN
    return spans


class DedupIndex:
    """The segments and verdicts of one chain of shards under `root`."""

    def __init__(self, root: Path, parameters: IndexParameters, keys: Sequence[str]) -> None:
        self.root = root
        self.parameters = parameters
        self.keys = keys
        self._open: dict[tuple[int, int], Segment] = {}
        root.mkdir(parents=True, exist_ok=True)

    def claim(self, holder: str) -> None:
        """Note that the artifact built under the key `holder` stands on this chain, so that gc keeps it."""
        write_atomically(self.root / CLAIMS / f"{holder}.json", canonical_json(list(self.keys)))

    def verdict_path(self, shard: int) -> Path:
        """Where the verdicts on a shard lie once they are known."""
        return self.root / f"{self.keys[shard]}.parquet"

    def keep_verdicts(self, shard: int, written: Path) -> None:
        """Take a file of verdicts over; its digest is written last and makes it valid."""
        written.replace(self.verdict_path(shard))
        digest = file_sha256(self.verdict_path(shard)).encode()
        write_atomically(self.verdict_path(shard).with_suffix(".sha256"), digest)

    def signed_path(self, shard: int) -> Path:
        """The signed documents of a shard, whose shingles later documents are compared with."""
        return self.root / f"{self.keys[shard]}.arrow"

    def keep_signed(self, shard: int, signed: Path) -> None:
        """Keep the signed documents of a shard at hand, as another name of the same bytes where that is possible."""
        link_or_copy(signed, self.signed_path(shard))

    def _is_judged(self, shard: int) -> bool:
        path = self.verdict_path(shard)
        digest = path.with_suffix(".sha256")
        if not (path.exists() and digest.exists() and self.signed_path(shard).exists()):
            return False
        return digest.read_text() == file_sha256(path)

    def segment_path(self, first: int, end: int) -> Path:
        """The folder of the segment of shards [first, end)."""
        return self.root / f"{self.keys[end - 1]}-{end - first}"

    def resumable(self) -> int:
        """How many shards from the beginning are judged already, with the index as of then intact."""
        known = 0
        while known < len(self.keys) and self._is_judged(known):
            known += 1
        while known and not all(is_complete(self.segment_path(*span)) for span in spans_of(known)):
            # A damaged merged segment costs all its shards: the parts it was made of are gone.
            known -= 1
        return known

    def segments(self, shards: int) -> list[Segment]:
        """The segments that hold the kept documents of the first `shards` shards, oldest first."""
        return [self._segment(*span) for span in spans_of(shards)]

    def _segment(self, first: int, end: int) -> Segment:
        if (first, end) not in self._open:
            self._open[first, end] = open_segment(self.segment_path(first, end), self.parameters)
        return self._open[first, end]

    def commit(self, shard: int, segment: Segment) -> None:
        """Add a shard's segment, and merge as long as FAN_IN neighbours of one size are complete."""
        write_segment(self.segment_path(shard, shard + 1), segment, self.parameters)
        size = FAN_IN
        while (shard + 1) % size == 0:
            first = shard + 1 - size
            spans = [(start, start + size // FAN_IN) for start in range(first, shard + 1, size // FAN_IN)]
            parts = [self.segment_path(*span) for span in spans]
            merge(parts, self.segment_path(first, shard + 1), self.parameters)  # whole and renamed before a part goes
            for span, part in zip(spans, parts):
                self._open.pop(span, None)  # its map would keep the deleted bytes on the disk
                shutil.rmtree(part, ignore_errors=True)
            size *= FAN_IN

    def size_bytes(self) -> int:
        """Bytes of the live segments."""
        return sum(size_bytes(self.segment_path(*span)) for span in spans_of(len(self.keys)))


def unclaimed(root: Path, holders: Container[str]) -> list[Path]:
    """Everything under `root` that no chain of these holders needs: their claims, verdicts, signatures and segments."""
    kept: set[str] = set()
    found = []
    for claim in sorted((root / CLAIMS).glob("*.json")):
        if claim.stem in holders:
            kept.update(json.loads(claim.read_bytes()))
        else:
            found.append(claim)
    # Names are a chain key and then a suffix or a number of shards; what a crash left aside begins with a dot.
    entries = (path for path in sorted(root.glob("*")) if path.name != CLAIMS)
    return found + [path for path in entries if path.name.partition(".")[0].partition("-")[0] not in kept]


@dataclass(frozen=True)
class Hits:
    """Earlier kept documents that share buckets with the asked ones.

    rows, documents: (hits,) pairs of an asked document and (segment number << 32 | place), by row, then canonical order
    filled: (bands, asked) how many earlier kept documents are in each bucket, at most bucket_size
    """

    rows: I64
    documents: I64
    filled: NDArray[np.int32]


def find(segments: Sequence[Segment], keys: U64, asked: NDArray[np.bool_], bucket_size: int) -> Hits:
    """Look up band keys (bands, documents); those not `asked` (documents without words) have no hits."""
    bands = [_find_in_band(segments, band, keys[band], asked, bucket_size) for band in range(len(keys))]
    rows = np.concatenate([band.rows for band in bands])
    documents = np.concatenate([band.documents for band in bands])
    # By row, then as the documents came: which of two witnesses is named must not depend on the band that found it.
    order = np.lexsort((documents, rows))
    rows, documents = rows[order], documents[order]
    fresh = np.ones(len(rows), np.bool_)  # a pair may meet in several bands
    fresh[1:] = (rows[1:] != rows[:-1]) | (documents[1:] != documents[:-1])
    return Hits(rows[fresh], documents[fresh], np.concatenate([band.filled for band in bands]))


def _find_in_band(
    segments: Sequence[Segment], band: int, keys: U64, asked: NDArray[np.bool_], bucket_size: int
) -> Hits:
    """The hits in one band, a document's in canonical order."""
    filled = np.zeros((1, len(keys)), np.int32)
    rows: list[I64] = [np.empty(0, np.int64)]
    documents: list[I64] = [np.empty(0, np.int64)]
    order = np.argsort(keys, kind="stable")
    order = order[asked[order]]
    wanted = keys[order]  # in order: neighbouring look-ups touch neighbouring pages of the map
    for number, segment in enumerate(segments):
        band_keys, places = segment.band(band)
        # Starts for all, ends for those found: 14.1 → 7.9 CPU-µs a document at 2·10⁶ (docs/LOG.md, 2026-11-25); two
        # threads over the bands gained nothing there.
        starts = np.searchsorted(band_keys, wanted)
        found = np.flatnonzero(starts < len(band_keys))
        found = found[band_keys[starts[found]] == wanted[found]]  # few: most look-ups end here
        starts, matching = starts[found], order[found]
        lengths = np.searchsorted(band_keys, wanted[found], "right") - starts
        # The cap counts over all segments, oldest first, so increments see the candidates that one run sees.
        room = np.minimum(lengths, bucket_size - filled[0, matching])
        for rank in range(int(room.max(initial=0))):
            has = room > rank
            rows.append(matching[has])
            # 32 bits of place: 4·10⁹ documents a segment, four times what docs/scale.md counts on.
            documents.append((np.int64(number) << 32) | places[starts[has] + rank].astype(np.int64))
        filled[0, matching] += room.astype(np.int32)
    return Hits(np.concatenate(rows), np.concatenate(documents), filled)


def find_exact(segments: Sequence[Segment], exact: U64) -> I64:
    """The kept document with each 128-bit hash (documents, 2), as (segment number << 32 | place), or -1."""
    found = np.full(len(exact), -1, np.int64)
    for number, segment in enumerate(segments):
        starts = np.searchsorted(segment.exact[:, 0], exact[:, 0], "left")
        lengths = np.searchsorted(segment.exact[:, 0], exact[:, 0], "right") - starts
        # Sorted by the first 64 bits only: those that agree in them are tried one by one, hardly ever more than one.
        for rank in range(int(lengths.max(initial=0))):
            rows = np.flatnonzero((lengths > rank) & (found < 0))
            places = starts[rows] + rank
            same = segment.exact[places, 1] == exact[rows, 1]
            found[rows[same]] = (number << 32) | segment.exact_places[places[same]].astype(np.int64)
    return found


def candidate_sketches(segments: Sequence[Segment], documents: I64) -> NDArray[np.uint8]:
    """The sketches of documents named (segment number << 32 | place). (documents, permutations)"""
    out = np.empty((len(documents), segments[0].sketches.shape[1] if segments else 0), np.uint8)
    for number, segment in enumerate(segments):
        mine = (documents >> 32) == number
        out[mine] = segment.sketches[documents[mine] & 0xFFFFFFFF]
    return out


def locate(segments: Sequence[Segment], documents: I64) -> NDArray[np.uint32]:
    """Shard number and row among the signed of documents named (segment number << 32 | place). (documents, 2)"""
    out = np.empty((len(documents), 2), np.uint32)
    for number, segment in enumerate(segments):
        mine = (documents >> 32) == number
        out[mine] = segment.documents[documents[mine] & 0xFFFFFFFF]
    return out
