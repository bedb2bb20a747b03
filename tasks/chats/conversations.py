"""Read or make the conversations to learn answering from.

Files may be in any usual layout: OpenAI `messages`, ShareGPT `conversations`, Alpaca `instruction`/`input`/`output`, or
`prompt`/`completion`. Python source (the embedded corpus) becomes questions and answers by rules.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from tasks.chats.examples import ExamplesConfig, Kind, read_records, write_examples
from tasks.chats.exchanges import read_exchanges
from tasks.chats.messages import (
    MESSAGES_TYPE,
    Messages,
    content_id,
    first_question,
    group_hash,
    messages_of,
    text_or_messages,
    write_rows,
)
from tasks.chats.rules import dialogues
from tasks.mechanism.stage import StageRun, stage
from tasks.text.bad_records import ErrorRecord
from tasks.text.source import Source, source_name

_EXPECTED = (
    "expected `messages` (role, content), `conversations` (from, value), `instruction` and `output`, or `prompt` and "
    "`completion`"
)
CONVERSATION_SCHEMA = pa.schema(
    [("conversation_id", pa.string()), ("messages", MESSAGES_TYPE), ("source", pa.string())]
)
KIND = Kind("conversations", "conversations", "conversations", "--sft", _EXPECTED, CONVERSATION_SCHEMA)


class ConversationsConfig(ExamplesConfig):
    """Which conversations are used."""

    max_conversations: int = Field(
        40_000, ge=2, description="At most so many, chosen by hash; a file with fewer is used whole."
    )


@stage("conversations", version=1, figures=("train_conversations", "validation_conversations"))
def conversations(run: StageRun, cfg: ConversationsConfig, sft: Source) -> None:
    """Write `train.parquet`, `validation.parquet` and `errors.jsonl`.

    Raises:
        ValueError: too many records in no known layout, or fewer than two conversations.
    """
    write_examples(run, cfg, KIND, sft, cfg.max_conversations, make_conversations, read_conversations)


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
    write_rows(rows, [], KIND.shard_schema, output)
    return {"conversations": float(len(rows))}


def read_conversations(inputs: tuple[Path, ...], output: Path, cfg: ConversationsConfig) -> Mapping[str, float]:
    """Shard function: files, whose names the first input lists -> their conversations."""
    rows: list[dict[str, Any]] = []
    errors: list[ErrorRecord] = []
    for name, found in read_records(inputs, conversation_of):
        if isinstance(found, ErrorRecord):
            errors.append(found)
            continue
        rows.append(
            {
                "conversation_id": content_id(found),
                "messages": found,
                "source": source_name(name),
                "group": group_hash(first_question(found)),
            }
        )
    write_rows(rows, errors, KIND.shard_schema, output)
    return {"conversations": float(len(rows)), "bad": float(len(errors))}


def conversation_of(fields: Mapping[str, Any]) -> Messages:
    """The conversation in a record of any known layout, up to its last answer.

    Raises:
        ValueError: no known layout, or nobody answers.
    """
    messages = _messages_in_layout(fields)
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0 or not messages[last]["content"].strip():
        raise ValueError("the conversation has no answer of the assistant")
    # What comes after the last answer would be read and never learnt from.
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
