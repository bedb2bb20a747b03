"""Conversations: every usual layout, refusals with file and line, a validation split that asks of other objects."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.chats.conversations import ConversationsConfig, conversation_of, conversations
from tasks.chats.messages import validation_mask
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, obtain
from tasks.text.source import resolve_source
from tests.helpers import tiny

QUESTION = {"role": "user", "content": "What is steel?"}
ANSWER = {"role": "assistant", "content": "Iron with some carbon."}


def run(path: Path, execution: Execution, **config: Any) -> tuple[Artifact, dict[str, float]]:
    source = resolve_source(str(path), execution.home / "sources")
    outcome = obtain(conversations, ConversationsConfig(**config), {"sft": source}, execution)
    return outcome.artifact, outcome.manifest.metrics


def rows(artifact: Artifact, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(artifact.path / f"{split}.parquet").to_pylist()
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": ANSWER["content"]}]}]},
        {"conversations": [{"from": "human", "value": "What is steel?"}, {"from": "gpt", "value": ANSWER["content"]}]},
        {"conversations": [QUESTION, ANSWER]},
        {"instruction": "What is steel?", "input": "", "output": ANSWER["content"]},
        {"instruction": "What is steel?", "output": ANSWER["content"], "messages": None},
        {"prompt": "What is steel?", "completion": ANSWER["content"]},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"messages": [QUESTION, ANSWER, {"role": "user", "content": "Thanks"}]},
    ],
)
def test_layouts(fields: dict[str, Any]) -> None:
    assert conversation_of(fields) == [QUESTION, ANSWER]


def test_alpaca_input_follows_the_instruction() -> None:
    found = conversation_of({"instruction": "Translate.", "input": "acier", "output": "steel"})
    assert found[0]["content"] == "Translate.\n\nacier"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "x"}, "no known layout: found the fields text"),
        ({"messages": []}, "expected a list of messages, found"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "to be one of .*, found 'tool'"),
        ({"messages": [{"role": "user"}]}, "expected a message with 'role' and 'content'"),
        ({"messages": [QUESTION]}, "no answer of the assistant"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "no answer of the assistant"),
    ],
)
def test_unusable_records_say_why(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conversation_of(fields)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    return path


def records(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(count)]


def test_file_is_split_by_hash_and_nothing_is_lost(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", records(2000))
    artifact, metrics = run(path, execution, validation_share=0.1)
    train, validation = rows(artifact, "train"), rows(artifact, "validation")
    asked = {row["messages"][0]["content"] for row in train + validation}
    assert asked == {f"Question {i}?" for i in range(2000)}
    assert 150 < len(validation) < 250 and metrics["validation_conversations"] == len(validation)
    assert {row["source"] for row in train} == {"a"}
    assert len({row["conversation_id"] for row in train + validation}) == 2000
    grown, _ = run(write_jsonl(tmp_path / "a.jsonl.gz", records(2500)), execution, validation_share=0.1)
    before = {row["conversation_id"] for row in validation}
    assert before == {row["conversation_id"] for row in rows(grown, "validation")} & (
        before | {row["conversation_id"] for row in train}
    ), "growth moves nobody to the other side"


def test_few_conversations_still_give_32_for_validation(tmp_path: Path, execution: Execution) -> None:
    artifact, _ = run(write_jsonl(tmp_path / "a.jsonl.gz", records(200)), execution)
    assert (len(rows(artifact, "train")), len(rows(artifact, "validation"))) == (168, 32)
    artifact, _ = run(write_jsonl(tmp_path / "b.jsonl.gz", records(10)), execution)
    assert (len(rows(artifact, "train")), len(rows(artifact, "validation"))) == (5, 5)


def test_validation_mask_keeps_groups_together() -> None:
    groups = ["0" * 16, "f" * 16, "0" * 16, "8" * 16]
    assert validation_mask(groups, groups, 0.2).tolist() == [True, False, True, False]
    one_group, ids = ["f" * 16] * 4, [f"{i:032x}" for i in (0, 1 << 127, 1 << 126, 3 << 126)]
    assert validation_mask(one_group, ids, 0.2).tolist() == [True, False, True, False], "else nothing is left to learn"


def test_limit_and_duplicates(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", records(300) + records(300))
    assert run(path, execution)[1]["train_conversations"] == 268
    _, metrics = run(path, execution, max_conversations=100)
    assert metrics["train_conversations"] + metrics["validation_conversations"] == 100


def test_bad_lines_are_tolerated_up_to_the_share(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", [*records(300), {"text": "no conversation"}])
    artifact, _ = run(path, execution)
    (error,) = (artifact.path / "errors.jsonl").read_text().splitlines()
    assert json.loads(error)["file"] == "a.jsonl.gz" and json.loads(error)["place"] == "line 301"
    path = write_jsonl(tmp_path / "b.jsonl.gz", [*records(10), {"text": "no conversation"}])
    with pytest.raises(ValueError, match=r"^b.jsonl.gz, line 11: no known layout: found the fields text; expected"):
        run(path, execution)


def test_no_conversation_is_refused(tmp_path: Path, execution: Execution) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="Found 0 conversations in 1 files, at least 2 are needed"):
        run(tmp_path / "a.jsonl", execution)


def test_python_source_gives_questions_about_it(tmp_path: Path) -> None:
    library = tiny.make_corpus(tmp_path / "library")
    first, metrics = run(library, Execution(home=tmp_path / "h1", workers=1), max_conversations=100_000)
    second, _ = run(library, Execution(home=tmp_path / "h2", workers=2), max_conversations=100_000)
    assert first.digest == second.digest
    train, validation = rows(first, "train"), rows(first, "validation")
    assert metrics["train_conversations"] == len(train) > 1500 and len(validation) >= 32
    assert all([m["role"] for m in row["messages"][:2]] == ["user", "assistant"] for row in train)
    questions = [row["messages"][0]["content"] for row in train + validation if len(row["messages"]) == 2]
    assert len(questions) == len(set(questions)), "one answer to one question"
    held_out = {row["messages"][1]["content"] for row in validation if "documentation of" in str(row["messages"])}
    assert held_out and not held_out & {m["content"] for row in train for m in row["messages"]}
