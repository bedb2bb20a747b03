"""What can be asked about a source's Python files, and the answers: made once, read by two stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.chats.rules import Exchange, exchanges
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import StageConfig, StageRun
from tasks.text.documents import write_table
from tasks.text.python.entries import extract_entries, read_entry_files
from tasks.text.source import SourceFile

_SCHEMA = pa.schema([(name, pa.string()) for name in ("name", "aspect", "question", "follow_up", "answer")])


class ExchangesConfig(StageConfig):
    """Nothing to choose: the stages that share the exchanges must agree on them."""


def extract_exchanges(run: StageRun, files: Sequence[SourceFile]) -> list[Path]:
    """One Parquet file of questions and answers for each file of entries."""
    jobs = [ShardJob((path,), run.scratch / "exchanges" / path.name) for path in extract_entries(run, files)]
    map_shards(run, question_entries, jobs, ExchangesConfig())
    return [job.output for job in jobs]


def question_entries(inputs: tuple[Path, ...], output: Path, config: ExchangesConfig) -> Mapping[str, float]:
    """Write every exchange about every entry of the input."""
    rows = [
        {"name": entry.name, **asdict(exchange)}
        for found in read_entry_files(inputs[0])
        for entry in found.entries
        for exchange in exchanges(entry)
    ]
    write_table(pa.Table.from_pylist(rows, _SCHEMA), output)
    return {"exchanges": float(len(rows))}


def read_exchanges(path: Path) -> Iterator[tuple[str, list[Exchange]]]:
    """(name, exchanges) of each documented object that `extract_exchanges` wrote."""
    rows = pq.read_table(path).to_pylist()
    # Rows of one object are neighbours: they were written one after the other.
    for name, group in groupby(rows, key=lambda row: str(row["name"])):
        yield name, [Exchange(row["aspect"], row["question"], row["follow_up"], row["answer"]) for row in group]
