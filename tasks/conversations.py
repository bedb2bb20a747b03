"""Read or make the conversations to learn answering from.

Files may be in any usual layout: OpenAI `messages`, ShareGPT `conversations`, Alpaca `instruction`/`input`/`output`, or
`prompt`/`completion`. Python source (the embedded corpus) becomes questions and answers by rules.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tasks.bad_records import ErrorRecord, check_bad_share, write_errors
from tasks.documents import write_table
from tasks.entries import extract_exchanges, is_python, read_exchanges, write_listing
from tasks.instructions import dialogues
from tasks.messages import (
    MESSAGES_TYPE,
    Messages,
    content_id,
    first_question,
    group_hash,
    messages_of,
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
_EXPECTED = (
    "expected `messages` (role, content), `conversations` (from, value), `instruction` and `output`, or `prompt` and "
    "`completion`"
)
CONVERSATION_SCHEMA = pa.schema(
    [("conversation_id", pa.string()), ("messages", MESSAGES_TYPE), ("source", pa.string())]
)
_SHARD_SCHEMA = CONVERSATION_SCHEMA.append(pa.field("group", pa.string()))


class ConversationsConfig(StageConfig):
    """Which conversations are used."""

    max_conversations: int = Field(
        40_000, ge=2, description="At most so many, chosen by hash; a file with fewer is used whole."
    )
    validation_share: float = Field(
        0.03, gt=0, le=0.5, description="Share kept for validation, at least 32 where there are so many."
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Share of records that may be unreadable before the run stops."
    )


@stage("conversations", version=1)
def conversations(run: StageRun, cfg: ConversationsConfig, sft: Source) -> None:
    """Write `train.parquet`, `validation.parquet` and `errors.jsonl`.

    Raises:
        ValueError: too many records in no known layout, or fewer than two conversations.
    """
    python_jobs = [ShardJob((path,), run.scratch / "python" / path.name) for path in extract_exchanges(run, sft.files)]
    file_jobs = [
        ShardJob((write_listing(run, group), *(f.path for f in group)), run.scratch / f"{group_name(group)}.parquet")
        for group in group_files([file for file in sft.files if not is_python(file)], GROUP_BYTES)
    ]
    map_shards(run, make_conversations, python_jobs, cfg)
    map_shards(run, read_conversations, file_jobs, cfg)
    shards = [job.output for job in [*python_jobs, *file_jobs]]
    errors = [error for shard in shards for error in read_errors(shard)]
    table = pa.concat_tables([pq.read_table(shard, schema=_SHARD_SCHEMA) for shard in shards])
    check_bad_share(errors, len(table), cfg.max_bad_share, "conversations.max_bad_share")
    table = table.take(first_of_each(table["conversation_id"]))
    table = table.take(smallest_hashes(table["conversation_id"], cfg.max_conversations))
    if len(table) < 2:
        raise ValueError(
            f"Found {len(table)} conversations in {len(sft.files)} files, at least 2 are needed (training and "
            f"validation). In the files of --sft, {_EXPECTED}."
        )
    held_out = pa.array(
        validation_mask(table["group"].to_pylist(), table["conversation_id"].to_pylist(), cfg.validation_share)
    )
    for name, part in (("train", table.filter(pa.compute.invert(held_out))), ("validation", table.filter(held_out))):
        write_table(part.select(CONVERSATION_SCHEMA.names), run.out / f"{name}.parquet")
        run.metric(f"{name}_conversations", len(part))
    write_errors(run, errors)


def make_conversations(inputs: tuple[Path, ...], output: Path, cfg: ConversationsConfig) -> Mapping[str, float]:
    """Shard function: exchanges about Python objects -> conversations."""
    rows = []
    for object_name, found in read_exchanges(inputs[0]):
        for dialogue in dialogues(object_name, found):
            messages = [
                {"role": role, "content": content}
                for turn in dialogue.turns
                for role, content in zip(("user", "assistant"), turn)
            ]
            # One answer to one question: several objects of a library may share a name, and the first one has it.
            number = content_id([dialogue.library, [question for question, _ in dialogue.turns]])
            rows.append(
                {
                    "conversation_id": number,
                    "messages": messages,
                    "source": dialogue.library,
                    "group": group_hash(dialogue.name),
                }
            )
    write_rows(rows, [], _SHARD_SCHEMA, output)
    return {"conversations": float(len(rows))}


def read_conversations(inputs: tuple[Path, ...], output: Path, cfg: ConversationsConfig) -> Mapping[str, float]:
    """Shard function: files, whose names the first input lists -> their conversations."""
    listing, *paths = inputs
    rows: list[dict[str, Any]] = []
    errors: list[ErrorRecord] = []
    for name, path in zip(json.loads(listing.read_bytes()), paths, strict=True):
        for found in _read_rows(name, path):
            if isinstance(found, ErrorRecord):
                errors.append(found)
            else:
                group = group_hash(first_question(found))
                rows.append(
                    {
                        "conversation_id": content_id(found),
                        "messages": found,
                        "source": source_name(name),
                        "group": group,
                    }
                )
    write_rows(rows, errors, _SHARD_SCHEMA, output)
    return {"conversations": float(len(rows)), "bad": float(len(errors))}


def _read_rows(name: str, path: Path) -> Iterator[Messages | ErrorRecord]:
    for item in read_file(path, name):
        if isinstance(item, Bad):
            yield ErrorRecord(name, item.place, item.error)
        elif isinstance(item, Row):
            try:
                yield conversation_of(item.fields)
            except ValueError as error:
                yield ErrorRecord(name, item.place, str(error))


def conversation_of(fields: Mapping[str, Any]) -> Messages:
    """The conversation in a record of any known layout, up to its last answer.

    Raises:
        ValueError: no known layout, or nobody answers.
    """
    messages = _messages_in_layout(fields)
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0 or not messages[last]["content"].strip():
        raise ValueError("the conversation has no answer of the assistant")
    return messages[: last + 1]


def _messages_in_layout(fields: Mapping[str, Any]) -> Messages:
    if fields.get("messages") is not None:
        return messages_of(fields["messages"])
    if fields.get("conversations") is not None:
        turns = fields["conversations"]
        is_sharegpt = (
            isinstance(turns, Sequence) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]
        )
        return messages_of(turns, "from", "value") if is_sharegpt else messages_of(turns)
    if isinstance(fields.get("instruction"), str) and isinstance(fields.get("output"), str):
        parts = [fields["instruction"], fields.get("input") or ""]
        question = "\n\n".join(part for part in parts if part)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]
    if "prompt" in fields and "completion" in fields:
        return [*text_or_messages(fields["prompt"], "user"), *text_or_messages(fields["completion"], "assistant")]
    raise ValueError(f"no known layout: found the fields {', '.join(fields) or 'none'}; {_EXPECTED}")
