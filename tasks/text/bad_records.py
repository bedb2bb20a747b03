"""Records that could not be read: listed with file and place, tolerated up to a stated share.

A shard is one file, so the records that it could not take in travel in its Parquet metadata.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from tasks.mechanism.identity import canonical_json
from tasks.mechanism.stage import StageRun
from tasks.text.readers.records import Bad

_METADATA_KEY = "bessemer.errors"


class ErrorRecord(NamedTuple):
    """What was passed over: its file, its place in it ("line 3", "byte 512", "" for the whole file), and why.

    records: how many are known to be lost, 1 where nobody knows
    bytes: of the input, where a stretch of a file is lost and not one record; estimated where it is compressed
    """

    file: str
    place: str
    error: str
    records: int = 1
    bytes: int = 0

    def __str__(self) -> str:
        lost = f" (about {self.bytes} bytes lost)" if self.bytes else ""
        return f"{', '.join(part for part in (self.file, self.place) if part)}: {self.error}{lost}"


def lost(file: str, bad: Bad) -> ErrorRecord:
    """What a reader could not read, as a record of it."""
    return ErrorRecord(file, bad.place, bad.error, bad.records, bad.bytes)


def errors_metadata(errors: Sequence[ErrorRecord]) -> dict[str, str]:
    """Key-value metadata for a shard's Parquet file."""
    return {_METADATA_KEY: canonical_json([list(error) for error in errors]).decode()}


def read_errors(shard: Path) -> list[ErrorRecord]:
    """The unreadable records that a shard's metadata lists."""
    metadata = pq.read_metadata(shard).metadata
    return [ErrorRecord(*error) for error in json.loads(metadata[_METADATA_KEY.encode()])]


def check_bad_share(
    errors: Sequence[ErrorRecord], good: float, max_bad_share: float, setting: str, input_bytes: int = 0
) -> None:
    """Refuse if more than `max_bad_share` of the input is lost: of its records, or of its bytes, whichever is more.

    A clipped file is one error, but what was lost with it is told by its bytes.

    Raises:
        ValueError: with the first loss's file and place, the share found and the setting that allows it.
    """
    bad = sum(error.records for error in errors)
    lost_bytes = sum(error.bytes for error in errors)
    share = bad / max(bad + good, 1)
    found = f"{bad} of {bad + good:.0f} records cannot be used ({share:.1%})"
    if input_bytes and lost_bytes / input_bytes > share:
        share = lost_bytes / input_bytes
        found = f"about {lost_bytes:,} of {input_bytes:,} bytes cannot be read ({share:.1%})"
    if share > max_bad_share:
        raise ValueError(
            f"{errors[0]}. In all {found}; allowed is {max_bad_share:.1%}. Mend the input, or raise {setting} to pass "
            "over them."
        )


def write_errors(run: StageRun, errors: Sequence[ErrorRecord]) -> None:
    """Write `errors.jsonl` and say how much was lost."""
    lines = [canonical_json(error._asdict()) + b"\n" for error in errors]
    (run.out / "errors.jsonl").write_bytes(b"".join(lines))
    bad, lost_bytes = sum(error.records for error in errors), sum(error.bytes for error in errors)
    run.metric("bad_records", bad)
    run.metric("lost_bytes", lost_bytes)
    if errors:
        more = f" and about {lost_bytes:,} bytes of files" if lost_bytes else ""
        run.say(f"{bad} records{more} passed over, the first: {errors[0]}")
