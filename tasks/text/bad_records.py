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

_METADATA_KEY = "bessemer.errors"


class ErrorRecord(NamedTuple):
    """A record that was passed over: its file, its place in it ("line 3", "byte 512", "" for the whole file), why."""

    file: str
    place: str
    error: str

    def __str__(self) -> str:
        return f"{', '.join(part for part in (self.file, self.place) if part)}: {self.error}"


def errors_metadata(errors: Sequence[ErrorRecord]) -> dict[str, str]:
    """Key-value metadata for a shard's Parquet file."""
    return {_METADATA_KEY: canonical_json([list(error) for error in errors]).decode()}


def read_errors(shard: Path) -> list[ErrorRecord]:
    """The unreadable records that a shard's metadata lists."""
    metadata = pq.read_metadata(shard).metadata
    return [ErrorRecord(*error) for error in json.loads(metadata[_METADATA_KEY.encode()])]


def check_bad_share(errors: Sequence[ErrorRecord], good: float, max_bad_share: float, setting: str) -> None:
    """Refuse if more than `max_bad_share` of all records are bad.

    Raises:
        ValueError: with the first bad record's file and place, the share found and the setting that allows it.
    """
    share = len(errors) / max(len(errors) + good, 1)
    if share > max_bad_share:
        raise ValueError(
            f"{errors[0]}. In all {len(errors)} of {len(errors) + good:.0f} records cannot be used ({share:.1%}); "
            f"allowed is {max_bad_share:.1%}. Mend the input, or raise {setting} to pass over them."
        )


def write_errors(run: StageRun, errors: Sequence[ErrorRecord]) -> None:
    """Write `errors.jsonl` and say how many there are."""
    lines = [canonical_json(error._asdict()) + b"\n" for error in errors]
    (run.out / "errors.jsonl").write_bytes(b"".join(lines))
    run.metric("bad_records", len(errors))
    if errors:
        run.say(f"{len(errors)} records passed over, the first: {errors[0]}")
