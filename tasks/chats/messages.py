"""Messages of conversations: roles, the layouts that files keep them in, and which go to validation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from tasks.mechanism.identity import canonical_json
from tasks.text.bad_records import ErrorRecord, errors_metadata
from tasks.text.documents import ROW_GROUP_ROWS
from tasks.text.readers.records import shown

MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
MIN_VALIDATION = 32

Messages = list[dict[str, str]]

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of roles in files -> ours."""


def messages_of(value: Any, role_field: str = "role", content_field: str = "content") -> Messages:
    """A list of messages as files keep it, with our role names.

    Raises:
        ValueError: it is not such a list; says what was found.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise ValueError(f"expected a list of messages, found {shown(value)}")
    messages = []
    for message in value:
        content = _content(message.get(content_field)) if isinstance(message, Mapping) else None
        if content is None:
            raise ValueError(f"expected a message with {role_field!r} and {content_field!r}, found {shown(message)}")
        role = ROLE_NAMES.get(str(message.get(role_field)).lower())
        if role is None:
            raise ValueError(
                f"expected {role_field!r} to be one of {', '.join(ROLE_NAMES)}, found {shown(message.get(role_field))}"
            )
        messages.append({"role": role, "content": content})
    return messages


def _content(value: Any) -> str | None:
    """The text of a message's content: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(p, Mapping) and p.get("type") == "text" for p in value):
        return "".join(str(part.get("text", "")) for part in value)
    return None


def text_or_messages(value: Any, role: str) -> Messages:
    """A prompt or an answer that a file keeps as text or as a list of messages.

    Raises:
        ValueError: it is neither.
    """
    return [{"role": role, "content": value}] if isinstance(value, str) else messages_of(value)


def group_hash(text: str) -> str:
    """Hash that decides the side of everything which belongs together: an object asked about, or a first question.

    Conversations and preferences use the same, so a question held out from one is held out from the other.
    """
    return xxhash.xxh3_64_hexdigest(text.encode())


def first_question(messages: Messages) -> str:
    """What the user says first."""
    return next((message["content"] for message in messages if message["role"] == "user"), "")


def content_id(value: object) -> str:
    """32 hex digits for a JSON value."""
    return xxhash.xxh3_128_hexdigest(canonical_json(value))


def validation_mask(groups: Sequence[str], ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Which rows are for validation: those whose group's hash falls into the first `share`, or the first groups up to
    MIN_VALIDATION rows (half of the rows where there are fewer than twice that). Where all rows are one group, their
    own ids decide.

    Returns:
        mask: (rows,)
    """
    mask = _first_hashes(groups, share)
    # All in one group, or none: a split by groups would leave one side empty.
    return _first_hashes([identifier[:16] for identifier in ids], share) if mask.all() or not mask.any() else mask


def _first_hashes(hex_hashes: Sequence[str], share: float) -> NDArray[np.bool_]:
    hashes = np.array([int(text, 16) for text in hex_hashes], np.uint64)
    wanted = min(MIN_VALIDATION, len(hashes) // 2)
    mask: NDArray[np.bool_] = hashes < np.uint64(share * (2**64 - 1))
    if mask.sum() < wanted:
        mask = hashes <= np.sort(hashes)[wanted - 1]
    return mask


def write_rows(rows: list[dict[str, Any]], errors: Sequence[ErrorRecord], schema: pa.Schema, output: Path) -> None:
    """Write one shard of rows; its unreadable records travel in the Parquet metadata, as it must be one file."""
    table = pa.Table.from_pylist(rows, schema.with_metadata(errors_metadata(errors)))
    pq.write_table(table, output, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_statistics=False)
