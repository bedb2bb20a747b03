"""Messages of conversations: roles, the layouts that files keep them in, and which go to validation."""

import re
from collections import Counter
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
MOST_HELD_OUT = 0.1
"""Where the share asked for is smaller: 3,000 chats that begin alike once gave 2,984 to validation, 16 to training."""

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
    "chatbot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""Names of roles in files -> ours."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def messages_of(value: Any, role_field: str = "role", content_field: str = "content") -> Messages:
    """A list of messages as files keep it, with our role names.

    Raises:
        ValueError: it is not such a list; says what was found.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise ValueError(f"expected a list of messages, found {shown(value)}")
    return [_message(message, role_field, content_field) for message in value]


def _message(message: Any, role_field: str, content_field: str) -> dict[str, str]:
    if isinstance(message, Mapping):
        _refuse_unlearnable(message)
    content = _content(message.get(content_field)) if isinstance(message, Mapping) else None
    if content is None:
        raise ValueError(f"expected a message with {role_field!r} and {content_field!r}, found {shown(message)}")
    role = ROLE_NAMES.get(str(message.get(role_field)).lower())
    if role is None:
        raise ValueError(
            f"expected {role_field!r} to be one of {', '.join(ROLE_NAMES)}, found {shown(message.get(role_field))}"
        )
    return {"role": role, "content": content}


def _refuse_unlearnable(message: Mapping[str, Any]) -> None:
    """Refuse what the chat format has no form for: dropped in silence, it would change what the answer means."""
    for field in ("tool_calls", "function_call"):
        if message.get(field):
            raise ValueError(f"{field!r}: calls of tools cannot be learnt, found {shown(message[field])}")
    if message.get("weight", 1) is not None and message.get("weight", 1) != 1:
        raise ValueError(f"'weight': only 1 can be learnt, found {shown(message['weight'])}: remove the record")
    if message.get("train") is False:
        raise ValueError("'train': a turn that is not to be learnt cannot be left out alone: remove the record")


def _content(value: Any) -> str | None:
    """The text of a message's content: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(p, Mapping) and p.get("type") == "text" for p in value):
        texts = [part.get("text") for part in value]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    return None


def text_or_messages(value: Any, role: str) -> Messages:
    """A prompt or an answer that a file keeps as text, as a transcript, as a message or as a list of messages.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return transcript_of(value) or [{"role": role, "content": value}]
    turns = [value] if isinstance(value, Mapping) else value
    is_sharegpt = isinstance(turns, Sequence) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]
    return messages_of(turns, "from", "value") if is_sharegpt else messages_of(turns)


def transcript_of(text: str) -> Messages:
    """The turns of a transcript as Anthropic's HH keeps it, an open last answer left out; [] for any other text."""
    if not text.lstrip().startswith("Human:") or "\n\nAssistant:" not in text:
        return []
    found: Messages = []
    _, *pieces = _SPEAKER.split("\n\n" + text.lstrip())
    for speaker, said in zip(pieces[::2], pieces[1::2]):
        found.append({"role": "user" if speaker == "Human" else "assistant", "content": said.strip()})
    return found[:-1] if found[-1] == {"role": "assistant", "content": ""} else found


def instruction_of(fields: Mapping[str, Any]) -> Messages:
    """The turns before the answer in Alpaca's layout: `history`, then `instruction` with `input`.

    Raises:
        ValueError: one of them is of another kind.
    """
    more = fields.get("input")
    if more is not None and not isinstance(more, str):
        raise ValueError(f"'input': expected text, found {shown(more)}")
    question = "\n\n".join(part for part in (fields["instruction"], more) if part)
    return [*_history(fields.get("history")), {"role": "user", "content": question}]


def _history(value: Any) -> Messages:
    """LLaMA-Factory's pairs of a question and its answer."""
    pairs = value or []
    found: Messages = []
    for pair in pairs if isinstance(pairs, Sequence) and not isinstance(pairs, str) else [pairs]:
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not is_pair or isinstance(pair, str):
            raise ValueError(f"'history': expected pairs of a question and an answer, found {shown(pair)}")
        found += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return found


def with_system(fields: Mapping[str, Any], messages: Messages) -> Messages:
    """The messages after the system message that stands in a field of its own beside them.

    Raises:
        ValueError: it is no text, or another one than the messages begin with; or a field would have to be dropped
            that the answers depend on.
    """
    for field in ("tools", "functions", "images", "videos", "audios"):
        if fields.get(field) and fields[field] != "[]":
            raise ValueError(f"{field!r}: cannot be learnt, found {shown(fields[field])}")
    for field in ("system", "system_prompt"):
        text = fields.get(field)
        if not text:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{field!r}: expected text, found {shown(text)}")
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"] != text:
                raise ValueError(f"{field!r}: the messages begin with another one, {shown(messages[0]['content'])}")
        else:
            messages = [{"role": "system", "content": text}, *messages]
    return messages


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
    """Which rows are for validation: about `share` of them, at least MIN_VALIDATION (half of the rows where there are
    fewer than twice that), and never more than MOST_HELD_OUT or a quarter above `share`, whichever is more.

    A group goes to the side that its hash says, as a whole. A group as large as half of what is wanted would decide
    the share alone, so its rows go by their own ids; and the group that would break the upper bound is cut there.

    Returns:
        mask: (rows,)
    """
    rows = len(groups)
    wanted = min(MIN_VALIDATION, rows // 2)
    most = max(wanted, int(max(MOST_HELD_OUT, 1.25 * share) * rows))
    sizes = Counter(groups)
    large = max(share * rows, wanted) / 2
    own = np.array([int(identifier[:16], 16) for identifier in ids], np.uint64)
    shared = np.array([int(text, 16) for text in groups], np.uint64)
    hashes = np.where(np.array([sizes[text] > large for text in groups], np.bool_), own, shared)
    order = np.lexsort((own, hashes))
    count = int((hashes < np.uint64(share * (2**64 - 1))).sum())
    if count < wanted:
        count = int((hashes <= hashes[order[wanted - 1]]).sum())
    mask = np.zeros(rows, np.bool_)
    mask[order[: min(count, most)]] = True
    return mask


def write_rows(rows: list[dict[str, Any]], errors: Sequence[ErrorRecord], schema: pa.Schema, output: Path) -> None:
    """Write one shard of rows; its unreadable records travel in the Parquet metadata, as it must be one file."""
    table = pa.Table.from_pylist(rows, schema.with_metadata(errors_metadata(errors)))
    pq.write_table(table, output, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_statistics=False)
