"""Read or make pairs of a better and a worse answer.

Files hold `prompt`, `chosen` and `rejected`, each as text or as messages; the answers may repeat the prompt. From
Python source the better answer is the true one, the worse one fits a sibling or breaks off.
"""

from collections.abc import Mapping
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
    instruction_of,
    text_or_messages,
    with_system,
    write_rows,
)
from tasks.chats.rules import Aspect, Exchange, rejected_answer
from tasks.mechanism.stage import StageRun, stage
from tasks.text.bad_records import ErrorRecord
from tasks.text.readers.records import shown
from tasks.text.source import Source, source_name

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
KIND = Kind("preferences", "preference pairs", "pairs", "--preferences", _EXPECTED, PREFERENCE_SCHEMA)


class PreferencesConfig(ExamplesConfig):
    """Which pairs are used."""

    max_pairs: int = Field(8_000, ge=2, description="At most so many, chosen by hash; a file with fewer is used whole.")


@stage("preferences", version=1, figures=("train_pairs", "validation_pairs"))
def preferences(run: StageRun, cfg: PreferencesConfig, pairs: Source) -> None:
    """Write `train.parquet`, `validation.parquet` and `errors.jsonl`.

    Raises:
        ValueError: too many records without the three fields, or fewer than two pairs.
    """
    counts = write_examples(run, cfg, KIND, pairs, cfg.max_pairs, make_preferences, read_preferences)
    run.metric("equal_pairs", sum(count["equal"] for count in counts))


def make_preferences(inputs: tuple[Path, ...], output: Path, cfg: PreferencesConfig) -> Mapping[str, float]:
    """Shard function: exchanges about Python objects -> questions with a true and a worse answer."""
    rows = []
    siblings: dict[Aspect, Exchange] = {}
    for object_name, found in read_exchanges(inputs[0]):
        for exchange in found:
            if exchange.aspect not in _ASPECTS:
                continue
            # The object before it, mostly of the same module: what is true of that one is plausible here, and wrong.
            worse = rejected_answer(exchange, siblings.get(exchange.aspect))
            siblings[exchange.aspect] = exchange
            prompt = [{"role": "user", "content": exchange.question}]
            answers = [[{"role": "assistant", "content": text}] for text in (exchange.answer, worse)]
            rows.append(_row(prompt, answers[0], answers[1], object_name.split(".")[0], object_name))
    write_rows(rows, [], KIND.shard_schema, output)
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
    rows: list[dict[str, Any]] = []
    errors: list[ErrorRecord] = []
    equal = 0
    for name, found in read_records(inputs, preference_of):
        if isinstance(found, ErrorRecord):
            errors.append(found)
        elif found[1] == found[2]:
            equal += 1
        else:
            rows.append(_row(*found, source_name(name), first_question(found[0])))
    write_rows(rows, errors, KIND.shard_schema, output)
    return {"pairs": float(len(rows)), "bad": float(len(errors)), "equal": float(equal)}


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
    shared = _shared_turns(chosen, rejected)
    given = _given_prompt(fields)
    prompt = with_system(fields, [*_before(given, chosen[:shared]), *chosen[:shared]])
    chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt:
        raise ValueError(f"no field 'prompt'; found: {', '.join(fields)}; {_EXPECTED}")
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        if not any(message["role"] == "assistant" for message in answer):
            raise ValueError(f"{field!r} has no answer of the assistant: {answer}")
        if answer[-1]["role"] != "assistant":
            raise ValueError(f"{field!r} ends with a turn of the {answer[-1]['role']}: {shown(answer[-1]['content'])}")
    return prompt, chosen, rejected


def _given_prompt(fields: Mapping[str, Any]) -> Messages:
    """What a field of its own says came before the answers; [] where there is none."""
    if fields.get("prompt") is not None:
        return text_or_messages(fields["prompt"], "user")
    if isinstance(fields.get("instruction"), str):
        return instruction_of(fields)
    # LLaMA-Factory's rankings. `messages` is no prompt: in UltraFeedback it is the better conversation once more.
    turns = fields.get("conversations")
    return [] if turns is None else text_or_messages(turns, "user")


def _shared_turns(chosen: Messages, rejected: Messages) -> int:
    """How many turns both sides begin with; at least one is left to each."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _before(given: Messages, shared: Messages) -> Messages:
    """The part of a given prompt that the answers do not repeat.

    Raises:
        ValueError: the answers begin with other questions than the prompt has.
    """
    for repeated in range(min(len(given), len(shared)), 0, -1):
        if _plain(given[-repeated:]) == _plain(shared[:repeated]):
            return given[:-repeated]
    if given and _plain(shared[-len(given) :]) == _plain(given):
        return []  # the prompt is the last question of a conversation that the answers hold from its start
    if given and shared and shared[0]["role"] != "assistant":
        raise ValueError(f"'prompt': the answers begin with another one, {shown(shared[0]['content'])}")
    return given


def _plain(messages: Messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]
