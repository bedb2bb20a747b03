"""Records that could not be read: listed with file and place, tolerated up to a stated share."""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.mechanism.identity import canonical_json
from tasks.mechanism.stage import StageRun


class ErrorRecord(NamedTuple):
    """A record that was passed over: its file, its place in it ("line 3", "byte 512", "" for the whole file), why."""

    file: str
    place: str
    error: str

    def __str__(self) -> str:
        return f"{', '.join(part for part in (self.file, self.place) if part)}: {self.error}"


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
