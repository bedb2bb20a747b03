"""Examples to learn from, conversations or pairs of answers: read in shards, chosen by hash, divided in two.

What the stages of both kinds share; each brings how a record of a file, or what a Python object documents, becomes one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from tasks.chats.exchanges import extract_exchanges
from tasks.chats.messages import validation_mask
from tasks.mechanism.shards import Counts, ShardFunction, ShardJob, map_shards
from tasks.mechanism.stage import StageConfig, StageRun
from tasks.text.bad_records import ErrorRecord, check_bad_share, lost, read_errors, write_errors
from tasks.text.documents import write_table
from tasks.text.folders import in_words
from tasks.text.python.entries import is_python, write_listing
from tasks.text.readers import read_file
from tasks.text.readers.records import Bad, Row
from tasks.text.sampling import first_of_each, smallest_hashes
from tasks.text.source import Source, group_files, group_name

GROUP_BYTES = 32_000_000
FIELDS = (
    *("messages", "conversations", "instruction", "input", "output", "history", "system", "system_prompt"),
    *("prompt", "completion", "chosen", "rejected", "tools", "functions", "images", "videos", "audios"),
)
"""Every field of a record that a layout looks at."""
T = TypeVar("T")


class ExamplesConfig(StageConfig):
    """Which examples are used."""

    validation_share: float = Field(
        0.03, gt=0, le=0.5, description="Share kept for validation, at least 32 where there are so many."
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Share of records that may be unreadable before the run stops."
    )


@dataclass(frozen=True)
class Kind:
    """One kind of example.

    stage: whose config has the settings
    called: in messages
    counted: in metrics
    option: of the command line, that names the files
    expected: the layouts that a record may have
    schema: of the artifact's files; its first column is the id
    """

    stage: str
    called: str
    counted: str
    option: str
    expected: str
    schema: pa.Schema

    @property
    def shard_schema(self) -> pa.Schema:
        """With the hash of the group that goes to one side as a whole."""
        return self.schema.append(pa.field("group", pa.string()))


def write_examples(
    run: StageRun,
    cfg: ExamplesConfig,
    kind: Kind,
    source: Source,
    most: int,
    make: ShardFunction[Any],
    read: ShardFunction[Any],
) -> list[Counts]:
    """Write `train.parquet`, `validation.parquet` and `errors.jsonl` with the `most` examples whose ids are smallest.

    `make` is the shard function for what Python files document, `read` that for other files; returns what it counted.

    Raises:
        ValueError: too many records in no known layout, or fewer than two examples.
    """
    if source.passed_over:
        run.say(f"files passed over: {in_words(source.passed_over)}; the first: {source.passed_over[0].name}")
    python_jobs, file_jobs = _jobs(run, source)
    map_shards(run, make, python_jobs, cfg)
    counts = map_shards(run, read, file_jobs, cfg)
    shards = [job.output for job in [*python_jobs, *file_jobs]]
    errors = [error for shard in shards for error in read_errors(shard)]
    table = pa.concat_tables([pq.read_table(shard, schema=kind.shard_schema) for shard in shards])
    check_bad_share(errors, len(table), cfg.max_bad_share, f"{kind.stage}.max_bad_share", source.size_bytes)
    identifier = kind.schema.names[0]
    # Before the limit: repeated examples would take the place of others.
    table = table.take(first_of_each(table[identifier]))
    table = table.take(smallest_hashes(table[identifier], most))
    if len(table) < 2:
        raise ValueError(
            f"Found {len(table)} {kind.called} in {len(source.files)} files, at least 2 are needed (training and "
            f"validation). In the files of {kind.option}, {kind.expected}."
        )
    held_out = validation_mask(table["group"].to_pylist(), table[identifier].to_pylist(), cfg.validation_share)
    mask = pa.array(held_out)
    for name, part in (("train", table.filter(pc.invert(mask))), ("validation", table.filter(mask))):
        write_table(part.select(kind.schema.names), run.out / f"{name}.parquet")
        run.metric(f"{name}_{kind.counted}", len(part))
    validation = int(held_out.sum())
    run.say(f"{validation} of {len(table)} {kind.called} ({validation / len(table):.1%}) are held out for validation")
    write_errors(run, errors)
    return counts


def _jobs(run: StageRun, source: Source) -> tuple[list[ShardJob], list[ShardJob]]:
    """Those for what Python files document, and those for other files."""
    python_jobs = [
        ShardJob((path,), run.scratch / "python" / path.name) for path in extract_exchanges(run, source.files)
    ]
    file_jobs = [
        ShardJob((write_listing(run, group), *(f.path for f in group)), run.scratch / f"{group_name(group)}.parquet")
        for group in group_files([file for file in source.files if not is_python(file)], GROUP_BYTES)
    ]
    return python_jobs, file_jobs


def read_records(
    inputs: tuple[Path, ...], parse: Callable[[Mapping[str, Any]], T]
) -> Iterator[tuple[str, T | ErrorRecord]]:
    """(name of its file, what `parse` makes of it) for each record of files whose names the first input lists."""
    listing, *paths = inputs
    for name, path in zip(json.loads(listing.read_bytes()), paths, strict=True):
        for item in read_file(path, name, fields=FIELDS):
            if isinstance(item, Bad):
                yield name, lost(name, item)
            elif isinstance(item, Row):
                try:
                    yield name, parse(item.fields)
                except ValueError as error:
                    yield name, ErrorRecord(name, item.place, str(error))
