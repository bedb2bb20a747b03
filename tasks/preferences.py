"""Read or make pairs of a better and a worse answer.

Files hold `prompt`, `chosen` and `rejected`, each as text or as messages; the answers may repeat the prompt. From
Python source the better answer is the true one, the worse one fits a sibling or breaks off.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tasks.bad_records import ErrorRecord, check_bad_share, write_errors
from tasks.documents import write_table
from tasks.entries import extract_exchanges, is_python, read_exchanges, write_listing
from tasks.instructions import Aspect, Exchange, rejected_answer
from tasks.messages import (
    MESSAGES_TYPE,
    Messages,
    content_id,
    first_question,
    group_hash,
    read_errors,
    text_or_messages,
    validation_mask,
    write_rows,
)
from tasks.readers import read_file
from tasks.readers.records import Bad, Row
from tasks.sampling import first_of_each, smallest_hashes
from tasks.shards import ShardJob, map_shards
from tasks.source import Source, group_files, group_name, source_name
from tasks.stage import StageConfig, StageRun, stage

GROUP_BYTES = 32_000_000
_ASPECTS: tuple[Aspect, ...] = ("purpose", "parameters", "parameter", "returns")
_EXPECTED = "expected prompt, chosen and rejected, each as text or as a list of messages"
PREFERENCE_SCHEMA = pa.schema(
    [
        ("preference_id", pa.string()),
        ("prompt", MESSAGES_TYPE),
        ("chosen", MESSAGES_TYPE),
        ("rejected", MESSAGES_TYPE),
        ("source", pa.string()),
    ]
)
_SHARD_SCHEMA = PREFERENCE_SCHEMA.append(pa.field("group", pa.string()))


class PreferencesConfig(StageConfig):
    """Which pairs are used."""

    max_pairs: int = Field(8_000, ge=2, description="At most so many, chosen by hash; a file with fewer is used whole.")
    validation_share: float = Field(
        0.03, gt=0, le=0.5, description="Share kept for validation, at least 32 where there are so many."
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Share of records that may be unreadable before the run stops."
    )


@stage("preferences", version=1)
def preferences(run: StageRun, cfg: PreferencesConfig, pairs: Source) -> None:
    """Write `train.parquet`, `validation.parquet` and `errors.jsonl`.

    Raises:
        ValueError: too many records without the three fields, or fewer than two pairs.
    """
    python_jobs = [
        ShardJob((path,), run.scratch / "python" / path.name) for path in extract_exchanges(run, pairs.files)
    ]
    file_jobs = [
        ShardJob((write_listing(run, group), *(f.path for f in group)), run.scratch / f"{group_name(group)}.parquet")
        for group in group_files([file for file in pairs.files if not is_python(file)], GROUP_BYTES)
    ]
    map_shards(run, make_preferences, python_jobs, cfg)
    counts = map_shards(run, read_preferences, file_jobs, cfg)
    shards = [job.output for job in [*python_jobs, *file_jobs]]
    errors = [error for shard in shards for error in read_errors(shard)]
    table = pa.concat_tables([pq.read_table(shard, schema=_SHARD_SCHEMA) for shard in shards])
    check_bad_share(errors, len(table), cfg.max_bad_share, "preferences.max_bad_share")
    table = table.take(first_of_each(table["preference_id"]))
    table = table.take(smallest_hashes(table["preference_id"], cfg.max_pairs))
    if len(table) < 2:
        raise ValueError(
            f"Found {len(table)} preference pairs in {len(pairs.files)} files, at least 2 are needed (training and "
            f"validation). In the files of --preferences, {_EXPECTED}."
        )
    held_out = pa.array(
        validation_mask(table["group"].to_pylist(), table["preference_id"].to_pylist(), cfg.validation_share)
    )
    for name, part in (("train", table.filter(pa.compute.invert(held_out))), ("validation", table.filter(held_out))):
        write_table(part.select(PREFERENCE_SCHEMA.names), run.out / f"{name}.parquet")
        run.metric(f"{name}_pairs", len(part))
    run.metric("equal_pairs", sum(count["equal"] for count in counts))
    write_errors(run, errors)


def make_preferences(inputs: tuple[Path, ...], output: Path, cfg: PreferencesConfig) -> Mapping[str, float]:
    """Shard function: exchanges about Python objects -> questions with a true and a worse answer."""
    rows = []
    siblings: dict[Aspect, Exchange] = {}
    for object_name, found in read_exchanges(inputs[0]):
        for exchange in found:
            if exchange.aspect not in _ASPECTS:
                continue
            worse = rejected_answer(exchange, siblings.get(exchange.aspect))
            siblings[exchange.aspect] = exchange
            prompt = [{"role": "user", "content": exchange.question}]
            answers = [[{"role": "assistant", "content": text}] for text in (exchange.answer, worse)]
            rows.append(_row(prompt, answers[0], answers[1], object_name.split(".")[0], object_name))
    write_rows(rows, [], _SHARD_SCHEMA, output)
    return {"pairs": float(len(rows))}


def _row(prompt: Messages, chosen: Messages, rejected: Messages, source: str, group: str) -> dict[str, Any]:
    return {
        "preference_id": content_id([prompt, chosen, rejected]),
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "source": source,
        "group": group_hash(group),
    }


def read_preferences(inputs: tuple[Path, ...], output: Path, cfg: PreferencesConfig) -> Mapping[str, float]:
    """Shard function: files, whose names the first input lists -> their pairs; pairs of equal answers teach nothing."""
    listing, *paths = inputs
    rows: list[dict[str, Any]] = []
    errors: list[ErrorRecord] = []
    equal = 0
    for name, path in zip(json.loads(listing.read_bytes()), paths, strict=True):
        for found in _read_pairs(name, path):
            if isinstance(found, ErrorRecord):
                errors.append(found)
            elif found[1] == found[2]:
                equal += 1
            else:
                rows.append(_row(*found, source_name(name), first_question(found[0])))
    write_rows(rows, errors, _SHARD_SCHEMA, output)
    return {"pairs": float(len(rows)), "bad": float(len(errors)), "equal": float(equal)}


def _read_pairs(name: str, path: Path) -> Iterator[tuple[Messages, Messages, Messages] | ErrorRecord]:
    for item in read_file(path, name):
        if isinstance(item, Bad):
            yield ErrorRecord(name, item.place, item.error)
        elif isinstance(item, Row):
            try:
                yield preference_of(item.fields)
            except ValueError as error:
                yield ErrorRecord(name, item.place, str(error))


def preference_of(fields: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """(prompt, chosen, rejected) of a record; without `prompt`, what both answers begin with is the prompt.

    Raises:
        ValueError: a field is missing or of another kind, or an answer is not the assistant's.
    """
    missing = [field for field in ("chosen", "rejected") if fields.get(field) is None]
    if missing:
        raise ValueError(f"no field {' and '.join(map(repr, missing))}; found: {', '.join(fields)}; {_EXPECTED}")
    chosen = text_or_messages(fields["chosen"], "assistant")
    rejected = text_or_messages(fields["rejected"], "assistant")
    if fields.get("prompt") is None or (len(chosen) > 1 and len(rejected) > 1):
        shared = next(
            (i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1])) if a != b),
            min(len(chosen), len(rejected)) - 1,
        )
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = text_or_messages(fields["prompt"], "user")
    if not prompt:
        raise ValueError(f"no field 'prompt'; found: {', '.join(fields)}; {_EXPECTED}")
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        if not any(message["role"] == "assistant" for message in answer):
            raise ValueError(f"{field!r} has no answer of the assistant: {answer}")
    return prompt, chosen, rejected
